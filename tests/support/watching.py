"""A hand-written watcher at the wire: it says what a test tells it to say, and acknowledges only when it is told.

with Watching(stubs) as watcher:            # has said hello, and taken start and catalog
    token = watcher.resolved(secret)
    watcher.granted()
    evict = watcher.next().evict
    watcher.acknowledge()
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, Self

import grpc

from doorward.v1.authorizer_pb2 import WatchKey, WatchRequest, WatchResponse
from tests.support.server import PATIENCE_S
from tests.support.wire import refusal_of

if TYPE_CHECKING:
    from tests.support.server import Stubs
    from tests.support.wire import Metadata, Refusal


class Watching:
    """One stream. What comes is taken by a thread; `next` hands it out in order."""

    def __init__(self, stubs: Stubs, metadata: Metadata | None = None, *, opens: bool = True) -> None:
        self._sent: queue.SimpleQueue[WatchRequest | None] = queue.SimpleQueue()
        self._received: queue.SimpleQueue[WatchResponse | grpc.RpcError | None] = queue.SimpleQueue()
        self._call: Any = stubs.authorizer.Watch(
            iter(self._sent.get, None), metadata=stubs.caller if metadata is None else metadata
        )
        self._thread = threading.Thread(target=self._take, name="watcher")
        self._thread.start()
        self._asks = self._ids = 0
        # Of the newest message that was handed out.
        self.position, self.sequence = "", 0
        # Everything that was handed out, as it came.
        self.seen: list[bytes] = []
        self.start = WatchResponse.Start()
        self.catalog = WatchResponse.Catalog()
        if opens:
            self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def open(self) -> None:
        """Says hello and takes what comes first."""
        self.send(hello=WatchRequest.Hello(agent="a test"))
        self.start = self.expect("start").start
        self.catalog = self.expect("catalog").catalog
        self.acknowledge()

    def close(self) -> None:
        """Ends the stream without a word."""
        self._call.cancel()
        self._sent.put(None)
        self._thread.join(PATIENCE_S)

    def send(self, **body: Any) -> None:
        """Sends one message."""
        self.send_as(WatchRequest(**body))

    def send_as(self, message: WatchRequest) -> None:
        """Sends this very message."""
        self._sent.put(message)

    def next(self) -> WatchResponse:
        """The next message, unacknowledged."""
        received = self._received.get(timeout=PATIENCE_S)
        if isinstance(received, grpc.RpcError):
            raise received
        assert received is not None, "the stream ended well"
        assert received.sequence == self.sequence + 1
        self.position, self.sequence = received.position, received.sequence
        self.seen.append(received.SerializeToString())
        return received

    def expect(self, what: str) -> WatchResponse:
        """The next message, which is one of these."""
        received = self.next()
        assert received.WhichOneof("body") == what, received
        return received

    def says_nothing(self) -> bool:
        """Whether nothing more has come so far."""
        return self._received.empty()

    def ended(self) -> Refusal | None:
        """The status with which the stream ends, whatever came before; None: well."""
        while True:
            received = self._received.get(timeout=PATIENCE_S)
            if received is None:
                return None
            if isinstance(received, grpc.RpcError):
                return refusal_of(received)

    def acknowledge(self, position: str = "") -> None:
        """Acknowledges the newest message that was handed out, and with it those before."""
        self.send(ack=WatchRequest.Ack(position=position or self.position))

    def ask(self) -> int:
        """Asks for a sub-lease."""
        self._asks += 1
        self.send(ask=WatchRequest.Ask(ask=self._asks))
        return self._asks

    def granted(self) -> WatchResponse.LeaseGrant:
        """Asks, and takes the grant as the next message."""
        ask = self.ask()
        grant = self.expect("lease_grant").lease_grant
        assert grant.ask == ask
        return grant

    def resolve(self, secret: str) -> int:
        """Asks for the token of a secret."""
        self._ids += 1
        self.send(resolve=WatchRequest.Resolve(id=self._ids, secret=secret))
        return self._ids

    def resolve_project(self, project_id: str) -> int:
        """Asks for a project's account."""
        self._ids += 1
        self.send(resolve_project=WatchRequest.ResolveProject(id=self._ids, project_id=project_id))
        return self._ids

    def resolved(self, secret: str) -> WatchResponse.Snapshot:
        """The snapshot of a secret as the next message."""
        return self._answer_to(self.resolve(secret))

    def resolved_project(self, project_id: str) -> WatchResponse.Snapshot:
        """The snapshot of a project as the next message."""
        return self._answer_to(self.resolve_project(project_id))

    def forget(self, *keys: WatchKey, sequence: int | None = None) -> None:
        """Tells that these are dropped, everything that was handed out being taken."""
        self.send(forget=WatchRequest.Forget(keys=keys, sequence=self.sequence if sequence is None else sequence))

    def goodbye(self) -> None:
        """Says goodbye; the stream ends well."""
        self.send(goodbye=WatchRequest.Goodbye(session_id=self.start.session_id))
        assert self.ended() is None

    def refused(self, **body: Any) -> Refusal:
        """What a message ends the stream with."""
        self.send(**body)
        refusal = self.ended()
        assert refusal is not None
        return refusal

    def _answer_to(self, request_id: int) -> WatchResponse.Snapshot:
        snapshot = self.expect("snapshot").snapshot
        assert snapshot.id == request_id
        return snapshot

    def _take(self) -> None:
        try:
            for received in self._call:
                self._received.put(received)
        except grpc.RpcError as error:
            self._received.put(error)
        else:
            self._received.put(None)


def keys_of(evict: WatchResponse.Evict) -> set[str]:
    """The keys of an evict, as `kind:id`."""
    named = [(key.WhichOneof("key"), key) for key in evict.keys]
    return {f"{field.removesuffix('_id')}:{getattr(key, field)}" for field, key in named if field is not None}


def opened_refused(stubs: Stubs, metadata: Metadata | None = None) -> Refusal:
    """What a stream is refused with when it says hello."""
    watcher = Watching(stubs, metadata, opens=False)
    try:
        refusal = watcher.refused(hello=WatchRequest.Hello())
    finally:
        watcher.close()
    return refusal
