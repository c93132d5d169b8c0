"""`doorward serve --workers N`: the parent of N workers (design section 9). It serves no call itself.

It holds the port (`port.py`), owns the embedded PostgreSQL, prepares the database once, and keeps N processes running
(`process.py`). Promises:
- One that died is replaced, and its rows go at once: reaped, it can answer nothing, so no mutation needs to wait for its
  lease (section 7, Prune). The parent knows all of its rows, for a worker names each before it sends the INSERT.
  Unless its last word was that watchers' sub-leases of it are counted: it says so, and awaits the answer, before its first
  grant after a time without. Then its rows are left to be pruned.
- SIGTERM drains all at once. SIGUSR2 replaces one after the other, each only when its successor answers calls.
- Workers end with their parent, however that ends: their channel to it closes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Final

import structlog

from doorward.clock import SystemClock
from doorward_server import telemetry
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.errors import Refused
from doorward_server.replica.timing import Signal, Timing
from doorward_server.start import Prepared, StartRefused, banner, exit_status, prepared
from doorward_server.storage import replicas
from doorward_server.workers.deaths import CrashLoop, Deaths
from doorward_server.workers.port import held_port
from doorward_server.workers.process import WorkerProcess, first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward_server.embedded.postgres import EmbeddedPostgres
    from doorward_server.settings import Settings

__all__ = ["Workers", "run"]

log = structlog.get_logger()

# A worker's exit status when it cannot start, for a reason that it has told (`start.exit_status`).
UNABLE_STATUS: Final = 2
UNABLE_PAUSE_S: Final = 2.0
# From the start of a process to its lease: imports, connections, a migration if it is the first of a new version.
START_PATIENCE_S: Final = 120.0
# What the embedded PostgreSQL takes beside its workers' connections: joined servers, commands, measurements.
OTHER_CONNECTIONS: Final = 100
# A replica's beside its pool: for renewals, reports and changes, and the one it begins with.
LINES: Final = 4


class Workers:
    """The workers of one parent. Everything is read from state; `_moved` wakes whoever waits for a change of it."""

    def __init__(self, settings: Settings, timing: Timing) -> None:
        self._settings = settings
        self._timing = timing
        self._moved = Signal()
        self._deaths = Deaths(settings.workers)
        # By number: the one that serves, or shall.
        self._current: dict[int, WorkerProcess] = {}
        # Every process that is not reaped, successors among them.
        self._alive: set[WorkerProcess] = set()
        self._ending = asyncio.Event()
        self._is_announced = False
        self._roll_is_due = False
        self._failure: Exception | None = None

    def end(self) -> None:
        """Begins the graceful stop of all."""
        self._ending.set()
        self._moved.wake()

    def roll(self) -> None:
        """Asks for a rolling restart; one that is under way is followed by another."""
        self._roll_is_due = True
        self._moved.wake()

    async def run(self, base: Prepared, address: str, announce: Callable[[], None]) -> None:
        """Keeps the workers until `end`; `announce` is called once all serve.

        Raises:
            CrashLoop: they die again and again.
            StartRefused: one cannot start.
            EmbeddedUnavailable: PostgreSQL ended by itself.
        """
        self._base, self._told = base, first_line(self._settings, base.url, address)
        numbers = range(1, self._settings.workers + 1)
        async with asyncio.TaskGroup() as group:
            self._group = group
            watching = [] if base.embedded is None else [group.create_task(self._watch(base.embedded))]
            keeping = [group.create_task(self._keep(number)) for number in numbers]
            keeping.append(group.create_task(self._roll_when_asked()))
            await self._until(lambda: all(n in self._current and self._current[n].is_up for n in numbers))
            if not self._ending.is_set():
                self._is_announced = True
                announce()
            await self._ending.wait()
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
        while not self._ending.is_set():
            self._current[number] = await self._begin(number)
            # In its place may be a successor by now.
            await self._until(lambda: self._current[number].status is not None)
            if not self._ending.is_set():
                await self._pause(self._pause_after(self._current[number]))

    def _pause_after(self, dead: WorkerProcess) -> float:
        """How long to wait before `dead` is replaced, in seconds; all is over if it was one too many."""
        log.error("worker_died", worker=dead.number, status=dead.status)
        if dead.status == UNABLE_STATUS and not self._is_announced:
            self._fail(StartRefused(f"worker {dead.number} cannot start; it has said why"))
            return 0.0
        if dead.status == UNABLE_STATUS and any(worker.is_up for worker in self._alive):
            # Without a database, say, no worker begins, but those that run wait for it, and so does this one's place.
            return UNABLE_PAUSE_S
        try:
            return self._deaths.note(self._timing.now_ns())
        except CrashLoop as loop:
            self._fail(loop)
            return 0.0

    async def _roll_when_asked(self) -> None:
        while not self._ending.is_set():
            await self._until(lambda: self._roll_is_due and self._is_announced)
            if not self._ending.is_set():
                self._roll_is_due = False
                await self._roll()

    async def _roll(self) -> None:
        """Replaces one after the other, as long as it goes well."""
        log.info("rolling_restart_began")
        for number in sorted(self._current):
            if not await self._replace(number):
                log.error("rolling_restart_stopped", worker=number)
                return
        log.info("rolling_restart_done")

    async def _replace(self, number: int) -> bool:
        """Starts a successor, and ends its predecessor once it serves; False if it does not, and all stays as it is."""
        old = self._current[number]
        if old.status is not None:
            # Whoever keeps it is about to begin another.
            return True
        new = await self._begin(number)
        await self._until(lambda: new.is_up or new.status is not None, within_s=START_PATIENCE_S)
        if self._ending.is_set():
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

    async def _begin(self, number: int) -> WorkerProcess:
        worker = WorkerProcess(number, self._moved)
        await worker.start(self._told)
        if worker.status is None:
            self._alive.add(worker)
            self._group.create_task(self._attend(worker))
        return worker

    async def _attend(self, worker: WorkerProcess) -> None:
        """Waits for its end, and takes away what it leaves behind."""
        await worker.ended()
        self._alive.discard(worker)
        if worker.counts_sub_leases:
            log.warning("worker_rows_left", worker=worker.number, reason="counted_sub_leases")
            return
        # Twice, for an INSERT that was on its way may be committed behind the first; none takes longer than a hold.
        while not await self._rows_deleted(worker) and not self._ending.is_set():
            await self._pause(UNABLE_PAUSE_S)
        await self._pause(self._settings.hold)
        await self._rows_deleted(worker)

    async def _rows_deleted(self, worker: WorkerProcess) -> bool:
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

    async def _see_off(self, *workers: WorkerProcess) -> None:
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
                await self._moved.until(lambda: self._ending.is_set() or condition())
        except TimeoutError:
            return

    async def _pause(self, pause_s: float) -> None:
        """Returns when the time is up, or the end has begun."""
        due_ns = self._timing.now_ns() + int(pause_s * 1e9)
        while not self._ending.is_set() and self._timing.now_ns() < due_ns:
            await self._timing.sleep_until_or(due_ns, self._moved)


def run(settings: Settings) -> int:
    """Runs a parent with its workers until SIGTERM, SIGINT or SIGHUP; the exit status. Called by `doorward serve`."""
    telemetry.configure(settings.log_level, settings.log_format)
    try:
        return exit_status(_run(settings))
    except CrashLoop as loop:
        sys.stderr.write(f"doorward: {loop}\n")
        return 1


async def _run(settings: Settings) -> None:
    workers = Workers(settings, Timing(SystemClock()))
    loop = asyncio.get_running_loop()
    # A terminal that is closed sends SIGHUP: that must not leave a server behind, so it is no word for a restart.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, workers.end)
    loop.add_signal_handler(signal.SIGUSR2, workers.roll)
    # During a rolling restart there is one more.
    connections = OTHER_CONNECTIONS + (settings.workers + 1) * (settings.database_pool + LINES)
    with held_port(settings.listen) as address:
        async with prepared(settings, {"max_connections": str(connections)}) as base:

            def announce() -> None:
                sys.stdout.write(banner(address, settings, embedded_default=base.embedded is not None))
                sys.stdout.flush()

            await workers.run(base, address, announce)
