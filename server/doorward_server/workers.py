"""`doorward serve --workers N`: the parent of N replicas on one port, each in a process of its own (design section 9).

The parent serves no call. It holds the port (`port.py`), owns the embedded PostgreSQL, prepares the database once, and
keeps N workers (`worker.py`) running. Promises:
- Workers are spawned, never forked: each begins with an empty memory, keys and clocks of its own.
- One that died is replaced, and its rows go at once: once it is reaped it can answer nothing, so no mutation needs to
  wait for its lease (section 7, Prune). The parent knows them all, for a worker names each before it sends the INSERT.
  No worker has sub-leases yet. One that grants them must say so here and await the answer before its first Grant after a
  time without; of a worker whose last word was that some are counted, the rows are left to be pruned.
- SIGTERM drains all at once; SIGUSR2 replaces one after the other, each only when its successor holds a lease.
- Workers end with their parent, however that ends: their channel to it closes.

Run by `doorward serve`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL
from collections import deque
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import SecretStr

from doorward.clock import SystemClock
from doorward_server import telemetry
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.errors import Refused
from doorward_server.port import held_port
from doorward_server.replica.timing import Signal, Timing
from doorward_server.start import Prepared, banner, exit_status, prepared
from doorward_server.storage import replicas

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from doorward_server.embedded.postgres import EmbeddedPostgres
    from doorward_server.settings import Settings

__all__ = ["CrashLoop", "Deaths", "Workers", "run"]

log = structlog.get_logger()

ENTRY: Final = "doorward_server.worker"
# A worker's exit status when it cannot start, for a reason that it has told (`start.exit_status`).
UNABLE_STATUS: Final = 2
UNABLE_PAUSE_S: Final = 2.0
WINDOW_NS: Final = 60_000_000_000
# Deaths in a minute beyond one of each worker: what takes all at once may happen, again and again is a crash loop.
MORE_DEATHS: Final = 5
FIRST_PAUSE_S: Final = 0.1
# From the start of a process to its lease: imports, connections, a migration of which it is the first.
START_PATIENCE_S: Final = 120.0
# A process registers anew when its row is lost; of those that it names, the newest can be in anybody's way.
REMEMBERED_ROWS: Final = 1000
# What embedded PostgreSQL takes beside the pools: joined servers, commands, measurements.
OTHER_CONNECTIONS: Final = 100
# A replica's lines for renewals, reports and changes, and the one it begins with.
LINES: Final = 4


class CrashLoop(Exception):
    """Workers die faster than it makes sense to replace them."""


class Deaths:
    """How often workers died within a minute, and how long to wait before the next is started."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._times_ns: deque[int] = deque()

    def note(self, now_ns: int) -> float:
        """Counts one; the pause, in seconds. Longer each time, once more died than there are workers.

        Raises:
            CrashLoop: too many.
        """
        times = self._times_ns
        times.append(now_ns)
        while times[0] <= now_ns - WINDOW_NS:
            times.popleft()
        more = len(times) - self._workers
        if more > MORE_DEATHS:
            raise CrashLoop(f"{len(times)} workers died within a minute; their last words are in the log")
        return FIRST_PAUSE_S * 2 ** (more - 1) if more > 0 else 0.0


class _Worker(asyncio.Protocol):
    """One process, as its parent knows it: what it said over the channel, and how it ended."""

    def __init__(self, number: int, moved: Signal) -> None:
        self.number = number
        self.replica_ids: deque[str] = deque(maxlen=REMEMBERED_ROWS)
        self.serves = False
        self.is_silent = False
        # The exit status, once it is reaped and everything it said was heard.
        self.status: int | None = None
        self.process: Process | None = None
        self._moved = moved
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        """Hears it at once, so that nothing it said is behind the news of its end."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "registering":
                self.replica_ids.append(rest)
            elif word == "serving":
                self.serves = True
                log.info("worker_serves", worker=self.number)
            # Any other word is that of a newer worker, started after an upgrade: it does not need an answer.
        self._moved.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """It said all that it will say."""
        self.is_silent = True
        self._moved.wake()

    @property
    def is_up(self) -> bool:
        """Whether it answers calls."""
        return self.serves and self.status is None

    def signal(self, number: signal.Signals) -> None:
        """Sends it to the process, if there is one that was not reaped."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Workers:
    """The parent. Everything is read from state; `_moved` wakes whoever waits for a change of it."""

    def __init__(self, settings: Settings, timing: Timing) -> None:
        self._settings = settings
        self._timing = timing
        self._moved = Signal()
        self._deaths = Deaths(settings.workers)
        # By number: the one that serves, or shall.
        self._current: dict[int, _Worker] = {}
        # Every process that is not reaped, successors among them.
        self._alive: set[_Worker] = set()
        self._is_announced = self._is_ending = self._roll_is_due = False
        self._failure: Exception | None = None

    def end(self) -> None:
        """Begins the graceful stop of all."""
        self._is_ending = True
        self._moved.wake()

    def roll(self) -> None:
        """Asks for a rolling restart; one that is under way is followed by another."""
        self._roll_is_due = True
        self._moved.wake()

    async def run(self, base: Prepared, address: str, announce: Callable[[], None]) -> None:
        """Keeps the workers until `end`; `announce` is called when all serve.

        Raises:
            CrashLoop: they die again and again.
            EmbeddedUnavailable: PostgreSQL ended by itself.
        """
        self._base, self._told = base, _told(self._settings, base.url, address)
        numbers = range(1, self._settings.workers + 1)
        async with asyncio.TaskGroup() as group:
            self._group = group
            watching = [] if base.embedded is None else [group.create_task(self._watch(base.embedded))]
            keeping = [group.create_task(self._keep(number)) for number in numbers]
            keeping.append(group.create_task(self._roll_when_asked()))
            await self._until(lambda: all(n in self._current and self._current[n].is_up for n in numbers))
            if not self._is_ending:
                self._is_announced = True
                announce()
            await self._until(lambda: False)
            log.info("workers_ending")
            await self._see_off(*self._alive)
            await asyncio.wait(keeping)
            # One may have been begun meanwhile.
            await self._see_off(*self._alive)
            for task in watching:
                task.cancel()
        if self._failure is not None:
            raise self._failure

    async def _keep(self, number: int) -> None:
        """Keeps one worker running."""
        self._current[number] = await self._begin(number)
        while not self._is_ending:
            await self._until(lambda: self._current[number].status is not None)
            if not self._is_ending:
                await self._pause(self._pause_after(self._current[number]))
            if not self._is_ending:
                self._current[number] = await self._begin(number)

    def _pause_after(self, dead: _Worker) -> float:
        """How long to wait before `dead` is replaced, in seconds; it is the end of all if it was one too many."""
        log.error("worker_died", worker=dead.number, status=dead.status)
        if dead.status == UNABLE_STATUS and not self._is_announced:
            self._fail(_Unable())
        elif dead.status == UNABLE_STATUS and any(worker.is_up for worker in self._alive):
            # No database, say: the others wait for it without a lease, and end no sooner than it comes back.
            return UNABLE_PAUSE_S
        else:
            try:
                return self._deaths.note(self._timing.now_ns())
            except CrashLoop as loop:
                self._fail(loop)
        return 0.0

    async def _roll_when_asked(self) -> None:
        while not self._is_ending:
            await self._until(lambda: self._roll_is_due and self._is_announced)
            if self._is_ending:
                return
            self._roll_is_due = False
            log.info("rolling_restart_began")
            for number in sorted(self._current):
                if not await self._replace(number):
                    log.error("rolling_restart_stopped", worker=number)
                    break
            else:
                log.info("rolling_restart_done")

    async def _replace(self, number: int) -> bool:
        """Starts a successor, and ends its predecessor once it serves; False if it does not, and all stays as it is."""
        old = self._current[number]
        new = await self._begin(number)
        await self._until(lambda: new.serves or new.status is not None, within_s=START_PATIENCE_S)
        if self._is_ending:
            return False
        if not new.is_up:
            await self._see_off(new)
            return False
        if self._current[number] is not old or old.status is not None:
            # It died meanwhile, and whoever keeps it has begun another, or is about to.
            await self._see_off(new)
            return True
        self._current[number] = new
        await self._see_off(old)
        return True

    async def _begin(self, number: int) -> _Worker:
        """Starts a process; one that cannot be started has ended."""
        worker = _Worker(number, self._moved)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                worker.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", ENTRY, str(theirs.fileno()), str(number)),
                    stdin=DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # Ctrl-C in a terminal is for the parent, which ends them in order.
                    start_new_session=True,
                )
            except OSError as error:
                log.error("worker_not_started", worker=number, error=error.strerror)
                ours.close()
                worker.status = -1
                return worker
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: worker, sock=ours)
        transport.write(self._told)
        log.info("worker_started", worker=number, process=worker.process.pid)
        self._alive.add(worker)
        self._group.create_task(self._attend(worker, worker.process))
        return worker

    async def _attend(self, worker: _Worker, process: Process) -> None:
        """Waits for its end, and takes away what it leaves behind."""
        status = await process.wait()
        # Nobody else has its end of the channel; what it said last is still in there.
        await self._moved.until(lambda: worker.is_silent)
        worker.status = status
        self._alive.discard(worker)
        log.info("worker_ended", worker=worker.number, process=process.pid, status=status)
        self._moved.wake()
        # Twice, for an INSERT that was on its way may be committed behind the first; none takes longer than a hold.
        while not await self._rows_deleted(worker) and not self._is_ending:
            await self._pause(UNABLE_PAUSE_S)
        await self._pause(self._settings.hold)
        await self._rows_deleted(worker)

    async def _rows_deleted(self, worker: _Worker) -> bool:
        """Deletes the rows of a process that was reaped; False if the database did not answer."""
        try:
            for replica_id in worker.replica_ids:
                async with self._base.database.reading() as connection:
                    if await replicas.delete(connection, replica_id):
                        log.info("worker_row_deleted", worker=worker.number, replica_id=replica_id)
        except Refused as refused:
            log.warning("worker_rows_left", worker=worker.number, reason=refused.reason)
            return False
        return True

    async def _see_off(self, *workers: _Worker) -> None:
        """SIGTERM to all, SIGKILL to those that take longer than draining can; returns when all are reaped."""

        def are_gone() -> bool:
            return all(worker.status is not None for worker in workers)

        for worker in workers:
            worker.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(2 * self._settings.drain + self._settings.hold + 10):
                await self._moved.until(are_gone)
        except TimeoutError:
            log.error("workers_killed", workers=[worker.number for worker in workers if worker.status is None])
            for worker in workers:
                worker.signal(signal.SIGKILL)
            await self._moved.until(are_gone)

    async def _watch(self, embedded: EmbeddedPostgres) -> None:
        try:
            await embedded.run()
        except EmbeddedUnavailable as failure:
            self._fail(failure)

    def _fail(self, failure: Exception) -> None:
        """The end of all, in order; the first failure is told."""
        self._failure = self._failure or failure
        self.end()

    async def _until(self, condition: Callable[[], bool], within_s: float | None = None) -> None:
        """Returns once `condition()` holds, the end has begun, or the time is up: look which."""
        try:
            async with asyncio.timeout(within_s):
                await self._moved.until(lambda: self._is_ending or condition())
        except TimeoutError:
            return

    async def _pause(self, pause_s: float) -> None:
        """Returns when the time is up, or the end has begun."""
        due_ns = self._timing.now_ns() + int(pause_s * 1e9)
        while not self._is_ending and self._timing.now_ns() < due_ns:
            await self._timing.sleep_until_or(due_ns, self._moved)
