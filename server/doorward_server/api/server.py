"""The grpc.aio listener: generic handlers over the method table, without interceptors or deserializers (design section 11).

grpc types stop here: `methods.py`, `wrapper.py` and everything below see bytes, and a `Peer` where they need one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from doorward_server.api.errors import Status, status_of
from doorward_server.api.methods import Method, Peer
from doorward_server.api.wrapper import answer_cold
from doorward_server.errors import Unimplemented
from doorward_server.telemetry import redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from doorward_server.replica.timing import Timing

    Context = grpc.aio.ServicerContext[bytes, bytes]
    Handler = Callable[[bytes, Context], Awaitable[bytes]]

__all__ = ["DoorwardHandlers", "channel_options"]

CREDENTIAL_KEY: Final = "authorization"
DETAILS_KEY: Final = "grpc-status-details-bin"
ON_BEHALF_OF_KEY: Final = "on-behalf-of"


def channel_options(
    *, max_message_bytes: int, max_metadata_bytes: int, shares_port: bool = False
) -> list[tuple[str, int]]:
    """The bounds of a listener. One process owns its port: with SO_REUSEPORT a second one would take half of the calls.

    It is shared among the workers of one parent, which holds it for them against anybody else (`port.py`).
    """
    return [
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", max_metadata_bytes * 2),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


class DoorwardHandlers(grpc.GenericRpcHandler):
    """Serves the method table, and answers every path that it does not know."""

    def __init__(self, methods: Iterable[Method], timing: Timing) -> None:
        self._timing = timing
        self._handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]] = {
            method.path: self._stream(method)
            if method.is_stream
            else grpc.unary_unary_rpc_method_handler(self._unary(method))
            for method in methods
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of one path; this listener comes last, so that it also answers for unknown ones."""
        handler = self._handlers.get(handler_call_details.method)
        return _unknown(handler_call_details.method) if handler is None else handler

    def _unary(self, method: Method) -> Handler:
        path, _, warm, cold, _ = method
        peer_of = self._peer

        async def call_cold(request: bytes, context: Context) -> bytes:
            answer = await answer_cold(path, cold, request, peer_of(context))
            return answer if isinstance(answer, bytes) else _refuse(context, answer)

        if warm is None:
            return call_cold

        async def call(request: bytes, context: Context) -> bytes:
            answer = warm(request, _credential(context.invocation_metadata()))
            if answer is None:
                return await call_cold(request, context)
            return answer if isinstance(answer, bytes) else _refuse(context, answer)

        return call

    def _stream(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(_requests: object, context: Context) -> AsyncIterator[bytes]:
            answer = await answer_cold(method.path, method.cold, b"", self._peer(context))
            if isinstance(answer, bytes):
                yield answer
            else:
                _refuse(context, answer)

        return grpc.stream_stream_rpc_method_handler(call)

    def _peer(self, context: Context) -> Peer:
        metadata: Iterable[Any] = context.invocation_metadata() or ()
        on_behalf_of = next((str(value) for key, value in metadata if key == ON_BEHALF_OF_KEY), "")
        # None without a deadline, whatever the stubs say.
        left_s: float | None = context.time_remaining()
        until_ns = None if left_s is None else self._timing.now_ns() + int(left_s * 1e9)
        return Peer(_credential(metadata), context.peer(), on_behalf_of, until_ns)


def _credential(metadata: Iterable[Any] | None) -> str | None:
    """The value of `authorization`; of several, all, so that they prove nobody."""
    found: str | None = None
    for key, value in metadata or ():
        if key == CREDENTIAL_KEY:
            text = value if isinstance(value, str) else value.decode("latin-1")
            found = text if found is None else f"{found},{text}"
    return found


def _refuse(context: Context, status: Status) -> bytes:
    context.set_code(grpc.StatusCode[status.code])
    context.set_details(status.message)
    context.set_trailing_metadata(((DETAILS_KEY, status.details),))
    # grpcio sends no message when the code is not OK.
    return b""


def _unknown(path: str) -> grpc.RpcMethodHandler[Any, Any]:
    """Answers UNIMPLEMENTED to any kind of call, reading nothing of it."""

    async def refuse(_requests: object, context: Context) -> AsyncIterator[bytes]:
        shown = redact(path[:200])
        refused = Unimplemented("METHOD_UNKNOWN", f"there is no method {shown!r} here", metadata={"method": shown})
        _refuse(context, status_of(refused))
        nothing: tuple[bytes, ...] = ()
        for message in nothing:
            yield message

    return grpc.stream_stream_rpc_method_handler(refuse)
