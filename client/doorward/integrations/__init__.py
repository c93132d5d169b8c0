"""Guards for services: every request is checked before its handler runs, and what has no rule is refused.

    doorward.integrations.grpc_aio       an interceptor for grpc.aio servers
    doorward.integrations.grpc_threads   an interceptor for grpc servers with threads
    doorward.integrations.asgi           a middleware for any ASGI application; needs nothing else
    doorward.integrations.fastapi        a dependency for FastAPI, which has to be installed

Each is imported only when it is used. Design sections 5 and 8; docs/guards.md has a quick start for each.
"""
