"""Waiting until nobody can still say yes (design section 7, Barrier and Prune)."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from doorward.core.revision import Revision
from doorward_server.errors import DeadlineExceeded, Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.metrics import REGISTRY
from doorward_server.replica.barrier import Barrier
from doorward_server.storage import replicas
from tests.support.database import DatabaseProxy, opened, put_account
from tests.support.replica import paused, running
from tests.support.stepped import SteppedClock, SteppedTiming, settled

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.pool import Database


async def dead_replica(database: Database, hold_ms: int = 5000) -> str:
    """Registers a replica that nobody runs."""
    replica_id = str(uuid.uuid4())
    async with database.reading() as connection:
        await replicas.register(connection, replica_id, hold_ms, "nowhere")
    return replica_id


async def ids_of(database: Database) -> set[str]:
    async with database.reading() as connection:
        return {row.replica_id for row in await replicas.read_rows(connection)}


async def advance_to(clock: SteppedClock, milliseconds: float, step: float = 10.0) -> None:
    """Advances in steps, each with time for the polls in between."""
    end_ns = clock.reading_ns + int(milliseconds * 1e6)
    while clock.reading_ns < end_ns:
        clock.advance(min(step, (end_ns - clock.reading_ns) / 1e6))
        await settled(20)


async def test_a_replica_that_applies_confirms_without_time_passing(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        revision = await put_account(database, "acme")
        outcome = await replica.barrier.passed(revision, None)
        assert (outcome.propagation.replicas_confirmed, outcome.propagation.replicas_expired) == (1, 0)


async def test_a_dead_replica_is_waited_for_exactly_its_own_hold(database: Database) -> None:
    clock = SteppedClock()
    barrier = Barrier(database, SteppedTiming(clock))
    await dead_replica(database, hold_ms=3000)
    revision = await put_account(database, "acme")
    with paused(Failpoint.BARRIER_AFTER_ROWS) as pause:
        waiting = asyncio.ensure_future(barrier.passed(revision, None))
        await pause.reached.wait()
        pause.release()
    await settled()
    await advance_to(clock, 2999, step=500)
    assert not waiting.done()
    await advance_to(clock, 1)
    outcome = await asyncio.wait_for(waiting, 10)
    assert (outcome.propagation.replicas_confirmed, outcome.propagation.replicas_expired) == (0, 1)


def measured() -> tuple[float, float, float]:
    """How many waits the metrics show, what they took together in seconds, and how many ended with an expired replica."""
    samples = (
        REGISTRY.get_sample_value("doorward_barrier_seconds_count"),
        REGISTRY.get_sample_value("doorward_barrier_seconds_sum"),
        REGISTRY.get_sample_value("doorward_barriers_total", {"outcome": "expired"}),
    )
    count, seconds, expired = (sample or 0.0 for sample in samples)
    return count, seconds, expired


async def test_each_wait_is_measured(database: Database) -> None:
    clock = SteppedClock()
    barrier = Barrier(database, SteppedTiming(clock))
    await dead_replica(database, hold_ms=3000)
    before = measured()
    waiting = asyncio.ensure_future(barrier.passed(await put_account(database, "acme"), None))
    await settled()
    while not waiting.done():
        clock.advance(1000)
        await asyncio.wait({waiting}, timeout=0.02)
    elapsed_s = (await waiting).propagation.elapsed_s
    assert elapsed_s >= 3
    count, seconds, expired = measured()
    assert (count, expired) == (before[0] + 1, before[2] + 1)
    assert seconds == pytest.approx(before[1] + elapsed_s)


async def test_a_row_that_goes_is_confirmed(database: Database) -> None:
    clock = SteppedClock()
    barrier = Barrier(database, SteppedTiming(clock))
    replica_id = await dead_replica(database)
    revision = await put_account(database, "acme")
    with paused(Failpoint.BARRIER_AFTER_ROWS) as pause:
        waiting = asyncio.ensure_future(barrier.passed(revision, None))
        await pause.reached.wait()
        async with database.reading() as connection:
            await replicas.delete(connection, replica_id)
    for _ in range(200):
        if waiting.done():
            break
        clock.advance(10)
        await asyncio.wait({waiting}, timeout=0.02)
    assert (await waiting).propagation.replicas_confirmed == 1


async def test_a_report_of_another_epoch_confirms_nothing(database: Database) -> None:
    clock = SteppedClock()
    barrier = Barrier(database, SteppedTiming(clock))
    await dead_replica(database)
    async with database.reading() as connection:
        await connection.execute("UPDATE replicas SET epoch = 2, applied_revision = 1000")
    revision = await put_account(database, "acme")
    with paused(Failpoint.BARRIER_AFTER_ROWS) as pause:
        waiting = asyncio.ensure_future(barrier.passed(revision, None))
        await pause.reached.wait()
        pause.release()
    await settled()
    await advance_to(clock, 100)
    assert not waiting.done()
    await advance_to(clock, 5000, step=1000)
    await asyncio.wait_for(waiting, 10)


async def test_what_expired_is_pruned_and_the_next_change_does_not_wait(database: Database) -> None:
    clock = SteppedClock()
    barrier = Barrier(database, SteppedTiming(clock))
    await dead_replica(database)
    waiting = asyncio.ensure_future(barrier.passed(await put_account(database, "acme"), None))
    await settled()
    while not waiting.done():
        clock.advance(1000)
        await asyncio.wait({waiting}, timeout=0.02)
    await barrier.prune(await waiting)
    assert await ids_of(database) == set()
    outcome = await asyncio.wait_for(barrier.passed(await put_account(database, "bolt"), None), 10)
    assert (outcome.propagation.replicas_confirmed, outcome.propagation.replicas_expired) == (0, 0)


async def test_a_row_that_renewed_since_it_was_read_is_not_pruned(database: Database) -> None:
    clock = SteppedClock()
    barrier = Barrier(database, SteppedTiming(clock))
    replica_id = await dead_replica(database)
    waiting = asyncio.ensure_future(barrier.passed(await put_account(database, "acme"), None))
    await settled()
    while not waiting.done():
        clock.advance(1000)
        await asyncio.wait({waiting}, timeout=0.02)
    async with database.reading() as connection:
        assert await replicas.renew(connection, replica_id) is not None
    await barrier.prune(await waiting)
    assert await ids_of(database) == {replica_id}


async def test_the_wait_ends_before_the_callers_deadline_and_says_how_to_go_on(database: Database) -> None:
    clock = SteppedClock()
    barrier = Barrier(database, SteppedTiming(clock))
    await dead_replica(database)
    revision = await put_account(database, "acme")
    waiting = asyncio.ensure_future(barrier.passed(revision, clock.now_ns() + 1_000_000_000))
    await settled()
    for _ in range(100):
        if waiting.done():
            break
        assert clock.now_ns() < 1_000_000_000_000 + 900_000_000
        clock.advance(50)
        await asyncio.wait({waiting}, timeout=0.02)
    with pytest.raises(DeadlineExceeded) as refused:
        await waiting
    assert refused.value.reason == "PROPAGATION_NOT_AWAITED"
    assert refused.value.metadata == {"revision": str(revision)}


async def test_without_the_rows_nothing_is_promised(database_proxy: DatabaseProxy) -> None:
    async with opened(database_proxy.url, hold_ms=1000) as database:
        barrier = Barrier(database, SteppedTiming(SteppedClock()))
        database_proxy.stall_answers()
        with pytest.raises(Unavailable) as refused:
            await barrier.passed(Revision(1, 0), None)
        assert refused.value.reason == "PROPAGATION_UNKNOWN"


async def test_once_the_rows_were_read_the_database_is_not_needed(database_proxy: DatabaseProxy) -> None:
    clock = SteppedClock()
    async with opened(database_proxy.url, hold_ms=1000) as database:
        barrier = Barrier(database, SteppedTiming(clock))
        await dead_replica(database, hold_ms=1000)
        revision = await put_account(database, "acme")
        with paused(Failpoint.BARRIER_AFTER_ROWS) as pause:
            waiting = asyncio.ensure_future(barrier.passed(revision, None))
            await pause.reached.wait()
            database_proxy.stall_answers()
            pause.release()
        await settled()
        clock.advance(1)
        await settled()
        # It looks at the rows now and gets no answer; only its own clock can end the wait.
        clock.advance(1000)
        outcome = await asyncio.wait_for(waiting, 20)
        assert outcome.propagation.replicas_expired == 1
        database_proxy.heal()
