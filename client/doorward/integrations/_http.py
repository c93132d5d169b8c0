"""What the guards of HTTP have in common: ids in paths, queries and headers, refusals as responses (RFC 6750, RFC 9110).

Where an id may stand:
    "project_id"                     a parameter of the path.
    from_query("project_id")         a parameter of the query, given once.
    from_header("x-project-id")      a header, given once.
    a callable                       is told in the guard that takes it, and returns the id.

Works on an ASGI scope and waits for nothing. Design sections 5 and 8.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl

from doorward.integrations._guard import secret_in
from doorward.integrations._refusals import PATH_UNCLEAR, Kind, NotAdmitted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from doorward.core.secret import Secret
    from doorward.integrations._refusals import Refusal

__all__ = [
    "FromHeader",
    "FromQuery",
    "Response",
    "from_header",
    "from_query",
    "may_answer_websocket",
    "require_clear_path",
    "require_realm",
    "response_of",
    "secret_of",
    "values_at",
    "websocket_close",
]

_TOKEN: Final = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+")
_REALM: Final = re.compile(r"[ !#-\[\]-~]+")
_STATUS: Final = {
    Kind.UNAUTHENTICATED: 401,
    Kind.DENIED: 403,
    Kind.UNCLEAR: 400,
    Kind.UNDECIDED: 503,
    Kind.FAILED: 500,
}
# RFC 6750 names the first three, RFC 6749 the others; they are what a program looks at first.
_ERROR: Final = {
    Kind.UNAUTHENTICATED: "invalid_token",
    Kind.DENIED: "insufficient_scope",
    Kind.UNCLEAR: "invalid_request",
    Kind.UNDECIDED: "temporarily_unavailable",
    Kind.FAILED: "server_error",
}
# RFC 6455: 1008 is a policy violation, 1013 asks to try again later, 1011 is the server's own fault.
_CLOSE: Final = {Kind.UNDECIDED: 1013, Kind.FAILED: 1011}
POLICY_VIOLATION: Final = 1008


@dataclass(frozen=True, slots=True)
class FromQuery:
    """A parameter of the query."""

    name: str


@dataclass(frozen=True, slots=True)
class FromHeader:
    """A header, by its name in lower case."""

    name: str


class Response(NamedTuple):
    """A refusal in HTTP."""

    status: int
    headers: dict[str, str]
    content: dict[str, str]

    @property
    def body(self) -> bytes:
        """The content as JSON."""
        return json.dumps(self.content, separators=(",", ":")).encode()


def from_query(name: str) -> FromQuery:
    """The id stands in the query."""
    return FromQuery(name)


def from_header(name: str) -> FromHeader:
    """The id stands in a header.

    Raises:
        ValueError: no name of a header, or that of the credential.
    """
    if _TOKEN.fullmatch(name) is None or name.lower() == "authorization":
        raise ValueError(f"{name!r} is no header that holds an id")
    return FromHeader(name.lower())


def require_realm(realm: str) -> str:
    """A realm that can stand in a challenge as it is.

    Raises:
        ValueError: it cannot.
    """
    if _REALM.fullmatch(realm) is None:
        raise ValueError("realm: printable ASCII without quotes and backslashes")
    return realm


def secret_of(scope: Mapping[str, Any]) -> Secret:
    """The secret that a request presents.

    Raises:
        NotAdmitted: there is none, or several.
    """
    return secret_in(_header(scope["headers"], b"authorization"))


def values_at(place: FromQuery | FromHeader, scope: Mapping[str, Any]) -> tuple[str, ...]:
    """Every value that stands there."""
    if isinstance(place, FromHeader):
        return tuple(value.decode("latin-1") for value in _header(scope["headers"], place.name.encode()))
    # As Starlette reads it, so that a name in another encoding is the same name here and there.
    pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    return tuple(value for name, value in pairs if name == place.name)


def require_clear_path(scope: Mapping[str, Any]) -> tuple[str, ...]:
    """The segments of the path below the mount, decoded; that of "/" is one empty segment.

    Raises:
        NotAdmitted: a router or a file system might see another path in it.
    """
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in {"", "/"}:  # as Starlette takes it away
        path = path[len(root) :]
    start, *segments = (path or "/").split("/")
    # Decoded, a slash within a segment looks like one between two.
    is_hidden = b"%2f" in (scope.get("raw_path") or b"").lower()
    if start or is_hidden or not {".", ".."}.isdisjoint(segments) or "" in segments[:-1]:
        raise NotAdmitted(PATH_UNCLEAR)
    return tuple(segments)


def response_of(refusal: Refusal, realm: str) -> Response:
    """A refusal as a response: with a challenge if it is about the token, with Retry-After if a repeat may help."""
    content = {"error": _ERROR[refusal.kind], "reason": refusal.reason, "message": refusal.message}
    # A refusal depends on who asks, and on when.
    headers = {"cache-control": "no-store"}
    if refusal.permission:
        content["permission"] = refusal.permission
    if refusal.kind in {Kind.UNAUTHENTICATED, Kind.DENIED}:
        headers["www-authenticate"] = _challenge(refusal, realm)
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s)))
    return Response(_STATUS[refusal.kind], headers, content)


def may_answer_websocket(scope: Mapping[str, Any]) -> bool:
    """Whether the server sends a response of ours in place of the handshake; else all that it can say is 403."""
    return "websocket.http.response" in (scope.get("extensions") or ())


def websocket_close(refusal: Refusal) -> tuple[int, str]:
    """Code and reason with which a connection is closed."""
    return _CLOSE.get(refusal.kind, POLICY_VIOLATION), refusal.reason


def _challenge(refusal: Refusal, realm: str) -> str:
    challenge = f'Bearer realm="{realm}"'
    # RFC 6750, 3.1: who presented nothing is told nothing but what to present.
    if refusal.reason != "CREDENTIAL_MISSING":
        challenge += f', error="{_ERROR[refusal.kind]}"'
    if refusal.permission:
        challenge += f', scope="{refusal.permission}"'
    return challenge


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> tuple[bytes, ...]:
    # ASGI has names in lower case; whoever breaks that must not hide a second credential.
    return tuple(value for key, value in headers if key.lower() == name)
