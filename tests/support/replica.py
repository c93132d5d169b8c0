"""A replica's parts in the test's own loop, on a real database: what `app.py` builds, with a clock of the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from doorward.clock import SystemClock
from doorward.core.token_table import Tables
from doorward_server import failpoints
from doorward_server.credentials import pepper
from doorward_server.credentials.hashing import Hasher
from doorward_server.replica.barrier import Barrier
from doorward_server.replica.caches import Caches
from doorward_server.replica.feed import Feed
from doorward_server.replica.holding import Holding
from doorward_server.replica.lease_keeper import LeaseKeeper, Reporter
from doorward_server.replica.recognition import Recognition
from doorward_server.replica.tasks import Tasks
from doorward_server.replica.timing import Timing
from doorward_server.storage.line import Line
from tests.support.stepped import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.failpoints import Failpoint
    from doorward_server.storage.pool import Database


class Parts:
    """One replica, wired; `running` starts it."""

    def __init__(
        self, database: Database, ring: PepperRing, tasks: Tasks, timing: Timing, *, hold_ms: int, capacity: int
    ) -> None:
        self.database = database
        self.ring = ring
        self.tasks = tasks
        self.timing = timing
        self.holding = Holding(timing, hold_ms=hold_ms, tables=Tables(capacity), proofs=capacity)
        self.lines = [Line(database) for _ in range(3)]
        self.keeper = LeaseKeeper(self.holding, self.lines[0], "test")
        self.reporter = Reporter(self.holding, self.lines[1], self.keeper)
        self.feed = Feed(self.holding, self.lines[2], listen=True)
        self.hasher = Hasher(timing.clock)
        self.caches = Caches(self.holding, database, tasks)
        self.recognition = Recognition(self.holding, self.caches, database, ring, self.hasher)
        self.barrier = Barrier(database, timing)

    async def usable(self) -> None:
        """Returns once it has a usable lease."""
        await eventually(lambda: self.holding.capture() is not None)

    async def applied(self, number: int) -> None:
        """Returns once it has applied `number`."""
        await eventually(lambda: self.holding.applied >= number)


@contextlib.asynccontextmanager
async def running(
    database: Database,
    directory: Path,
    *,
    timing: Timing | None = None,
    hold_ms: int = 5000,
    capacity: int = 1000,
    without: tuple[str, ...] = (),
) -> AsyncIterator[Parts]:
    """A replica that runs; `without` names parts (keeper, reporter, feed, hasher) that do not."""
    key_file = directory / "pepper.keys"
    ring = pepper.load(key_file) if key_file.exists() else pepper.create(key_file)
    async with asyncio.TaskGroup() as group:
        parts = Parts(database, ring, Tasks(group), timing or Timing(SystemClock()), hold_ms=hold_ms, capacity=capacity)
        runs = {
            "keeper": parts.keeper.run,
            "reporter": parts.reporter.run,
            "feed": parts.feed.run,
            "hasher": parts.hasher.run,
        }
        started = [group.create_task(run()) for name, run in runs.items() if name not in without]
        try:
            yield parts
        finally:
            await parts.tasks.drain(5)
            for task in started:
                task.cancel()
            await asyncio.wait(started)
            await parts.hasher.close()
            for line in parts.lines:
                line.terminate()


class Pause:
    """A failpoint that stops whoever reaches it, until it is released; `times`: only the first so many."""

    def __init__(self, times: int | None = None) -> None:
        self.reached = asyncio.Event()
        self._released = asyncio.Event()
        self._times = times
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1
        if self._times is None or self.count <= self._times:
            self.reached.set()
            await self._released.wait()

    def release(self) -> None:
        self._released.set()


@contextlib.contextmanager
def paused(point: Failpoint, times: int | None = None) -> Iterator[Pause]:
    """Arms `point` for the block."""
    pause = Pause(times)
    failpoints.arm(point, pause)
    try:
        yield pause
    finally:
        failpoints.disarm(point)
        pause.release()
