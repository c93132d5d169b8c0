"""The grpc.aio listener: generic handlers over the method table, without interceptors or deserializers (design section 11).

grpc types stop here: `methods.py`, `wrapper.py` and everything below see bytes, and a `Peer` where they need one.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import grpc
import grpc.aio

from doorward_server.api.errors import Status, status_of
from doorward_server.api.methods import Method, Peer, Warm
from doorward_server.api.wrapper import answer_cold
from doorward_server.errors import Unimplemented

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterable, Iterator

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

    It is shared among the workers of one parent, which holds it for them against anybody else (`workers/port.py`).
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
        # How many calls run for each peer; those that memory answers are over at once.
        self._running: Counter[str] = Counter()
        self._warm: dict[str, tuple[Warm, Handler]] = {}
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in methods:
            if method.warm is not None:
                self._warm[method.path] = (method.warm, self._unary(method))
            elif method.is_stream:
                self._handlers[method.path] = self._stream(method)
            else:
                self._handlers[method.path] = grpc.unary_unary_rpc_method_handler(self._unary(method))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of one path; this listener comes last, so that it also answers for unknown ones."""
        path = handler_call_details.method
        warm = self._warm.get(path)
        if warm is not None:
            return cast("grpc.RpcMethodHandler[Any, Any]", _WarmCall(warm, handler_call_details.invocation_metadata))
        handler = self._handlers.get(path)
        return _unknown(path) if handler is None else handler

    def busy_peers(self) -> Collection[str]:
        """On whose connections a call runs, in gRPC's notation."""
        return self._running.keys()

    @contextlib.contextmanager
    def _runs(self, peer: Peer) -> Iterator[None]:
        self._running[peer.address] += 1
        try:
            yield
        finally:
            self._running[peer.address] -= 1
            if not self._running[peer.address]:
                del self._running[peer.address]

    def _unary(self, method: Method) -> Handler:
        path, cold, peer_of, runs = method.path, method.cold, self._peer, self._runs

        async def call(request: bytes, context: Context) -> bytes:
            peer = peer_of(context)
            with runs(peer):
                answer = await answer_cold(path, cold, request, peer)
            return answer if isinstance(answer, bytes) else await _refuse(context, answer)

        return call

    def _stream(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(_requests: object, context: Context) -> AsyncIterator[bytes]:
            peer = self._peer(context)
            with self._runs(peer):
                answer = await answer_cold(method.path, method.cold, b"", peer)
            if isinstance(answer, bytes):
                yield answer
            else:
                await _refuse(context, answer)

        return grpc.stream_stream_rpc_method_handler(call)

    def _peer(self, context: Context) -> Peer:
        metadata: Iterable[Any] = context.invocation_metadata() or ()
        on_behalf_of = next((str(value) for key, value in metadata if key == ON_BEHALF_OF_KEY), "")
        # None without a deadline, whatever the stubs say.
        left_s: float | None = context.time_remaining()
        until_ns = None if left_s is None else self._timing.now_ns() + int(left_s * 1e9)
        return Peer(_credential(metadata), context.peer(), on_behalf_of, until_ns)


class _WarmCall:
    """One call of a method that memory may answer: the handler that grpc.aio looks at, calls, and awaits for the answer.

    Made for each call, since grpc.aio has read the metadata already and would read it a second time for the context. It
    can be awaited itself, because grpc.aio asks at every call whether a handler is asynchronous: of an awaitable it sees
    that at once, of a coroutine function after a search that takes as long as a third of a check (measured).
    """

    __slots__ = ("_answer", "_cold", "_context", "_metadata", "_request", "_warm")

    # What grpc.aio reads of a handler.
    request_streaming: Final = False
    response_streaming: Final = False
    request_deserializer: Final = None
    response_serializer: Final = None
    unary_unary = property(lambda self: self)

    def __init__(self, method: tuple[Warm, Handler], metadata: Iterable[Any] | None) -> None:
        self._warm, self._cold = method
        self._metadata = metadata

    def __call__(self, request: bytes, context: Context) -> _WarmCall:
        """Answers from memory if it can."""
        self._request, self._context = request, context
        try:
            self._answer = self._warm(request, _credential(self._metadata))
        except Exception:  # noqa: BLE001 - a fault of ours; the cold path meets it too and answers as for every other
            self._answer = None
        return self

    def __await__(self) -> Generator[Any, None, bytes]:
        answer = self._answer
        if answer is None:
            return (yield from self._cold(self._request, self._context).__await__())
        return answer if isinstance(answer, bytes) else (yield from _refuse(self._context, answer).__await__())


def _credential(metadata: Iterable[Any] | None) -> str | None:
    """The value of `authorization`; of several, all, so that they prove nobody."""
    found: str | None = None
    for key, value in metadata or ():
        if key == CREDENTIAL_KEY:
            text = value if isinstance(value, str) else value.decode("latin-1")
            found = text if found is None else f"{found},{text}"
    return found


async def _refuse(context: Context, status: Status) -> NoReturn:
    """Ends the call with `status` and nothing before it: what comes behind headers, no client's retry policy repeats.

    A handler that sets the code and returns sends headers and an empty message first (seen: grpcio 1.78).
    """
    await context.abort(grpc.StatusCode[status.code], status.message, ((DETAILS_KEY, status.details),))


def _unknown(path: str) -> grpc.RpcMethodHandler[Any, Any]:
    """Answers UNIMPLEMENTED to any kind of call, reading nothing of it."""

    async def refuse(_requests: object, context: Context) -> NoReturn:
        shown = path[:200]
        refused = Unimplemented("METHOD_UNKNOWN", f"there is no method {shown!r} here", metadata={"method": shown})
        await _refuse(context, status_of(refused))

    return grpc.stream_stream_rpc_method_handler(refuse)
