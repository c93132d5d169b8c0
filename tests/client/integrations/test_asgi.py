"""The ASGI middleware, driven by hand: what servers and frameworks differ in, and what a client never sees."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest

from doorward.decisions import Decision, DenyReason
from doorward.errors import Status, Unavailable
from doorward.integrations.asgi import (
    OPEN,
    Guard,
    Identity,
    Needs,
    find_identity,
    from_header,
    from_query,
    identity,
)
from tests.support.deciders import YES, Decider, a_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET = a_secret()
BEARER = ((b"authorization", f"Bearer {SECRET}".encode()),)
OUTAGE = Unavailable(Status(grpc.StatusCode.UNAVAILABLE, "away", retry_after_s=2.1))
DENIED = Decision(False, DenyReason.PERMISSION_NOT_GRANTED, "token-1", "acme", "1.7")

RULES: dict[str, Any] = {
    "GET /projects/{project_id}": Needs("jobs:read", project_id="project_id"),
    "GET /accounts": Needs("billing:read", account_id=from_header("X-Account-Id")),
    "GET /report": Needs("jobs:read", project_id=from_query("project_id")),
    "GET /own": Needs("jobs:read", project_id=lambda scope: scope["headers"][1][1].decode()),
    "GET /broken": Needs("jobs:read", project_id=lambda scope: scope["nothing"]),
    "WEBSOCKET /projects/{project_id}": Needs("jobs:read", project_id="project_id"),
    "GET /static/*": OPEN,
}


class Seen(NamedTuple):
    """What the application saw of a request."""

    identity: Identity | None
    in_scope: object
    in_state: object


class App:
    """The application behind the guard."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        state = scope.get("state") or {}
        self.seen.append(Seen(find_identity(), scope.get("doorward"), state.get("doorward")))
        await send({"type": f"{scope['type']}.answer"})


def a_scope(path: str, headers: Any = BEARER, method: str = "GET", **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        **more,
    }


class Driven(NamedTuple):
    """What came of a connection."""

    sent: list[Any]
    seen: list[Seen]
    received: int

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> Mapping[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def reason(self) -> str:
        reason: str = json.loads(self.sent[1]["body"])["reason"]
        return reason


async def driven(scope: dict[str, Any], answer: Decision | BaseException = YES, first: str = "") -> Driven:
    """Sends one connection through a guard."""
    app, sent, received = App(), [], 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": first or f"{scope['type']}.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Guard(app, Decider(answer).aio, RULES)(scope, receive, send)
    return Driven(sent, app.seen, received)


# ---- who was let in


async def test_the_application_knows_who_was_let_in() -> None:
    done = await driven(a_scope("/projects/p1"))
    assert done.seen == [Seen(*[Identity("token-1", "acme")] * 3)]
    assert find_identity() is None


async def test_nobody_is_known_of_what_is_open() -> None:
    assert (await driven(a_scope("/static/a/b.css"))).seen == [Seen(None, None, None)]


async def test_the_state_of_the_server_is_left_alone() -> None:
    state: dict[str, Any] = {"pool": 1}
    scope = a_scope("/projects/p1", state=state)
    await driven(scope)
    assert state == {"pool": 1}
    assert scope["state"]["pool"] == 1


async def test_what_the_application_raises_is_its_own_affair() -> None:
    async def app(*_: Any) -> Any:
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        await Guard(app, Decider().aio, RULES)(a_scope("/projects/p1"), app, app)
    with pytest.raises(LookupError):
        identity()


# ---- refusals


async def test_a_refused_request_reaches_nobody_and_is_not_read() -> None:
    done = await driven(a_scope("/projects/p1"), DENIED)
    assert (done.status, done.reason, done.seen, done.received) == (403, "PERMISSION_NOT_GRANTED", [], 0)
    assert [message["type"] for message in done.sent] == ["http.response.start", "http.response.body"]
    assert done.headers == {
        "cache-control": "no-store",
        "content-type": "application/json",
        "content-length": str(len(done.sent[1]["body"])),
        "www-authenticate": 'Bearer realm="doorward", error="insufficient_scope", scope="jobs:read"',
    }


async def test_who_presents_nothing_is_told_nothing_but_what_to_present() -> None:
    done = await driven(a_scope("/projects/p1", ()))
    assert (done.status, done.headers["www-authenticate"]) == (401, 'Bearer realm="doorward"')
    done = await driven(a_scope("/projects/p1", ((b"authorization", b"Bearer x"),)))
    assert done.headers["www-authenticate"] == 'Bearer realm="doorward", error="invalid_token"'


async def test_the_answer_to_head_has_the_headers_of_the_answer_and_no_body() -> None:
    done, of_get = await driven(a_scope("/projects/p1", (), "HEAD")), await driven(a_scope("/projects/p1", ()))
    assert done.headers == of_get.headers
    assert done.sent[1]["body"] == b""


async def test_an_outage_says_when_to_come_back_in_whole_seconds() -> None:
    done = await driven(a_scope("/projects/p1"), OUTAGE)
    assert (done.status, done.headers["retry-after"]) == (503, "3")
    assert "www-authenticate" not in done.headers


async def test_a_rule_that_fails_admits_nobody(caplog: pytest.LogCaptureFixture) -> None:
    done = await driven(a_scope("/broken"))
    assert (done.status, done.reason, done.seen) == (500, "GUARD_FAILED", [])
    assert "nothing" not in done.sent[1]["body"].decode()
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("names", [(b"Authorization",), (b"AUTHORIZATION", b"authorization")])
async def test_a_server_that_keeps_the_case_of_headers_hides_none(names: tuple[bytes, ...]) -> None:
    done = await driven(a_scope("/projects/p1", [(name, BEARER[0][1]) for name in names]))
    assert bool(done.seen) is (len(names) == 1)


@pytest.mark.parametrize("lacking", ["raw_path", "query_string"])
async def test_what_a_server_may_leave_out_is_not_needed(lacking: str) -> None:
    scope = a_scope("/projects/p1")
    del scope[lacking]
    assert (await driven(scope)).seen


# ---- where the id stands


@pytest.mark.parametrize(
    ("scope", "wanted"),
    [
        (a_scope("/accounts", (*BEARER, (b"x-account-id", b"acme"))), 200),
        (a_scope("/accounts", (*BEARER, (b"X-Account-Id", b"acme"))), 200),
        (a_scope("/accounts", (*BEARER, (b"x-account-id", b"acme"), (b"x-account-id", b"acme"))), 400),
        (a_scope("/accounts", (*BEARER, (b"x-account-id", b"acme, other"))), 400),
        (a_scope("/accounts", (*BEARER, (b"x-account-id", "ü".encode()))), 400),
        (a_scope("/accounts"), 400),
        (a_scope("/own", (*BEARER, (b"x-own", b"p1"))), 200),
        (a_scope("/own", (*BEARER, (b"x-own", b""))), 400),
        (a_scope("/report", query_string=b"project_id=p1&other=%ff"), 200),
        (a_scope("/report", query_string=b"project_id=p1;project_id=p2"), 400),
        (a_scope("/report", query_string=b"project_id=%ff"), 400),
        (a_scope("/report", query_string=b"project_id=p1&project_id"), 400),
        (a_scope("/report", query_string=b"\xff\xfe"), 400),
    ],
)
async def test_an_id_is_found_once_or_not_at_all(scope: dict[str, Any], wanted: int) -> None:
    done = await driven(scope)
    assert (200 if done.seen else done.status) == wanted


# ---- paths and mounts


@pytest.mark.parametrize(
    ("path", "root", "is_admitted"),
    [
        ("/api/projects/p1", "/api", True),
        ("/projects/p1", "/api", True),  # of a server that leaves the mount out of the path
        ("/projects/p1", "/proj", True),
        ("/apiprojects/p1", "/api", False),
        ("/api.projects/projects/p1", "/api.projects", True),
        ("/apix/projects/p1", "/api", False),
        ("/api/projects/p1", "/api/", False),  # as Starlette: a mount does not end with a slash
        ("/api", "/api", False),
        ("/api/api/projects/p1", "/api", False),
        ("/projects/p1", "", True),
        ("projects/p1", "", False),
        ("*", "", False),
        ("", "", False),
    ],
)
async def test_a_route_is_looked_for_below_the_mount(path: str, root: str, is_admitted: bool) -> None:
    assert bool((await driven(a_scope(path, root_path=root))).seen) is is_admitted


@pytest.mark.parametrize("path", ["/static/../projects/p1", "/static/./a", "/static//a", "/static/..", "/static/a/."])
async def test_not_even_what_is_open_is_reached_by_a_path_with_two_readings(path: str) -> None:
    done = await driven(a_scope(path))
    assert (done.status, done.reason) == (400, "PATH_UNCLEAR")


@pytest.mark.parametrize("raw", [b"/static/a%2fb", b"/static/..%2Fprojects"])
async def test_an_encoded_slash_is_seen_where_the_server_shows_it(raw: bytes) -> None:
    done = await driven(a_scope("/static/a/b", raw_path=raw))
    assert (done.status, done.reason) == (400, "PATH_UNCLEAR")


# ---- WebSockets, lifespan and what else there may be


def a_websocket(headers: Any = (), **more: Any) -> dict[str, Any]:
    scope = a_scope("/projects/p1", headers, **more)
    del scope["method"]
    return {**scope, "type": "websocket"}


@pytest.mark.parametrize(
    ("answer", "headers", "code", "reason"),
    [
        (DENIED, BEARER, 1008, "PERMISSION_NOT_GRANTED"),
        (YES, (), 1008, "CREDENTIAL_MISSING"),
        (OUTAGE, BEARER, 1013, "NOT_DECIDED"),
        (RuntimeError(), BEARER, 1011, "GUARD_FAILED"),
    ],
)
async def test_a_websocket_is_closed_where_the_server_can_say_no_more(
    answer: Decision | BaseException, headers: Any, code: int, reason: str
) -> None:
    none: tuple[dict[str, Any] | None, ...] = ({}, None)
    for extensions in none:
        done = await driven(a_websocket(headers, extensions=extensions), answer)
        assert done.sent == [{"type": "websocket.close", "code": code, "reason": reason}]
        assert done.seen == []


async def test_the_handshake_of_a_websocket_is_answered_where_the_server_lets_it() -> None:
    done = await driven(a_websocket(extensions={"websocket.http.response": {}}))
    assert [message["type"] for message in done.sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert (done.status, done.reason) == (401, "CREDENTIAL_MISSING")


async def test_a_websocket_that_has_gone_is_answered_nothing() -> None:
    assert (await driven(a_websocket(), first="websocket.disconnect")).sent == []


async def test_a_websocket_is_handed_on_with_its_first_event() -> None:
    done = await driven(a_websocket(BEARER))
    assert done.received == 0
    assert done.seen[0].identity == Identity("token-1", "acme")


async def test_the_lifespan_passes() -> None:
    done = await driven({"type": "lifespan"}, RuntimeError("asked"))
    assert done.sent == [{"type": "lifespan.answer"}]


async def test_another_protocol_does_not_pass() -> None:
    with pytest.raises(ValueError, match="webtransport"):
        await driven({**a_scope("/static/a"), "type": "webtransport"})
