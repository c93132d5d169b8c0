"""What a user would write by hand: Starlette, asyncpg, one query a check. Runs in the peers' environment (`peers.py`).

`python -m bench.peer_service DATABASE_URL`. A POST of `{secret, permission, project_id}` is answered by `{allowed}`. The secret
is looked up by its SHA-256; nothing is cached, so that what was revoked is denied at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUERY = """
SELECT EXISTS (
  SELECT FROM tokens
  JOIN grants USING (token_id)
  JOIN set_permissions USING (permission_set)
  JOIN plan_sets USING (plan, permission_set)
  JOIN projects ON projects.project_id = $3 AND projects.account_id = tokens.account_id
  WHERE tokens.digest = $1 AND NOT tokens.revoked AND (tokens.expire_time IS NULL OR tokens.expire_time > now())
    AND set_permissions.permission = $2 AND (grants.project_id IS NULL OR grants.project_id = $3))
"""
CONNECTIONS = 10


async def serve(url: str) -> None:
    """Serves until SIGTERM."""
    pool: Any = None

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        nonlocal pool
        async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            sys.stdout.write(f"Doorward listens on 127.0.0.1:{listener.getsockname()[1]}\n")
            sys.stdout.flush()
            yield

    async def check(request: Any) -> Any:
        asked = json.loads(await request.body())
        digest = hashlib.sha256(asked["secret"].encode()).digest()
        allowed = await pool.fetchval(QUERY, digest, asked["permission"], asked["project_id"])
        return JSONResponse({"allowed": allowed})

    app = Starlette(routes=[Route("/check", check, methods=["POST"])], lifespan=lifespan)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    # As `uvicorn` would on the command line.
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
