"""Time that a test steps: a clock, and a `Timing` whose sleepers wake when it is advanced."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from doorward_server.replica.timing import Signal, Timing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE_S = 20.0


class SteppedClock:
    """Stands still until it is advanced. It begins far from 0, as a real one does."""

    def __init__(self) -> None:
        self.reading_ns = 1_000_000_000_000
        self.stepped = Signal()

    def now_ns(self) -> int:
        return self.reading_ns

    def advance(self, milliseconds: float) -> None:
        """Moves the clock and wakes who slept."""
        self.reading_ns += int(milliseconds * 1_000_000)
        self.stepped.wake()


class SteppedTiming(Timing):
    """Sleeps on a `SteppedClock`."""

    __slots__ = ("stepped_clock",)

    def __init__(self, clock: SteppedClock) -> None:
        super().__init__(clock)
        self.stepped_clock = clock

    async def sleep_until(self, at_ns: int) -> None:
        await self.stepped_clock.stepped.until(lambda: self.now_ns() >= at_ns)


async def eventually(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S
) -> None:
    """Returns once `condition()` holds.

    Raises:
        AssertionError: it did not in time.
    """
    try:
        async with asyncio.timeout(within_s):
            while True:
                outcome = condition()
                if outcome if isinstance(outcome, bool) else await outcome:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError("the condition did not come true in time") from None


async def settled(turns: int = 50) -> None:
    """Lets everything that can run in the loop do so; for what must *not* happen."""
    for _ in range(turns):
        await asyncio.sleep(0)
