"""The FastAPI dependency, driven without a server: marks, routers, what counts as a path operation, and what does not."""

import functools
import json
from collections.abc import Callable
from typing import Annotated, Any

import grpc
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from starlette.responses import PlainTextResponse

from doorward.decisions import Decision, DenyReason
from doorward.errors import Status, Unavailable
from doorward.integrations.asgi import OPEN
from doorward.integrations.asgi import Guard as Middleware
from doorward.integrations.fastapi import Guard, Identity, identity, needs, open_to_all
from tests.support.deciders import Decider, a_secret

SECRET = a_secret()
BEARER = [(b"authorization", f"Bearer {SECRET}".encode())]


async def ask(app: Any, path: str, body: bytes = b"", method: str = "GET", headers: Any = None) -> tuple[int, Any]:
    """Status and content of one request."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [*(BEARER if headers is None else headers), (b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(content) if content.startswith((b"{", b'"')) else content.decode()


def an_app(decider: Decider, **options: Any) -> tuple[FastAPI, Guard]:
    guard = Guard(decider.aio)
    return FastAPI(dependencies=[Depends(guard)], **options), guard


async def test_the_operation_knows_who_was_let_in_and_one_question_was_asked() -> None:
    decider = Decider()
    app, guard = an_app(decider)

    @app.get("/projects/{project_id}")
    @needs("jobs:read", project_id="project_id")
    async def read(project_id: str, caller: Annotated[Identity, Depends(guard)], request: Request) -> list[str]:
        return [project_id, caller.token_id, identity().token_id, request.state.doorward.token_id]

    @app.get("/threads/{project_id}")
    @needs("jobs:read", project_id="project_id")
    def read_in_a_thread(project_id: str) -> list[str]:
        return [project_id, identity().token_id]

    assert await ask(app, "/projects/p1") == (200, '["p1","token-1","token-1","token-1"]')
    assert [asked.project_id for asked in decider.asked] == ["p1"]
    assert await ask(app, "/threads/p2") == (200, '["p2","token-1"]')


async def test_an_operation_that_says_nothing_is_refused() -> None:
    decider = Decider()
    app, _ = an_app(decider)

    @app.get("/forgotten")
    async def forgotten() -> None:
        raise AssertionError("nobody may call this")

    status, content = await ask(app, "/forgotten")
    assert (status, content["detail"]["reason"]) == (403, "NO_RULE")
    assert decider.asked == []


async def test_a_mark_that_a_decorator_loses_is_missed_and_one_that_it_keeps_is_found() -> None:
    app, _ = an_app(Decider())

    def loses(operation: Callable[..., Any]) -> Callable[..., Any]:
        async def inner() -> Any:
            return await operation()

        return inner

    def keeps(operation: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(operation)(loses(operation))

    @open_to_all
    async def operation() -> str:
        return "open"

    app.get("/lost")(loses(operation))
    app.get("/kept")(keeps(operation))
    assert (await ask(app, "/lost"))[0] == 403
    assert await ask(app, "/kept") == (200, "open")


async def test_the_order_of_the_decorators_is_nothing() -> None:
    app, _ = an_app(Decider())

    @needs("jobs:read", project_id="project_id")
    @app.get("/projects/{project_id}")
    async def read(project_id: str) -> str:
        return project_id

    assert await ask(app, "/projects/p1") == (200, "p1")
    assert (await ask(app, "/projects/p1", headers=[]))[0] == 401


async def test_two_rules_for_one_operation_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="already"):

        @open_to_all
        @needs("jobs:read", project_id="project_id")
        async def both() -> None: ...


async def test_routers_within_routers_are_guarded() -> None:
    decider = Decider(Decision(False, DenyReason.PROJECT_NOT_GRANTED, "token-1", "acme", "1.7"))
    app, _ = an_app(decider)
    inner, outer = APIRouter(prefix="/jobs"), APIRouter(prefix="/projects/{project_id}")

    @inner.get("/{job_id}")
    @needs("jobs:read", project_id="project_id")
    async def read(project_id: str, job_id: str) -> str:
        raise AssertionError(f"{project_id} {job_id}")

    @inner.get("/")
    async def forgotten() -> str:
        raise AssertionError("nobody may call this")

    outer.include_router(inner)
    app.include_router(outer, prefix="/v1")
    status, content = await ask(app, "/v1/projects/p1/jobs/1")
    assert (status, content["detail"]["reason"], content["detail"]["permission"]) == (
        403,
        "PROJECT_NOT_GRANTED",
        "jobs:read",
    )
    assert decider.asked[0].project_id == "p1"
    assert (await ask(app, "/v1/projects/p1/jobs/"))[1]["detail"]["reason"] == "NO_RULE"


async def test_an_id_may_stand_in_the_body() -> None:
    decider = Decider()
    app, _ = an_app(decider)

    async def in_body(request: Any) -> str:
        found: str = json.loads(await request.body())["project_id"]
        return found

    @app.post("/jobs")
    @needs("jobs:write", project_id=in_body)
    async def start(content: dict[str, str]) -> str:
        return content["project_id"]

    assert await ask(app, "/jobs", b'{"project_id": "p1"}', "POST") == (200, "p1")
    assert decider.asked[0].project_id == "p1"
    assert (await ask(app, "/jobs", b'{"project_id": ""}', "POST"))[0] == 400
    assert (await ask(app, "/jobs", b"{}", "POST"))[1]["detail"]["reason"] == "GUARD_FAILED"
    assert (await ask(app, "/jobs", b'{"project_id": "p1"}', "POST", []))[0] == 401


async def test_a_parameter_that_the_path_has_not_is_a_mistake_that_admits_nobody() -> None:
    app, _ = an_app(Decider())

    @app.get("/jobs")
    @needs("jobs:read", project_id="project_id")
    async def read() -> str:
        raise AssertionError("nobody may call this")

    assert (await ask(app, "/jobs"))[1]["detail"]["reason"] == "GUARD_FAILED"


async def test_a_parameter_with_a_slash_in_it_is_no_id() -> None:
    app, _ = an_app(Decider())

    @app.get("/files/{project_id:path}")
    @needs("jobs:read", project_id="project_id")
    async def read(project_id: str) -> str:
        return project_id

    assert await ask(app, "/files/p1") == (200, "p1")
    assert (await ask(app, "/files/p1/p2"))[0] == 400


async def test_an_outage_is_503() -> None:
    app, _ = an_app(Decider(Unavailable(Status(grpc.StatusCode.UNAVAILABLE, "away"))))

    @app.get("/projects/{project_id}")
    @needs("jobs:read", project_id="project_id")
    async def read(project_id: str) -> str:
        raise AssertionError(project_id)

    assert (await ask(app, "/projects/p1"))[0] == 503


async def test_a_websocket_is_closed_where_the_server_can_say_no_more() -> None:
    app, _ = an_app(Decider())

    @app.websocket("/projects/{project_id}")
    @needs("jobs:read", project_id="project_id")
    async def talk(websocket: WebSocket, project_id: str) -> None:
        raise AssertionError(f"{websocket} {project_id}")

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/projects/p1", "headers": [], "query_string": b"", "scheme": "ws"}
    await app(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "CREDENTIAL_MISSING"}]


async def test_a_test_of_the_application_can_stand_in_for_the_guard() -> None:
    app, guard = an_app(Decider(RuntimeError("asked")))

    @app.get("/projects/{project_id}")
    @needs("jobs:read", project_id="project_id")
    async def read(project_id: str, caller: Annotated[Identity, Depends(guard)]) -> list[str]:
        return [project_id, caller.token_id]

    app.dependency_overrides[guard] = lambda: Identity("a test's", "acme")
    assert await ask(app, "/projects/p1", headers=[]) == (200, '["p1","a test\'s"]')


async def test_what_is_no_path_operation_is_guarded_by_the_middleware_alone() -> None:
    app, _ = an_app(Decider())
    app.mount("/mounted", PlainTextResponse("mounted"))
    # FastAPI runs no dependency for these: what docs/guards.md warns of.
    assert (await ask(app, "/openapi.json", headers=[]))[0] == 200
    assert await ask(app, "/mounted/", headers=[]) == (200, "mounted")

    closed = Middleware(app, Decider().aio, {"GET /healthz": OPEN})
    assert (await ask(closed, "/openapi.json"))[0] == 403
    assert (await ask(closed, "/mounted/"))[0] == 403
