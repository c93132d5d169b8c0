"""What Doorward is measured against: a grpc.aio server with the generated servicer, whose Check does nothing.

It takes the same CheckRequest and answers a CheckResponse with the same contents, made once, in the same event loop: all
that is left is what grpc.aio and protobuf cost. Run as `python -m bench.empty_server`.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc.aio

from doorward.v1 import authorizer_pb2, authorizer_pb2_grpc
from doorward_server.start import run

ANSWER = authorizer_pb2.CheckResponse(
    allowed=True, token_id="0kR3vQ8mZ1nT5xYb", account_id="account_000000", revision="1.1000000"
)


class EmptyAuthorizer(authorizer_pb2_grpc.AuthorizerServicer):
    async def Check(
        self,
        request: authorizer_pb2.CheckRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[authorizer_pb2.CheckRequest, authorizer_pb2.CheckResponse],  # noqa: ARG002
    ) -> authorizer_pb2.CheckResponse:
        return ANSWER


async def serve() -> None:
    """Serves until SIGTERM."""
    server = grpc.aio.server()
    servicer = EmptyAuthorizer()  # type: ignore[abstract]  # at run time the other methods answer UNIMPLEMENTED
    authorizer_pb2_grpc.add_AuthorizerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    sys.stdout.write(f"Doorward listens on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    run(serve())
