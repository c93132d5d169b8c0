"""The stream of a `LocalAuthorizer` of asyncio, and how its checks wait: `_watch_shared.py`'s rules in one event loop.

One task opens the stream, reads it, and opens another when it ends; a second one writes what is queued, in order; a timer
asks for sub-leases. Whatever ends a stream ends its session first. Design sections 7 ("Watchers") and 8.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from doorward._watch_shared import FAREWELL_S, MOST_WAITING, WATCH, Backoff, StreamStalled, Watching
from doorward._watch_waiting import Deciding, no_lease_in_time
from doorward._watch_wire import decoded, encoded
from doorward.core.watch_messages import Goodbye
from doorward.core.watch_session import WatchViolation
from doorward.core.watcher import SessionEnded
from doorward.errors import ClientClosed, DoorwardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from doorward._aio_client import Connection
    from doorward._caller import Caller
    from doorward._watch_shared import Asked
    from doorward.core.watch_messages import FromReplica
    from doorward.core.watch_session import Session
    from doorward.core.watch_tables import WatchBounds
    from doorward.decisions import Decision

__all__ = ["Feed"]

log: Final = logging.getLogger("doorward")

# How often, and at what interval, a call that failed here is looked at for what the server said.
STATUS_LOOKS: Final = 50
STATUS_LOOK_S: Final = 0.01
# gRPC's own, in place of the server's, once a write has failed.
HIDDEN: Final = grpc.StatusCode.INTERNAL


class _StatusHidden(Exception):
    """The stream ended, and what the server said of it never came."""


class Feed:
    """Keeps one session at a time open, from `begin` to `close`."""

    def __init__(self, connection: Connection, caller: Caller[grpc.aio.Metadata], bounds: WatchBounds | None) -> None:
        self.watching = Watching(bounds)
        self.is_closed = False
        self._connection = connection
        self._caller = caller
        self._process_id = 0
        self._task: asyncio.Task[None] | None = None
        self._call: Any = None
        self._to_write = asyncio.Event()
        self._logged = ""

    def begin(self) -> None:
        """Opens the first stream, if that was not done yet.

        Raises:
            ClientClosed: it was closed.
            RuntimeError: another event loop or another process began it.
        """
        if self.is_closed:
            raise ClientClosed
        self._connection.open()
        if self._task is None:
            self._process_id = os.getpid()
            self._task = asyncio.get_running_loop().create_task(self._run(), name="doorward watch")

    async def decide(self, asked: Iterable[tuple[int, Asked]], seconds: float) -> dict[int, Decision]:
        """Decides what can be decided here within that time, by its place; what is missing is left to the server.

        Raises:
            ClientClosed: it was closed meanwhile.
        """
        watching, listed = self.watching, list(asked)
        loop = asyncio.get_running_loop()
        until_ns = watching.now_ns() + int(seconds * 1e9)
        deciding = Deciding(watching, listed)
        if watching.waiting + len(listed) > MOST_WAITING:
            return deciding.decided
        watching.waiting += len(listed)
        try:
            while True:
                woken: asyncio.Future[None] = loop.create_future()
                round_ = deciding.step(_waking(woken))
                self._to_write.set()
                if watching.is_stalled:
                    self._cancel()
                if round_ is None:
                    return deciding.decided
                try:
                    async with asyncio.timeout(max(0.0, (until_ns - watching.now_ns()) / 1e9)):
                        await woken
                except TimeoutError:
                    return deciding.decided
                finally:
                    watching.leave(round_)
                if self.is_closed:
                    raise ClientClosed
        finally:
            watching.waiting -= len(listed)

    async def wait_ready(self, left: Callable[[], float]) -> None:
        """Returns once there is a sub-lease.

        Raises:
            ClientClosed, DeadlineExceeded.
        """
        watching = self.watching
        while not watching.holds_lease:
            if self.is_closed:
                raise ClientClosed
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            wake = _waking(woken)
            watching.await_lease(wake)
            try:
                async with asyncio.timeout(left()):
                    await woken
            except TimeoutError:
                raise no_lease_in_time(watching.trouble) from None
            finally:
                watching.forget_lease(wake)

    async def close(self) -> None:
        """Gives up, says goodbye, and ends the stream; within a second if nobody answers."""
        if self.is_closed:
            return
        self.is_closed = True
        task = self._task
        if task is None or self._process_id != os.getpid():
            return
        is_said = self.watching.farewell()
        self._to_write.set()
        if is_said:
            await asyncio.wait({task}, timeout=FAREWELL_S)
        task.cancel()
        await asyncio.wait({task})

    def abandon(self) -> None:
        """Ends everything without a word: nobody has it any more."""
        self.is_closed = True
        task = self._task
        if task is not None and self._process_id == os.getpid() and not (loop := task.get_loop()).is_closed():
            loop.call_soon_threadsafe(task.cancel)

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()

    async def _run(self) -> None:
        backoff = Backoff()
        while not self.is_closed:
            try:
                await self._session(backoff)
            except ClientClosed:
                return
            except _StatusHidden as hidden:
                # What the server said of the stream before tells more.
                if not self._logged:
                    self._note(str(hidden))
            except (WatchViolation, StreamStalled, DoorwardError) as error:
                self._note(str(error))
            except Exception:
                # Nothing is decided here without a stream, so it may go on: the server is asked.
                log.exception("watch failed")
                self.watching.trouble = "the stream failed; the log says how"
            finally:
                self.watching.give_up()
            if not self.is_closed:
                await asyncio.sleep(backoff.seconds())

    async def _session(self, backoff: Backoff) -> None:
        """One stream, from its hello to its end."""
        watching = self.watching
        call: Any = self._connection.open().stream_stream(WATCH)(metadata=self._caller.metadata())
        session = watching.open()
        self._call = call
        alarm = _Alarm(watching, session, call, self._to_write)
        writer = asyncio.create_task(self._write(call), name="doorward watch writes")
        try:
            await self._read(call, session, backoff)
            await self._drain(call)
        except grpc.aio.AioRpcError:
            said = await _as_the_server_said(call)
            failure = self._caller.failure(said)
            raise (_StatusHidden(str(failure)) if said.code() is HIDDEN else failure) from None
        except asyncio.CancelledError:
            # The end of the call from this side arrives like the end of this task.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if self._connection.is_closed:
                raise ClientClosed from None
            raise (alarm.stalled or StreamStalled("the stream was cancelled")) from None
        finally:
            watching.give_up()
            self._call = None
            alarm.stop()
            writer.cancel()
            call.cancel()
            await self._drain(call)

    async def _read(self, call: Any, session: Session, backoff: Backoff) -> None:
        # Iterated, not read one by one: a call one of whose writes has failed is over for `read`, whatever still came.
        async for received in call:
            try:
                is_over = await self._take(session, decoded(received))
            except SessionEnded:
                is_over = True
            self._to_write.set()
            if session.end_ns is not None:
                backoff.reset()
            if is_over:
                return
        self._note("the server ended the stream")

    async def _drain(self, call: Any) -> None:
        """Takes what still comes, which means nothing: else gRPC keeps the call, and a goodbye may not arrive."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                async for _ in call:
                    pass
        except (grpc.aio.AioRpcError, TimeoutError):
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise

    async def _take(self, session: Session, message: FromReplica) -> bool:
        """Applies one message. Tests replace it, to hold a message back before it is applied."""
        return self.watching.take(session, message)

    async def _write(self, call: Any) -> None:
        try:
            while True:
                message = self.watching.next_outgoing()
                if message is None:
                    self._to_write.clear()
                    await self._to_write.wait()
                    continue
                await call.write(encoded(message))
                if isinstance(message, Goodbye):
                    await call.done_writing()
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # whoever reads learns why
        except BaseException:
            call.cancel()
            raise

    def _note(self, trouble: str) -> None:
        self.watching.trouble = trouble
        if trouble != self._logged and not self.is_closed:
            self._logged = trouble
            log.info("watch ended: %s", trouble)


async def _as_the_server_said(call: Any) -> grpc.aio.AioRpcError:
    """The error with the server's status, which comes a moment later if a write has failed first: gRPC's own is there then.

    Without it nobody would learn that the credential was refused.
    """
    for _ in range(STATUS_LOOKS):
        if await call.code() is not HIDDEN:
            break
        await asyncio.sleep(STATUS_LOOK_S)
    code, details, trailing = await call.code(), await call.details(), await call.trailing_metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing or grpc.aio.Metadata(), details=details)


def _waking(woken: asyncio.Future[None]) -> Callable[[], None]:
    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    return wake


class _Alarm:
    """Asks for sub-leases in time, and cancels a stream of which nothing is to be hoped for: `stalled` says why."""

    def __init__(self, watching: Watching, session: Session, call: Any, to_write: asyncio.Event) -> None:
        self._watching = watching
        self._session = session
        self._call = call
        self._to_write = to_write
        self._loop = asyncio.get_running_loop()
        self.stalled: StreamStalled | None = None
        self._handle = self._loop.call_soon(self._ring)

    def stop(self) -> None:
        """Rings no more."""
        self._handle.cancel()

    def _ring(self) -> None:
        try:
            seconds = self._watching.tick(self._session)
        except StreamStalled as stalled:
            self.stalled = stalled
            self._call.cancel()
            return
        self._to_write.set()
        self._handle = self._loop.call_later(seconds, self._ring)
