"""The grpc.aio listener: generic handlers over the method table, without interceptors or deserializers (design section 11).

grpc types stop here: `methods.py`, `wrapper.py` and everything below see bytes, and a `Peer` where they need one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import grpc
import grpc.aio

from doorward_server import metrics, tracing
from doorward_server.api.bounds import Room
from doorward_server.api.errors import Status, status_of
from doorward_server.api.methods import CallerGone, Cold, Method, Peer, StreamEnds, Streaming, Warm, host_of
from doorward_server.api.wrapper import answer_cold, answer_stream, shutting_down
from doorward_server.credentials.certificates import operator_in
from doorward_server.errors import Unimplemented

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterable, Iterator

    from doorward_server.api.refused import RefusedCalls
    from doorward_server.credentials.certificates import CertifiedOperator
    from doorward_server.metrics import RpcCounts
    from doorward_server.replica.timing import Timing

    Context = grpc.aio.ServicerContext[bytes, bytes]
    Handler = Callable[[bytes, Context], Awaitable[bytes]]
    Refusing = Callable[[Context, Status], Coroutine[Any, Any, NoReturn]]
    _WarmMethod = tuple[Warm, Handler, Refusing, RpcCounts]

__all__ = ["DoorwardHandlers", "channel_options", "refuse_with"]

CREDENTIAL_KEY: Final = "authorization"
# Of a connection's auth context.
CERTIFICATE_KEY: Final = "x509_pem_cert"
DETAILS_KEY: Final = "grpc-status-details-bin"
ON_BEHALF_OF_KEY: Final = "on-behalf-of"


def channel_options(
    *,
    max_message_bytes: int,
    max_metadata_bytes: int,
    max_streams: int = 1000,
    shares_port: bool = False,
    connection_age_ms: int = 30 * 60_000,
    connection_grace_ms: int = 35 * 60_000,
) -> list[tuple[str, int]]:
    """The bounds of a listener. One process owns its port: with SO_REUSEPORT a second one would take half of the calls.

    It is shared among the workers of one parent, which holds it for them against anybody else (`workers/port.py`). At its
    age a connection takes no further call, and when the grace is over too, it is closed: so that calls spread over replicas
    that were added, and that one which never sends its message keeps its place no longer, for grpcio starts no handler that
    could end it. The grace outlasts every wait for a hold, and every session of a watcher (`replica/watchers.py`).
    """
    return [
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Between the two gRPC would throw dice.
        ("grpc.max_metadata_size", max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", max_metadata_bytes),
        ("grpc.max_concurrent_streams", max_streams),
        # Whoever pings more often, three times, loses the connection.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A caller that is gone without a word keeps the places of its calls no longer than this.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_connection_age_ms", connection_age_ms),
        ("grpc.max_connection_age_grace_ms", connection_grace_ms),
    ]


class DoorwardHandlers(grpc.GenericRpcHandler):
    """Serves the method table, and answers every path that it does not know."""

    def __init__(
        self,
        methods: Iterable[Method],
        timing: Timing,
        refused: RefusedCalls,
        *,
        most_calls: int = 1000,
        asks_certificates: bool = False,
    ) -> None:
        """`most_calls` may wait at once, streams among them.

        `asks_certificates`: clients have one, which may stand for an operator; else no call pays for looking.
        """
        self._room = Room(most_calls, "calls")
        self._timing = timing
        self._asks_certificates = asks_certificates
        self._warm_call = _CertifiedWarmCall if asks_certificates else _WarmCall
        self._refused = refused
        # How many calls run for each peer; those that memory answers are over at once.
        self._running: Counter[str] = Counter()
        self._warm: dict[str, _WarmMethod] = {}
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._streams: set[_Stream] = set()
        self._is_stopping = False
        for method in methods:
            path = method.path
            if method.warm is not None:
                assert method.cold is not None  # noqa: S101 - what memory cannot answer must be answered all the same
                counts = metrics.RPCS.of(path)
                self._warm[path] = (method.warm, self._unary(path, method.cold), self._refusing(path), counts)
            elif method.stream is not None:
                self._handlers[path] = self._stream(path, method.stream)
            elif method.cold is not None:
                self._handlers[path] = grpc.unary_unary_rpc_method_handler(self._unary(path, method.cold))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of one path; this listener comes last, so that it also answers for unknown ones."""
        path = handler_call_details.method
        warm = self._warm.get(path)
        if warm is not None:
            call = self._warm_call(warm, handler_call_details.invocation_metadata)
            return cast("grpc.RpcMethodHandler[Any, Any]", call)
        handler = self._handlers.get(path)
        return _unknown(path) if handler is None else handler

    def busy_peers(self) -> Collection[str]:
        """On whose connections a call runs, in gRPC's notation."""
        return self._running.keys()

    @property
    def running(self) -> dict[str, int]:
        """How many calls wait for something, and how many of them are streams."""
        return {"rpcs": self._room.in_use, "streams": len(self._streams)}

    @contextlib.contextmanager
    def _runs(self, peer: Peer, counts: RpcCounts) -> Iterator[None]:
        self._running[peer.address] += 1
        began_ns = self._timing.now_ns()
        try:
            with self._room.taken():
                yield
        except (asyncio.CancelledError, CallerGone):
            counts.unanswered["CANCELLED"] += 1
            raise
        finally:
            counts.seconds.observe((self._timing.now_ns() - began_ns) / 1e9)
            self._running[peer.address] -= 1
            if not self._running[peer.address]:
                del self._running[peer.address]

    def end_streams(self) -> None:
        """Reads no stream any further, now or later; each ends once it has answered what it had read.

        But for those that are kept: their own part ends them.
        """
        self._is_stopping = True
        for stream in tuple(self._streams):
            if not stream.is_kept:
                stream.end(shutting_down())

    @contextlib.contextmanager
    def _open(self, stream: _Stream) -> Iterator[None]:
        self._streams.add(stream)
        try:
            if self._is_stopping:
                stream.end(shutting_down())
            yield
        finally:
            self._streams.discard(stream)

    def _unary(self, path: str, cold: Cold) -> Handler:
        peer_of, runs, refuse, room = self._peer, self._runs, self._refusing(path), self._room
        counts = metrics.RPCS.of(path)

        async def call(request: bytes, context: Context) -> bytes:
            if room.is_full:
                await refuse(context, room.refusal())
            peer = peer_of(context)
            with tracing.call_span(path, context.invocation_metadata) as span, runs(peer, counts):
                answer = await answer_cold(path, cold, request, peer)
                span.ended(*_end_of(answer))
            if not isinstance(answer, bytes):
                await refuse(context, answer)
            counts.waited += 1
            return answer

        return call

    def _stream(self, path: str, answer: Streaming) -> grpc.RpcMethodHandler[Any, Any]:
        refuse, counts = self._refusing(path), metrics.RPCS.of(path)

        async def call(_requests: object, context: Context) -> None:
            if self._room.is_full:
                await refuse(context, self._room.refusal())
            stream = _Stream(context, self._peer(context))
            with (
                contextlib.suppress(CallerGone),
                tracing.call_span(path, context.invocation_metadata) as span,
                self._runs(stream.peer, counts),
                self._open(stream),
            ):
                status = await answer_stream(path, stream, answer)
                span.ended(*_end_of(status))
                if status is not None:
                    await refuse(context, status)
                counts.waited += 1

        return grpc.stream_stream_rpc_method_handler(call)

    def _refusing(self, path: str) -> Refusing:
        take_note, counts = self._refused.take_note, metrics.RPCS.of(path)

        async def refuse(context: Context, status: Status) -> NoReturn:
            counts.unanswered[status.code] += 1
            take_note(path, status, host_of(context.peer()))
            await refuse_with(context, status)

        return refuse

    def _peer(self, context: Context) -> Peer:
        metadata: Iterable[Any] = context.invocation_metadata() or ()
        on_behalf_of = next((str(value) for key, value in metadata if key == ON_BEHALF_OF_KEY), "")
        # None without a deadline, whatever the stubs say.
        left_s: float | None = context.time_remaining()
        until_ns = None if left_s is None else self._timing.now_ns() + int(left_s * 1e9)
        credential: str | CertifiedOperator | None = _credential(metadata)
        if credential is None and self._asks_certificates:
            credential = _certified(context)
        return Peer(credential, context.peer(), on_behalf_of, until_ns)


class _Stream:
    """A `Stream` of grpc.aio's."""

    __slots__ = ("_context", "_ends", "_reading", "is_kept", "peer")

    def __init__(self, context: Context, peer: Peer) -> None:
        self.peer = peer
        self._context = context
        self._ends: Status | None = None
        self._reading: asyncio.Timeout | None = None
        self.is_kept = False

    async def read(self) -> bytes | None:
        """The next message."""
        if self._ends is not None:
            raise StreamEnds(self._ends)
        try:
            # Without end, until `end` moves it to now.
            async with asyncio.timeout(None) as self._reading:
                message: Any = await self._context.read()
        except TimeoutError:
            assert self._ends is not None  # noqa: S101 - nobody else moves it
            raise StreamEnds(self._ends) from None
        except grpc.aio.BaseError:
            raise CallerGone from None
        finally:
            self._reading = None
        return None if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        """Hands a message to the transport, which takes no more than fits the caller's window (seen: grpcio 1.78)."""
        try:
            await self._context.write(message)
        except grpc.aio.BaseError:
            raise CallerGone from None

    def keep(self) -> None:
        """`end_streams` leaves it alone."""
        self.is_kept = True

    def end(self, status: Status) -> None:
        """Reads no further."""
        if self._ends is None:
            self._ends = status
            if self._reading is not None:
                self._reading.reschedule(0)


class _WarmCall:
    """One call of a method that memory may answer: the handler that grpc.aio looks at, calls, and awaits for the answer.

    Made for each call, since grpc.aio has read the metadata already and would read it a second time for the context. It
    can be awaited itself, because grpc.aio asks at every call whether a handler is asynchronous: of an awaitable it sees
    that at once, of a coroutine function after a search that takes as long as a third of a check (measured).
    """

    __slots__ = ("_answer", "_cold", "_context", "_counts", "_metadata", "_refuse", "_request", "_warm")

    # What grpc.aio reads of a handler.
    request_streaming: Final = False
    response_streaming: Final = False
    request_deserializer: Final = None
    response_serializer: Final = None
    unary_unary = property(lambda self: self)

    def __init__(self, method: _WarmMethod, metadata: Iterable[Any] | None) -> None:
        self._warm, self._cold, self._refuse, self._counts = method
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
        if isinstance(answer, bytes):
            self._counts.from_memory += 1
            return answer
        return (yield from self._refuse(self._context, answer).__await__())


class _CertifiedWarmCall(_WarmCall):
    """The same where a certificate may stand for the header: then the cold path looks at it."""

    __slots__ = ()

    def __call__(self, request: bytes, context: Context) -> _WarmCall:
        """Answers from memory if it can and there is a header."""
        if _credential(self._metadata) is not None:
            return super().__call__(request, context)
        self._request, self._context, self._answer = request, context, None
        return self


def _certified(context: Context) -> CertifiedOperator | None:
    """Whom the certificate of the connection stands for. It was verified when the connection was made."""
    (certificate,) = context.auth_context().get(CERTIFICATE_KEY) or (None,)
    return None if certificate is None else operator_in(certificate)


def _end_of(answer: bytes | Status | None) -> tuple[str, str]:
    """How a call ended: its code, and why not well."""
    return (answer.code, answer.reason) if isinstance(answer, Status) else ("OK", "")


def _credential(metadata: Iterable[Any] | None) -> str | None:
    """The value of `authorization`; of several, all, so that they prove nobody."""
    found: str | None = None
    for key, value in metadata or ():
        if key == CREDENTIAL_KEY:
            text = value if isinstance(value, str) else value.decode("latin-1")
            found = text if found is None else f"{found},{text}"
    return found


async def refuse_with(context: Context, status: Status) -> NoReturn:
    """Ends the call with `status` and nothing before it: what comes behind headers, no client's retry policy repeats.

    A handler that sets the code and returns sends headers and an empty message first (seen: grpcio 1.78).
    """
    await context.abort(grpc.StatusCode[status.code], status.message, ((DETAILS_KEY, status.details),))


def _unknown(path: str) -> grpc.RpcMethodHandler[Any, Any]:
    """Answers UNIMPLEMENTED to any kind of call, reading nothing of it."""

    async def refuse(_requests: object, context: Context) -> NoReturn:
        # Under one name: whoever calls may think of any number.
        metrics.RPCS.of("unknown").unanswered["UNIMPLEMENTED"] += 1
        shown = path[:200]
        refused = Unimplemented("METHOD_UNKNOWN", f"there is no method {shown!r} here", metadata={"method": shown})
        await refuse_with(context, status_of(refused))

    return grpc.stream_stream_rpc_method_handler(refuse)
