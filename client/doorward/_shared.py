"""What both dialects do alike: a call as a value, and what its answer is for who called; arguments as the contract has them.

Every RPC of the contract is one function that makes a `Call` from arguments (`_token_admin.py` and its like); `aio.py` and
`threads.py` only make them: each turns such a function into a method of its own kind. Design section 8.
"""

from __future__ import annotations

import inspect
import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from google.protobuf import duration_pb2, timestamp_pb2

from doorward.v1 import account_admin_pb2, authorizer_pb2, system_admin_pb2, token_admin_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime, timedelta

    from google.protobuf.message import Message


__all__ = [
    "AUTHORIZER",
    "Call",
    "call",
    "call_to",
    "duration_of",
    "named_like",
    "request_id_of",
    "require_process",
    "timestamp_of",
]

A = TypeVar("A")
R = TypeVar("R", bound="Message")

AUTHORIZER: Final = "doorward.v1.Authorizer"
_MODULES: Final = (account_admin_pb2, authorizer_pb2, system_admin_pb2, token_admin_pb2)
# Every RPC has a request type of its own, so that the request says which RPC it is.
_PATHS: Final[Mapping[str, str]] = {
    method.input_type.full_name: f"/{service.full_name}/{method.name}"
    for module in _MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


@dataclass(frozen=True, slots=True)
class Call(Generic[A]):
    """One unary call: where to, with what, for how long, and what its answer is for whoever called.

    `request` may hold a secret, and messages print their fields: it is in no repr.
    """

    path: str
    request: Message = field(repr=False)
    answer_type: type[Message]
    timeout: float | None
    shaped: Callable[[Any], A] = field(repr=False)


def call(request: Message, answer_type: type[R], timeout: float | None) -> Call[R]:
    """A call whose answer is the message itself."""
    return call_to(request, answer_type, timeout, _as_it_is)


def call_to(request: Message, answer_type: type[R], timeout: float | None, shaped: Callable[[R], A]) -> Call[A]:
    """A call whose answer is what `shaped` makes of the message."""
    return Call(_PATHS[request.DESCRIPTOR.full_name], request, answer_type, timeout, shaped)


def require_process(process_id: int) -> None:
    """Refuses what would hang: gRPC's threads and connections stay in the parent when a process forks.

    Raises:
        RuntimeError: this is another process than the one that opened the connection.
    """
    if os.getpid() != process_id:
        raise RuntimeError("this client was used before fork(); a child process needs a client of its own")


def request_id_of(given: str | None, validate_only: bool = False) -> str:
    """A random one where none is given, so that gRPC may send the call again: both attempts make the same secret."""
    if given is not None:
        return given
    return "" if validate_only else str(uuid.uuid4())


def timestamp_of(when: datetime | None) -> timestamp_pb2.Timestamp | None:
    """A time for the contract.

    Raises:
        ValueError: it has no time zone, so that nobody knows which time it is.
    """
    if when is None:
        return None
    if when.tzinfo is None:
        raise ValueError("a time needs a time zone, for example datetime.now(timezone.utc)")
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(when)
    return stamp


def duration_of(span: timedelta | None) -> duration_pb2.Duration | None:
    """A span for the contract."""
    if span is None:
        return None
    duration = duration_pb2.Duration()
    duration.FromTimedelta(span)
    return duration


def named_like(method: Any, make: Callable[..., object]) -> None:
    """Gives a method the name, the documentation and (after `self`) the parameters of the function that makes its calls."""
    signature = inspect.signature(make)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__ = method.__qualname__ = make.__name__
    method.__doc__ = make.__doc__
    method.__signature__ = signature.replace(
        parameters=[own, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )


def _as_it_is(answer: A) -> A:
    return answer
