"""Around every cold call: parse, authenticate, call, translate (design sections 3 and 11). The outermost Python of ours.

Whatever happens in a use case leaves here as response bytes or as a `Status`. A fault of ours becomes INTERNAL with a
fixed sentence and a request id: grpcio would send the exception's text to the caller.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, TypeVar

import structlog
from google.protobuf.message import DecodeError, Message

from doorward_server import errors
from doorward_server.api.access import TABLE, Access, is_admitted
from doorward_server.api.errors import Status, internal, status_of
from doorward_server.api.methods import Call, CallerGone, Cold, Method, Peer, StreamEnds
from doorward_server.api.refused import note_circumstances
from doorward_server.errors import InvalidArgument, Refused
from doorward_server.service.delegation import not_permitted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward_server.api.methods import Stream, Streaming
    from doorward_server.model import Caller
    from doorward_server.service.callers import Callers

__all__ = ["Binder", "answer_cold", "answer_stream", "parsed", "require_admitted", "shutting_down", "translated"]

log = structlog.get_logger()
Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
R = TypeVar("R")


def parsed(message_type: type[Q], request: bytes) -> Q:
    """The request as a message.

    Raises:
        InvalidArgument: MALFORMED_MESSAGE.
    """
    try:
        return message_type.FromString(request)
    except DecodeError:
        name = message_type.DESCRIPTOR.full_name
        raise InvalidArgument("MALFORMED_MESSAGE", f"the request is not a valid {name} message") from None


def _if_readable(message_type: type[Q], request: bytes) -> Q | None:
    try:
        return message_type.FromString(request)
    except DecodeError:
        return None


def require_admitted(path: str, access: Access, caller: Caller) -> None:
    """Looks `caller` up in the access table's row.

    Raises:
        PermissionDenied: CALLER_NOT_PERMITTED.
    """
    if not is_admitted(access, caller):
        raise not_permitted(caller, path)


class Binder:
    """Makes the methods of the table from handlers of messages."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    def method(self, path: str, request_type: type[Q], handler: Callable[[Q, Call], Awaitable[A]]) -> Method:
        """An RPC that `handler` answers, behind authentication and the access table."""
        access = TABLE[path]

        async def cold(request: bytes, peer: Peer) -> bytes:
            caller: Caller | None = None
            try:
                caller = await self._admit(path, access, peer)
                response = await handler(parsed(request_type, request), Call(caller, peer, path))
            except Refused as refused:
                note_circumstances(refused, path, caller, _if_readable(request_type, request))
                raise
            return response.SerializeToString()

        return Method(path, access, None, cold)

    async def _admit(self, path: str, access: Access, peer: Peer) -> Caller | None:
        if access.credential == "none":
            return None
        caller = await self._callers.authenticate_now(peer.credential, path, access.needs_permission)
        require_admitted(path, access, caller)
        return caller


async def answer_cold(path: str, cold: Cold, request: bytes, peer: Peer) -> bytes | Status:
    """What `cold` answers, or the status of what it raised; raises as `translated` does."""
    return await translated(path, cold(request, peer))


async def answer_stream(path: str, stream: Stream, answer: Streaming) -> Status | None:
    """How the stream ends once `answer` has answered it; None: well. Raises as `translated` does."""
    return await translated(path, answer(stream))


def shutting_down() -> Status:
    """This server goes, and others stay."""
    return status_of(errors.shutting_down())


async def translated(path: str, work: Awaitable[R]) -> R | Status:
    """What `work` comes to, or the status of what it raised.

    Raises:
        CancelledError, CallerGone: the caller went away; nothing needs to be answered.
    """
    try:
        return await work
    except Refused as refused:
        return status_of(refused)
    except StreamEnds as ends:
        return ends.status
    except CallerGone:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Something we waited for was cancelled, not this call: grpcio would leave the caller hanging to its deadline.
        return shutting_down()
    except Exception:
        request_id = uuid.uuid4().hex
        log.exception("rpc_failed", rpc=path, request_id=request_id)
        return internal(request_id)
