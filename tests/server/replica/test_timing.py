"""Waiting on a clock and for signals."""

from __future__ import annotations

import asyncio

from doorward_server.replica.timing import Signal
from tests.support.stepped import SteppedClock, SteppedTiming, settled


async def test_a_wake_right_after_the_look_is_not_lost() -> None:
    timing, signal = SteppedTiming(SteppedClock()), Signal()
    waiting = timing.sleep_until_or(timing.now_ns() + 1_000_000_000, signal)
    # The first step of the coroutine only: what a task does before anything else in the loop can run.
    task = asyncio.ensure_future(waiting)
    asyncio.get_running_loop().call_soon(signal.wake)
    async with asyncio.timeout(10):
        await task


async def test_sleeping_ends_when_the_clock_gets_there() -> None:
    clock = SteppedClock()
    timing, signal = SteppedTiming(clock), Signal()
    task = asyncio.ensure_future(timing.sleep_until_or(timing.now_ns() + 10_000_000, signal))
    await settled()
    clock.advance(9)
    await settled()
    assert not task.done()
    clock.advance(1)
    await asyncio.wait_for(task, 10)


async def test_whoever_left_is_not_kept() -> None:
    timing, signal = SteppedTiming(SteppedClock()), Signal()
    task = asyncio.ensure_future(timing.sleep_until_or(timing.now_ns() + 10_000_000, signal))
    await settled()
    task.cancel()
    await asyncio.wait({task})
    assert not signal._waiting
