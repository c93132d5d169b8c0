"""The row of a replica, its lease, and what it reports (design section 7: Register, Renew, Apply)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from doorward_server.failpoints import Failpoint
from doorward_server.storage import replicas
from tests.support.database import DatabaseProxy, issue_token, opened, put_account
from tests.support.replica import paused, running
from tests.support.stepped import SteppedClock, SteppedTiming, eventually, settled

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.model import ReplicaRow
    from doorward_server.storage.pool import Database


async def rows_of(database: Database) -> list[ReplicaRow]:
    async with database.reading() as connection:
        return await replicas.read_rows(connection)


async def execute(database: Database, statement: str, *arguments: object) -> None:
    async with database.reading() as connection:
        await connection.execute(statement, *arguments)


async def test_replica_registers_and_gets_a_usable_lease(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        (row,) = await rows_of(database)
        assert row.replica_id == replica.holding.replica_id
        assert (row.hold_ms, row.applied_revision) == (5000, 0)


async def test_without_a_registration_there_is_no_lease(database: Database, tmp_path: Path) -> None:
    with paused(Failpoint.REGISTER_BEFORE_ANSWER) as pause:
        async with running(database, tmp_path) as replica:
            await pause.reached.wait()
            assert len(await rows_of(database)) == 1
            assert replica.holding.capture() is None
            pause.release()
            await replica.usable()


async def test_what_is_applied_is_reported(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        revision = await put_account(database, "acme")

        async def is_reported() -> bool:
            return [row.applied_revision for row in await rows_of(database)] == [revision.number]

        await eventually(is_reported)


async def test_a_change_between_registration_and_the_reporters_first_look_is_reported(
    database: Database, tmp_path: Path
) -> None:
    async with running(database, tmp_path, without=("reporter",)) as replica:
        await replica.usable()
        revision = await put_account(database, "acme")
        await replica.applied(revision.number)
        reporting = asyncio.ensure_future(replica.reporter.run())
        try:

            async def is_reported() -> bool:
                return [row.applied_revision for row in await rows_of(database)] == [revision.number]

            await eventually(is_reported)
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})


async def test_a_row_that_is_gone_drops_the_lease_and_everything_held(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    await issue_token(database, "t" * 16, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        await replica.caches.fill("token", "t" * 16)
        former, generation = replica.holding.replica_id, replica.holding.history.generation
        await execute(database, "DELETE FROM replicas")
        with paused(Failpoint.REGISTER_BEFORE_COMMIT) as pause:
            replica.keeper.hurry()
            await pause.reached.wait()
            assert replica.holding.capture() is None
            pause.release()
        await replica.usable()
        assert replica.holding.history.generation == generation + 1
        assert replica.holding.replica_id != former
        assert replica.holding.tables.tokens.get("t" * 16) is None


async def test_another_nonce_at_a_known_revision_is_another_history(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        generation = replica.holding.history.generation
        await execute(database, "UPDATE state SET nonce = $1", b"otherone")
        replica.keeper.hurry()
        await eventually(lambda: replica.holding.history.generation > generation)


async def test_a_lower_revision_is_another_history(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    await put_account(database, "bolt")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        generation = replica.holding.history.generation
        await execute(database, "UPDATE state SET revision = 1, nonce = (SELECT nonce FROM changes WHERE revision = 1)")
        replica.keeper.hurry()
        await eventually(lambda: replica.holding.history.generation > generation)


async def test_the_lease_ends_when_the_database_stays_silent(database_proxy: DatabaseProxy, tmp_path: Path) -> None:
    clock = SteppedClock()
    async with (
        opened(database_proxy.url) as database,
        running(database, tmp_path, timing=SteppedTiming(clock)) as replica,
    ):
        await replica.usable()
        database_proxy.stall_answers()
        clock.advance(3900)
        assert replica.holding.capture() is not None
        clock.advance(200)
        assert replica.holding.capture() is None
        database_proxy.heal()
        database_proxy.cut()
        clock.advance(5000)
        await eventually(lambda: _stepped(clock) and replica.holding.capture() is not None)


def _stepped(clock: SteppedClock) -> bool:
    clock.advance(50)
    return True


async def test_a_pending_lease_is_not_used_before_its_revision_is_applied(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        with paused(Failpoint.APPLY_BEFORE) as pause:
            await put_account(database, "acme")
            await pause.reached.wait()
            clock.advance(1300)
            await eventually(lambda: replica.holding.known_end == 1)
            clock.advance(2750)
            await settled()
            assert replica.holding.capture() is None
            pause.release()
        await replica.usable()


async def test_a_replica_that_cannot_apply_stops_renewing(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        with paused(Failpoint.APPLY_BEFORE) as pause:
            await put_account(database, "acme")
            await pause.reached.wait()
            clock.advance(1300)
            await eventually(lambda: replica.holding.unapplied_since_ns is not None)
            clock.advance(5100)
            await settled()
            before = (await rows_of(database))[0].renewals
            for _ in range(4):
                clock.advance(1300)
                await settled()
            assert (await rows_of(database))[0].renewals == before
            pause.release()
        await replica.applied(1)
        await eventually(lambda: _stepped(clock) and replica.holding.capture() is not None)


async def test_leaving_deletes_the_row(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        replica.holding.lease.drop()
        await replica.keeper.leave()
        assert await rows_of(database) == []


@pytest.mark.parametrize("is_first", [True, False], ids=["its_first", "another"])
async def test_leaving_in_the_middle_of_a_registration_leaves_no_row(
    database: Database, tmp_path: Path, is_first: bool
) -> None:
    async with running(database, tmp_path, without=("keeper",)) as replica:
        keeping = asyncio.ensure_future(replica.keeper.run())
        if not is_first:
            await replica.usable()
        with paused(Failpoint.REGISTER_BEFORE_ANSWER) as pause:
            replica.holding.begin_anew("the test says so")
            await pause.reached.wait()
            assert len(await rows_of(database)) == (1 if is_first else 2)
            keeping.cancel()
            await asyncio.wait({keeping})
            await replica.keeper.leave()
        assert await rows_of(database) == []


async def test_a_renewal_that_is_asked_for_begins_after_the_asking(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        with paused(Failpoint.RENEW_BEFORE_ANSWER) as pause:
            replica.keeper.hurry()
            await pause.reached.wait()
            # One is under way, and its snapshot was taken before this change.
            revision = await put_account(database, "acme")
            asking = asyncio.ensure_future(replica.keeper.fresh_renewal())
            await settled()
            assert not asking.done()
            pause.release()
        assert await asking >= revision.number
