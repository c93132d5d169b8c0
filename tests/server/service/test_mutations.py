"""A mutation belongs to the app, not to its caller (design section 7)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from doorward_server.errors import DeadlineExceeded, NotFound, Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.service.mutations import Mutations
from doorward_server.storage import accounts, changes
from tests.support.database import change_of, event_of
from tests.support.replica import Parts, paused, running
from tests.support.stepped import PATIENCE_S, SteppedClock, SteppedTiming, eventually, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from doorward_server.service.mutations import Done
    from doorward_server.storage.changes import Committed, Decided, Transaction
    from doorward_server.storage.pool import Database
    from tests.support.replica import Parts, Pause


async def put(database: Database, account_id: str, *, fails: bool = False) -> Committed[str]:
    async def decide(tx: Transaction) -> Decided[str]:
        await accounts.upsert_account(tx, None, account_id, account_id, "team")
        if fails:
            raise NotFound("TOKEN_NOT_FOUND", "the test says so")
        return changes.Decided(account_id, change_of(f"account:{account_id}"), event_of(f"account:{account_id}"))

    return await changes.commit(database, decide)


async def exists(database: Database, account_id: str) -> bool:
    async with database.reading() as connection:
        return await accounts.read(connection, account_id) is not None


async def test_the_answer_comes_when_everyone_has_applied_it(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        done = await Mutations(replica.barrier, replica.tasks).run(lambda: put(database, "acme"), None)
        assert done.value == "acme"
        assert done.propagation is not None
        assert done.propagation.replicas_confirmed == 1
        assert replica.holding.applied >= done.propagation.revision.number


async def test_a_caller_that_leaves_interrupts_nothing(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        mutations = Mutations(replica.barrier, replica.tasks)
        with paused(Failpoint.MUTATION_BEFORE_COMMIT) as pause:
            calling = asyncio.ensure_future(mutations.run(lambda: put(database, "acme"), None))
            await pause.reached.wait()
            calling.cancel()
            await asyncio.wait({calling})
            assert calling.cancelled()
            pause.release()
        await eventually(lambda: exists(database, "acme"))
        await replica.applied(1)


async def test_what_is_refused_is_raised_and_nothing_stays(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with pytest.raises(NotFound):
            await Mutations(replica.barrier, replica.tasks).run(lambda: put(database, "acme", fails=True), None)
        assert not await exists(database, "acme")


async def test_a_deadline_that_comes_first_leaves_the_change_standing(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path, without=("feed",)) as replica:
        await replica.usable()
        mutations = Mutations(replica.barrier, replica.tasks)
        until_ns = replica.timing.now_ns() + 400_000_000
        with pytest.raises(DeadlineExceeded):
            await mutations.run(lambda: put(database, "acme"), until_ns)
        assert await exists(database, "acme")


async def all_ended(replica: Parts, clock: SteppedClock) -> None:
    """Lets time pass until nothing runs behind an answer: a replica that began to listen after the change learns of it late."""

    def have_ended() -> bool:
        clock.advance(1_000)
        return not replica.tasks._running

    await eventually(have_ended)


@contextlib.asynccontextmanager
async def near_its_deadline(
    database: Database, tmp_path: Path, step: Failpoint
) -> AsyncIterator[tuple[asyncio.Future[Done[str]], Pause]]:
    """A mutation that stands at `step` when its caller's deadline comes near, and goes on with the end of the block."""
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        with paused(step) as pause:
            mutations = Mutations(replica.barrier, replica.tasks)
            until_ns = clock.now_ns() + 1_000_000_000
            calling = asyncio.ensure_future(mutations.run(lambda: put(database, "acme"), until_ns))
            await pause.reached.wait()
            clock.advance(899)
            await settled()
            assert not calling.done()
            clock.advance(1)
            await asyncio.wait({calling}, timeout=PATIENCE_S)
            yield calling, pause
        await all_ended(replica, clock)


async def test_a_caller_is_told_before_its_deadline_that_nothing_is_committed_yet(
    database: Database, tmp_path: Path
) -> None:
    async with near_its_deadline(database, tmp_path, Failpoint.MUTATION_AFTER_LOCK) as (calling, pause):
        with pytest.raises(DeadlineExceeded) as told:
            await calling
        assert (told.value.reason, told.value.metadata) == ("COMMIT_NOT_AWAITED", {})
        assert not await exists(database, "acme")
        pause.release()
        await eventually(lambda: exists(database, "acme"))


async def test_a_caller_is_told_that_its_change_stands_though_the_replicas_cannot_be_read_before_its_deadline(
    database: Database, tmp_path: Path
) -> None:
    async with near_its_deadline(database, tmp_path, Failpoint.BARRIER_BEFORE_ROWS) as (calling, _):
        with pytest.raises(DeadlineExceeded) as told:
            await calling
    assert (told.value.reason, told.value.metadata) == ("PROPAGATION_NOT_AWAITED", {"revision": "1.1"})


async def test_awaiting_a_change_ends_before_the_callers_deadline_though_the_replicas_cannot_be_read(
    database: Database, tmp_path: Path
) -> None:
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        committed = await put(database, "acme")
        with paused(Failpoint.BARRIER_BEFORE_ROWS) as pause:
            mutations = Mutations(replica.barrier, replica.tasks)
            awaiting = mutations.await_propagation(committed.revision, clock.now_ns() + 1_000_000_000)
            calling = asyncio.ensure_future(awaiting)
            await pause.reached.wait()
            clock.advance(900)
            with pytest.raises(DeadlineExceeded) as told:
                await asyncio.wait_for(calling, PATIENCE_S)
        await all_ended(replica, clock)
    assert told.value.metadata == {"revision": str(committed.revision)}


async def test_while_shutting_down_nothing_new_begins(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        await replica.tasks.drain(1)
        with pytest.raises(Unavailable) as refused:
            await Mutations(replica.barrier, replica.tasks).run(lambda: put(database, "acme"), None)
        assert refused.value.reason == "SHUTTING_DOWN"
        assert not await exists(database, "acme")
