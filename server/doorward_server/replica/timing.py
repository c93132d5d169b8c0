"""Waiting, in one place: on the protocol's clock, or for a signal (style.md: a signal only wakes).

Every timer of design section 7 (renewals, polls, holds) goes through a `Timing`, so that a test can put a clock that it
steps itself under all of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.clock import Clock

__all__ = ["Signal", "Timing"]


class Signal:
    """Wakes whoever waits now. What is true is read from state: between looking and waiting there must be no await."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Everyone who waits goes on and looks again."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def next_wake(self) -> asyncio.Future[None]:
        """Done at the next `wake`, counted from this very call; whoever does not need it any more gives it to `forget`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        return future

    def forget(self, future: asyncio.Future[None]) -> None:
        """Nobody waits for this one any more."""
        self._waiting.discard(future)

    async def wait(self) -> None:
        """Returns at the next `wake`."""
        future = self.next_wake()
        try:
            await future
        finally:
            self.forget(future)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition()` holds; it is looked at now and after every `wake`. The caller bounds the wait."""
        while not condition():
            await self.wait()


class Timing:
    """The clock that counts, and sleeping on it. Readings are nanoseconds."""

    __slots__ = ("clock",)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def now_ns(self) -> int:
        """A reading of the clock."""
        return self.clock.now_ns()

    async def sleep_until(self, at_ns: int) -> None:
        """Returns once the clock reads `at_ns` or more. The loop's timer may run slow (it does not count suspended time)."""
        while (left_ns := at_ns - self.clock.now_ns()) > 0:  # noqa: ASYNC110 - time passes, nobody sets an event
            await asyncio.sleep(left_ns / 1e9)

    async def sleep_until_or(self, at_ns: int, signal: Signal) -> None:
        """Returns at `at_ns`, or at the next `wake` of `signal`, whichever is first."""
        # Registered before anything is awaited: a wake between the caller's look and this wait must not be lost.
        woken = signal.next_wake()
        asleep = asyncio.ensure_future(self.sleep_until(at_ns))
        try:
            await asyncio.wait({woken, asleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            signal.forget(woken)
            asleep.cancel()
            await asyncio.wait({asleep})
