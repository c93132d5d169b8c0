"""Guards the path operations of a FastAPI application by one dependency; each operation says what it needs.

    from fastapi import Depends, FastAPI
    from doorward.aio import AuthorizerClient
    from doorward.integrations.fastapi import Guard, Identity, needs, open_to_all

    guard = Guard(AuthorizerClient("127.0.0.1:50051", credential=Path("caller.token")))
    app = FastAPI(dependencies=[Depends(guard)], openapi_url=None)

    @app.post("/projects/{project_id}/jobs")
    @needs("jobs:write", project_id="project_id")
    async def start_job(project_id: str, caller: Annotated[Identity, Depends(guard)]) -> dict[str, str]: ...

    @app.get("/healthz")
    @open_to_all
    async def healthz() -> str: ...

As a dependency of the application it runs before every path operation, WebSockets among them, and refuses one that says
neither. The router has read the path by then: what is checked is what the handler gets. `identity()` and
`request.state.doorward` say who was let in, and so does `Depends(guard)`, which asks once for a request.

FastAPI runs no dependency for what is no path operation: /docs and /openapi.json, mounted applications, static files. And it
reads the body of a request first. Where that matters, put `doorward.integrations.asgi.Guard` around the application instead.

Where an id may stand: `_http.py`; a callable is given the connection, and may be a coroutine function. Design section 8;
docs/guards.md.
"""

# No postponed annotations: FastAPI looks at those of the dependency, which is an instance, and would not find their names.
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from fastapi import HTTPException, WebSocketException
from fastapi.requests import HTTPConnection

from doorward.decisions import Decision
from doorward.integrations._guard import (
    ADMITTED,
    CHECK_TIMEOUT_S,
    AioGuard,
    Authorizer,
    Gate,
    Identity,
    Question,
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
    require_realm,
    response_of,
    secret_of,
    values_at,
    websocket_close,
)
from doorward.integrations._refusals import NO_RULE, NotAdmitted, Refusal
from doorward.integrations._rules import OPEN, Needs, Open, Rule, id_in

__all__ = [
    "Authorizer",
    "Guard",
    "Identity",
    "find_identity",
    "from_header",
    "from_query",
    "identity",
    "needs",
    "open_to_all",
]

Place: TypeAlias = str | FromQuery | FromHeader | Callable[[HTTPConnection], str | Awaitable[str]]
F = TypeVar("F", bound=Callable[..., Any])

_RULE: Final = "__doorward_rule__"


class _Decorator(Protocol):
    def __call__(self, operation: F, /) -> F: ...


def needs(permission: str, *, project_id: Place | None = None, account_id: Place | None = None) -> _Decorator:
    """Marks a path operation as one that needs this permission on this project, or on this account.

    Raises:
        ValueError: no permission, or not exactly one place.
    """
    return _marks(Needs(permission, project_id, account_id))


def open_to_all(operation: F) -> F:
    """Marks a path operation as one that needs no token."""
    return _marks(OPEN)(operation)


class Guard(AioGuard):
    """The dependency: of the application, and of whatever wants to know who was let in."""

    def __init__(
        self,
        authorizer: Authorizer[Awaitable[Decision]],
        *,
        realm: str = "doorward",
        timeout: float = CHECK_TIMEOUT_S,
    ) -> None:
        """`realm`: what a client is told that it needs a token for. `timeout`: seconds that a check may take.

        Raises:
            ValueError: one of these cannot be.
        """
        self._gate = Gate(authorizer, timeout)
        self._realm = require_realm(realm)

    async def __call__(self, connection: HTTPConnection) -> Identity | None:
        """Who was let in; None where the operation is open to all.

        Raises:
            HTTPException: nobody. WebSocketException, of a WebSocket whose server can say no more than 403.
        """
        # What the router chose, which is what will be called. Of what has no path operation there is no mark.
        rule: Rule[Place] | None = getattr(connection.scope.get("endpoint"), _RULE, None)
        if isinstance(rule, Open):
            return None
        try:
            if rule is None:
                raise NotAdmitted(NO_RULE)
            admission = await decide_aio(self._gate, await self._question(rule, connection))
        except NotAdmitted as refused:
            raise self._exception(refused.refusal, connection) from None
        ADMITTED.set(admission)
        connection.state.doorward = admission.identity
        return admission.identity

    async def _question(self, rule: Needs[Place], connection: HTTPConnection) -> Question:
        with self._gate.closed_on_error():
            secret = secret_of(connection.scope)
            return question_of(rule, secret, id_in(await _values(rule.place, connection), rule.id_name))

    def _exception(self, refusal: Refusal, connection: HTTPConnection) -> HTTPException | WebSocketException:
        if connection.scope["type"] == "websocket" and not may_answer_websocket(connection.scope):
            return WebSocketException(*websocket_close(refusal))
        status, headers, content = response_of(refusal, self._realm)
        return HTTPException(status, content, headers)


async def _values(place: Place, connection: HTTPConnection) -> tuple[object, ...]:
    if isinstance(place, str):
        return (str(connection.path_params[place]),)
    if isinstance(place, FromQuery | FromHeader):
        return values_at(place, connection.scope)
    found = place(connection)
    return (await found if inspect.isawaitable(found) else found,)


def _marks(rule: Rule[Place]) -> _Decorator:
    def mark(operation: F) -> F:
        if hasattr(operation, _RULE):
            raise ValueError(f"{operation!r} has a rule already")
        setattr(operation, _RULE, rule)
        return operation

    return mark
