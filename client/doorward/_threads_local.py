"""The stream of a `LocalAuthorizer` of threads, and how its checks wait: `_watch_shared.py`'s rules under one lock.

One thread opens the stream, reads it, and opens another when it ends; gRPC's own thread writes what is queued, in order,
and asks for sub-leases in time. A warm check takes no lock. Whatever ends a stream ends its session first. Design sections
7 ("Watchers") and 8.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import grpc

from doorward._watch_shared import FAREWELL_S, MOST_WAITING, WATCH, Backoff, StreamStalled, Watching
from doorward._watch_waiting import Deciding, no_lease_in_time
from doorward._watch_wire import decoded, encoded
from doorward.core.watch_messages import Goodbye
from doorward.core.watch_session import WatchViolation
from doorward.core.watcher import SessionEnded
from doorward.errors import ClientClosed, DoorwardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from doorward._caller import Caller
    from doorward._credentials import Metadata
    from doorward._threads_client import Connection
    from doorward._watch_shared import Asked
    from doorward.core.watch_messages import FromReplica, ToReplica
    from doorward.core.watch_session import Session
    from doorward.core.watch_tables import WatchBounds
    from doorward.decisions import Decision

__all__ = ["Feed"]

log: Final = logging.getLogger("doorward")


class Feed:
    """Keeps one session at a time open, from `begin` to `close`."""

    def __init__(self, connection: Connection, caller: Caller[Metadata], bounds: WatchBounds | None) -> None:
        self.watching = Watching(bounds)
        self.is_closed = False
        # Around everything that `Watching` wants one thread for; told whenever something is queued, or is over.
        self.changed = threading.Condition()
        self._connection = connection
        self._caller = caller
        self._process_id = 0
        self._thread: threading.Thread | None = None
        self._call: Any = None
        self._ended = threading.Event()
        self._logged = ""

    def begin(self) -> None:
        """Opens the first stream, if that was not done yet.

        Raises:
            ClientClosed: it was closed.
            RuntimeError: another process began it.
        """
        if self.is_closed:
            raise ClientClosed
        self._connection.open()
        if self._thread is not None:
            return
        with self.changed:
            if self.is_closed:
                raise ClientClosed
            if self._thread is None:
                self._process_id = os.getpid()
                self._thread = threading.Thread(target=self._run, name="doorward watch", daemon=True)
                self._thread.start()

    def decide(self, asked: Iterable[tuple[int, Asked]], seconds: float) -> dict[int, Decision]:
        """Decides what can be decided here within that time, by its place; what is missing is left to the server.

        Raises:
            ClientClosed: it was closed meanwhile.
        """
        watching, listed = self.watching, list(asked)
        until_ns = watching.now_ns() + int(seconds * 1e9)
        deciding = Deciding(watching, listed)
        with self.changed:
            if watching.waiting + len(listed) > MOST_WAITING:
                return deciding.decided
            watching.waiting += len(listed)
        try:
            while True:
                gate = threading.Lock()
                gate.acquire()
                with self.changed:
                    round_ = deciding.step(gate.release)
                    self.changed.notify_all()
                if watching.is_stalled:
                    self._cancel()
                if round_ is None:
                    return deciding.decided
                if not gate.acquire(timeout=max(0.0, (until_ns - watching.now_ns()) / 1e9)):
                    with self.changed:
                        watching.leave(round_)
                    return deciding.decided
                if self.is_closed:
                    raise ClientClosed
        finally:
            with self.changed:
                watching.waiting -= len(listed)

    def wait_ready(self, left: Callable[[], float]) -> None:
        """Returns once there is a sub-lease.

        Raises:
            ClientClosed, DeadlineExceeded.
        """
        watching = self.watching
        while True:
            gate = threading.Lock()
            gate.acquire()
            with self.changed:
                if watching.holds_lease:
                    return
                if self.is_closed:
                    raise ClientClosed
                wake = gate.release
                watching.await_lease(wake)
            try:
                if not gate.acquire(timeout=left()):
                    raise no_lease_in_time(watching.trouble)
            finally:
                with self.changed:
                    watching.forget_lease(wake)

    def close(self) -> None:
        """Gives up, says goodbye, and ends the stream; within a second or two if nobody answers."""
        thread = self._thread
        if thread is not None and self._process_id != os.getpid():
            self.is_closed = True  # a child of fork(), where the lock may be held for ever
            return
        with self.changed:
            if self.is_closed:
                return
            self.is_closed = True
            is_said = self.watching.farewell()
            self.changed.notify_all()
        self._ended.set()
        if thread is None:
            return
        if is_said:
            thread.join(FAREWELL_S)
        self._cancel()
        thread.join(FAREWELL_S)

    def abandon(self) -> None:
        """Ends everything without a word: nobody has it any more. Takes no lock, since it may run anywhere."""
        self.is_closed = True
        if self._process_id == os.getpid():
            self._cancel()

    def _cancel(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    def _run(self) -> None:
        backoff = Backoff()
        while not self.is_closed:
            try:
                self._session(backoff)
            except ClientClosed:
                return
            except (WatchViolation, StreamStalled, DoorwardError) as error:
                self._note(str(error))
            except Exception:
                # Nothing is decided here without a stream, so it may go on: the server is asked.
                log.exception("watch failed")
                self.watching.trouble = "the stream failed; the log says how"
            finally:
                with self.changed:
                    self.watching.give_up()
            self._ended.wait(backoff.seconds())

    def _session(self, backoff: Backoff) -> None:
        """One stream, from its hello to its end."""
        with self.changed:
            session = self.watching.open()
        outgoing = _Outgoing(self, session)
        metadata = self._caller.metadata()
        try:
            watch: Any = self._connection.open().stream_stream(WATCH, request_serializer=encoded)
            call: Any = watch(outgoing, metadata=metadata)
        except ValueError:
            # What grpc says of a channel that was closed since.
            if self.is_closed or self._connection.is_closed:
                raise ClientClosed from None
            raise
        self._call = call
        outgoing.cancel = call.cancel
        if self.is_closed:
            call.cancel()
        try:
            self._read(call, session, backoff)
        except grpc.RpcError as error:
            if outgoing.stalled is not None:
                raise outgoing.stalled from None
            raise (ClientClosed() if self._connection.is_closed else self._caller.failure(error)) from None
        finally:
            self._call = None
            with self.changed:
                self.watching.give_up()
                self.changed.notify_all()
            call.cancel()

    def _read(self, call: Any, session: Session, backoff: Backoff) -> None:
        for received in call:
            try:
                is_over = self._take(session, decoded(received))
            except SessionEnded:
                is_over = True
            if session.end_ns is not None:
                backoff.reset()
            if is_over:
                break
        else:
            self._note("the server ended the stream")
            return
        # Given up: what still comes means nothing, but the goodbye is to arrive.
        timer = threading.Timer(FAREWELL_S, call.cancel)
        timer.daemon = True
        timer.start()
        try:
            for _ in call:
                pass
        finally:
            timer.cancel()

    def _take(self, session: Session, message: FromReplica) -> bool:
        """Applies one message. Tests replace it, to hold a message back before it is applied."""
        with self.changed:
            is_over = self.watching.take(session, message)
            self.changed.notify_all()
        return is_over

    def _note(self, trouble: str) -> None:
        self.watching.trouble = trouble
        if trouble != self._logged and not self.is_closed:
            self._logged = trouble
            log.info("watch ended: %s", trouble)


def _nothing() -> None:
    """What there is to cancel before there is a call."""


class _Outgoing:
    """What gRPC's thread takes to write, one after the other: what is queued, and an ask whenever one is due.

    `stalled`: why the stream was cancelled from here, if it was.
    """

    def __init__(self, feed: Feed, session: Session) -> None:
        self._feed = feed
        self._session = session
        self._due_ns = 0
        self._is_last = False
        self.cancel: Callable[[], object] = _nothing
        self.stalled: StreamStalled | None = None

    def __iter__(self) -> _Outgoing:
        return self

    def __next__(self) -> ToReplica:
        feed, watching = self._feed, self._feed.watching
        with feed.changed:
            while not self._is_last and watching.opened is self._session:
                message = watching.next_outgoing()
                if message is not None:
                    self._is_last = isinstance(message, Goodbye)
                    return message
                if watching.watcher.session is not self._session:
                    break
                now_ns = watching.now_ns()
                if now_ns >= self._due_ns:
                    if not self._tick(now_ns):
                        break
                    continue
                feed.changed.wait((self._due_ns - now_ns) / 1e9)
        raise StopIteration

    def _tick(self, now_ns: int) -> bool:
        try:
            self._due_ns = now_ns + int(self._feed.watching.tick(self._session) * 1e9)
        except StreamStalled as stalled:
            self.stalled = stalled
            self.cancel()
            return False
        return True
