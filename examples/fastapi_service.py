"""A FastAPI application whose path operations are guarded by one dependency: `python -m examples.fastapi_service`.

Asks Doorward at DOORWARD_ADDRESS with the credential in DOORWARD_TOKEN_FILE, and listens on PORT. Needs fastapi, uvicorn and
websockets.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, WebSocket

from doorward.aio import AuthorizerClient, LocalAuthorizer
from doorward.integrations.fastapi import Guard, Identity, from_query, identity, needs, open_to_all

# Both fit: with DECIDE=here this process decides by itself.
kind = LocalAuthorizer if os.environ.get("DECIDE") == "here" else AuthorizerClient
authorizer = kind(
    os.environ.get("DOORWARD_ADDRESS", "127.0.0.1:50051"),
    credential=Path(os.environ.get("DOORWARD_TOKEN_FILE", "doorward-data/caller.token")),
)
guard = Guard(authorizer)
Caller = Annotated[Identity, Depends(guard)]


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with authorizer:
        yield


# Its own pages are no path operations, and so would be open to all.
app = FastAPI(dependencies=[Depends(guard)], lifespan=lifespan, openapi_url=None)
projects = APIRouter(prefix="/projects/{project_id}")


@app.get("/healthz")
@open_to_all
async def healthz() -> dict[str, str]:
    return {"status": "well"}


@projects.get("/jobs")
@needs("jobs:read", project_id="project_id")
def list_jobs(project_id: str, caller: Caller) -> dict[str, Any]:
    return {"project_id": project_id, "token_id": caller.token_id}


@projects.post("/jobs")
@needs("jobs:write", project_id="project_id")
async def start_job(project_id: str) -> dict[str, Any]:
    return {"project_id": project_id, "token_id": identity().token_id}


# It says neither what it needs nor that it is open, so nobody may call it.
@projects.delete("/jobs")
async def purge_jobs(project_id: str) -> dict[str, Any]:
    return {"project_id": project_id}


@app.get("/accounts/{account_id}/usage")
@needs("billing:read", account_id="account_id")
async def usage(account_id: str) -> dict[str, Any]:
    return {"account_id": account_id}


@app.get("/report")
@needs("metadata:read", project_id=from_query("project_id"))
async def report(project_id: str) -> dict[str, Any]:
    return {"project_id": project_id}


@projects.websocket("/log")
@needs("jobs:read", project_id="project_id")
async def log(websocket: WebSocket, project_id: str, caller: Caller) -> None:
    await websocket.accept()
    await websocket.send_json({"project_id": project_id, "token_id": caller.token_id})
    await websocket.close()


app.include_router(projects)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
