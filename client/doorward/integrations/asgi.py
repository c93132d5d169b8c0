"""Guards any ASGI application: requests and WebSockets are checked before the application sees them. Needs no framework.

    from doorward.aio import AuthorizerClient
    from doorward.integrations.asgi import OPEN, Guard, Needs

    app = Guard(
        app,
        AuthorizerClient("127.0.0.1:50051", credential=Path("caller.token")),
        {
            "GET /projects/{project_id}/jobs": Needs("jobs:read", project_id="project_id"),
            "POST /projects/{project_id}/jobs": Needs("jobs:write", project_id="project_id"),
            "WEBSOCKET /projects/{project_id}/log": Needs("jobs:read", project_id="project_id"),
            "GET /healthz": OPEN,
        },
    )

In Starlette: `Middleware(Guard, authorizer=…, rules={…})`. What has no route here is refused, OPTIONS and unknown methods
among it; lifespan events pass. `identity()`, `scope["doorward"]` and in Starlette `request.state.doorward` say who was let
in. How routes are written: `_routes.py`; where an id may stand: `_http.py`, and a callable is given the scope. Design
section 8; docs/guards.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from doorward.integrations._guard import (
    ADMITTED,
    CHECK_TIMEOUT_S,
    AioGuard,
    Authorizer,
    Gate,
    Identity,
    decide_aio,
    find_identity,
    identity,
    question_of,
)
from doorward.integrations._http import (
    FromHeader,
    FromQuery,
    from_header,
    from_query,
    may_answer_websocket,
    require_clear_path,
    require_realm,
    response_of,
    secret_of,
    values_at,
    websocket_close,
)
from doorward.integrations._refusals import NO_RULE, NotAdmitted, Refusal
from doorward.integrations._routes import WEBSOCKET, Routes
from doorward.integrations._rules import OPEN, Needs, Open, Rule, id_in

if TYPE_CHECKING:
    from doorward.decisions import Decision
    from doorward.integrations._guard import Admission

__all__ = [
    "OPEN",
    "Authorizer",
    "Guard",
    "Identity",
    "Needs",
    "Rules",
    "find_identity",
    "from_header",
    "from_query",
    "identity",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Place: TypeAlias = str | FromQuery | FromHeader | Callable[[Scope], str]
Rules: TypeAlias = Mapping[str, Rule[Place]]


class Guard(AioGuard):
    """The middleware. Outside of it belongs only what answers without a token: CORS, for its preflights."""

    def __init__(
        self,
        app: App,
        authorizer: Authorizer[Awaitable[Decision]],
        rules: Rules,
        *,
        realm: str = "doorward",
        timeout: float = CHECK_TIMEOUT_S,
    ) -> None:
        """`realm`: what a client is told that it needs a token for. `timeout`: seconds that a check may take.

        Raises:
            ValueError, TypeError: a rule that cannot be one.
        """
        self._app = app
        self._gate = Gate(authorizer, timeout)
        self._realm = require_realm(realm)
        self._routes = Routes(rules)
        for text, rule, parameters in self._routes.parameters():
            _require_rule(text, rule, parameters)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in {"http", "websocket"}:
            raise ValueError(f"a guard of requests and WebSockets lets no {scope['type']!r} pass")
        try:
            admission = await self._admission(scope)
        except NotAdmitted as refused:
            await self._answer(refused.refusal, scope, receive, send)
            return
        if admission is None:
            await self._app(scope, receive, send)
            return
        scope["doorward"] = admission.identity
        # A new one: whether the server's is this request's alone is the server's affair.
        scope["state"] = {**(scope.get("state") or {}), "doorward": admission.identity}
        before = ADMITTED.set(admission)
        try:
            await self._app(scope, receive, send)
        finally:
            ADMITTED.reset(before)

    async def _admission(self, scope: Scope) -> Admission | None:
        """Who is let in; None where nobody is asked.

        Raises:
            NotAdmitted: nobody.
        """
        with self._gate.closed_on_error():
            method = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
            found = self._routes.find(method, require_clear_path(scope))
            if found is None:
                raise NotAdmitted(NO_RULE)
            rule, parameters = found
            if isinstance(rule, Open):
                return None
            secret = secret_of(scope)
            question = question_of(rule, secret, id_in(_values(rule.place, scope, parameters), rule.id_name))
        return await decide_aio(self._gate, question)

    async def _answer(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = "http"
        if scope["type"] == "websocket":
            if (await receive())["type"] != "websocket.connect":
                return
            if not may_answer_websocket(scope):
                code, reason = websocket_close(refusal)
                await send({"type": "websocket.close", "code": code, "reason": reason})
                return
            prefix = "websocket.http"
        response = response_of(refusal, self._realm)
        headers = {**response.headers, "content-type": "application/json", "content-length": str(len(response.body))}
        started = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": f"{prefix}.response.start", "status": response.status, "headers": started})
        body = b"" if scope.get("method") == "HEAD" else response.body
        await send({"type": f"{prefix}.response.body", "body": body})


def _values(place: Place, scope: Scope, parameters: Mapping[str, str]) -> tuple[object, ...]:
    if isinstance(place, str):
        return (parameters[place],)
    return values_at(place, scope) if isinstance(place, FromQuery | FromHeader) else (place(scope),)


def _require_rule(text: str, rule: Rule[Place], parameters: frozenset[str]) -> None:
    if isinstance(rule, Open):
        return
    if not isinstance(rule, Needs):
        raise TypeError(f"{text}: a rule is Needs(…) or OPEN")
    if isinstance(rule.place, str) and rule.place not in parameters:
        raise ValueError(f"{text}: the path has no {{{rule.place}}}")
    if not isinstance(rule.place, str | FromQuery | FromHeader) and not callable(rule.place):
        raise TypeError(
            f"{text}: an id stands in the path, in from_query(…) or from_header(…), or is what a callable returns"
        )
