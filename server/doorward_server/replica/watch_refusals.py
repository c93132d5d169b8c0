"""Why a watcher is refused, or its session ended (contract, Watch)."""

from __future__ import annotations

from doorward_server.errors import Exhausted, InvalidArgument, Unavailable, Violation

__all__ = [
    "has_lasted",
    "holds_too_much",
    "is_too_large",
    "no_hello",
    "no_lease",
    "registers_anew",
    "silent",
    "takes_too_slowly",
    "too_many",
    "wrong_field",
]


def too_many(most: int) -> Exhausted:
    """Of watchers."""
    text = f"this replica has as many watchers as it may, {most}; open the stream at another one"
    return Exhausted("TOO_MANY_REQUESTS", text)


def holds_too_much() -> Exhausted:
    """Keys."""
    return Exhausted("TOO_MANY_REQUESTS", "this watcher holds as much as it may; let it forget something first")


def is_too_large() -> Exhausted:
    """A token that no message has room for."""
    return Exhausted("TOO_MANY_REQUESTS", "the token names more projects than one message may; ask Check about it")


def takes_too_slowly() -> Exhausted:
    """Too much waits for it."""
    return Exhausted("TOO_MANY_REQUESTS", "this watcher takes its messages too slowly; it may open another stream")


def silent() -> Exhausted:
    """It does not acknowledge."""
    text = "this watcher has left a message unacknowledged for too long; it may open another stream"
    return Exhausted("TOO_MANY_REQUESTS", text)


def no_lease() -> Unavailable:
    """Nothing can be looked up."""
    return Unavailable("NO_LEASE", "this replica holds no lease at present; try another one, or again")


def registers_anew() -> Unavailable:
    """Whatever was held here is void."""
    return Unavailable("NO_LEASE", "this replica had to register anew; open a stream to another one, or again")


def has_lasted() -> Unavailable:
    """The connection under it would be cut off before long."""
    return Unavailable("SHUTTING_DOWN", "this session has lasted as long as one may; open another stream")


def no_hello() -> InvalidArgument:
    """It keeps a place and says nothing."""
    return wrong_field("hello", "is required within a hold: it is the first message of a session", "FIELD_REQUIRED")


def wrong_field(field: str, text: str, reason: str) -> InvalidArgument:
    """What it said is none of this session's."""
    return InvalidArgument.of((Violation(field, text, reason),))
