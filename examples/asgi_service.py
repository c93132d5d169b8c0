"""An ASGI application, here one of Starlette, that is guarded as a whole: `python -m examples.asgi_service`.

Asks Doorward at DOORWARD_ADDRESS with the credential in DOORWARD_TOKEN_FILE, and listens on PORT. Needs starlette, uvicorn
and websockets.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from doorward.aio import AuthorizerClient, LocalAuthorizer
from doorward.integrations.asgi import OPEN, Guard, Needs, Rules, from_query, identity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket

# Both fit: with DECIDE=here this process decides by itself.
kind = LocalAuthorizer if os.environ.get("DECIDE") == "here" else AuthorizerClient
authorizer = kind(
    os.environ.get("DOORWARD_ADDRESS", "127.0.0.1:50051"),
    credential=Path(os.environ.get("DOORWARD_TOKEN_FILE", "doorward-data/caller.token")),
)

# In the order of the routes. DELETE has a route below and no rule here, so nobody may call it.
RULES: Rules = {
    "GET /healthz": OPEN,
    "GET /projects/{project_id}/jobs": Needs("jobs:read", project_id="project_id"),
    "POST /projects/{project_id}/jobs": Needs("jobs:write", project_id="project_id"),
    "GET /accounts/{account_id}/usage": Needs("billing:read", account_id="account_id"),
    "GET /report": Needs("metadata:read", project_id=from_query("project_id")),
    "WEBSOCKET /projects/{project_id}/log": Needs("jobs:read", project_id="project_id"),
}


async def healthz(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "well"})


async def jobs(request: Request) -> JSONResponse:
    return JSONResponse({"project_id": request.path_params["project_id"], "token_id": identity().token_id})


async def usage(request: Request) -> JSONResponse:
    return JSONResponse({"account_id": request.state.doorward.account_id})


async def report(request: Request) -> JSONResponse:
    return JSONResponse({"project_id": request.query_params["project_id"]})


async def log(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json({"project_id": websocket.path_params["project_id"], "token_id": identity().token_id})
    await websocket.close()


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    async with authorizer:
        yield


app = Starlette(
    routes=[
        Route("/healthz", healthz),
        Route("/projects/{project_id}/jobs", jobs, methods=["GET", "POST", "DELETE"]),
        Route("/accounts/{account_id}/usage", usage),
        Route("/report", report),
        WebSocketRoute("/projects/{project_id}/log", log),
    ],
    middleware=[Middleware(Guard, authorizer=authorizer, rules=RULES)],
    lifespan=lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
