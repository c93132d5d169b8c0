"""The rows of `replicas`: what each statement of design section 7 does, and what it must not do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from doorward_server import failpoints
from doorward_server.failpoints import Failpoint
from doorward_server.storage import changes, replicas
from doorward_server.storage.failures import StatementRefused
from doorward_server.storage.line import Line
from tests.support.database import put_account
from tests.support.stepped import eventually

if TYPE_CHECKING:
    from doorward_server.storage.pool import Database


async def registered(database: Database, hold_ms: int = 5000) -> str:
    replica_id = str(uuid4())
    line = Line(database)
    await line.call(lambda connection: replicas.register(connection, replica_id, hold_ms, "10.0.0.1:50051"), 5)
    await line.close()
    return replica_id


async def end_of_log(database: Database) -> changes.LogEnd:
    async with database.reading() as connection:
        return await changes.read_end(connection)


async def test_a_registration_has_applied_what_it_read(database: Database) -> None:
    await put_account(database, "acme")
    end = await end_of_log(database)
    replica_id = str(uuid4())
    line = Line(database)

    answer = await line.call(lambda connection: replicas.register(connection, replica_id, 7000, "[::1]:1"), 5)
    await line.close()

    assert (answer.epoch, answer.number, answer.nonce) == (end.epoch, 1, end.nonce)
    async with database.reading() as connection:
        (row,) = await replicas.read_rows(connection)
    assert (row.replica_id, row.epoch, row.hold_ms, row.applied_revision, row.renewals, row.watchers, row.address) == (
        replica_id,
        1,
        7000,
        1,
        0,
        0,
        "[::1]:1",
    )
    assert row.renewed_time <= row.started_time, "each is read from the clock, in this order"


async def test_a_registration_that_commits_after_a_change_does_not_claim_it(database: Database) -> None:
    reached, thaw = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        reached.set()
        await thaw.wait()

    failpoints.arm(Failpoint.REGISTER_BEFORE_COMMIT, pause)
    try:
        registering = asyncio.create_task(registered(database))
        await reached.wait()
        await put_account(database, "acme")
        async with database.reading() as connection:
            assert await replicas.read_rows(connection) == [], "a barrier cannot see it yet"
            thaw.set()
            replica_id = await registering
            (row,) = await replicas.read_rows(connection)
            renewed = await replicas.renew(connection, replica_id)
    finally:
        failpoints.disarm(Failpoint.REGISTER_BEFORE_COMMIT)
    assert row.applied_revision == 0
    assert renewed is not None
    assert renewed.number == 1, "no lease before the change is applied"


async def test_an_id_is_never_registered_twice(database: Database) -> None:
    replica_id = await registered(database)
    line = Line(database)
    with pytest.raises(StatementRefused):
        await line.call(lambda connection: replicas.register(connection, replica_id, 5000, ""), 5)
    await line.close()


async def test_a_hold_out_of_bounds_is_refused(database: Database) -> None:
    for hold_ms in (499, 300_001):
        with pytest.raises(StatementRefused):
            await registered(database, hold_ms)


async def test_a_renewal_counts_and_tells_the_position_and_the_time(database: Database) -> None:
    replica_id = await registered(database)
    await put_account(database, "acme")
    before = await end_of_log(database)

    async with database.reading() as connection:
        renewed = await replicas.renew(connection, replica_id)
        assert renewed is not None
        await replicas.renew(connection, replica_id)
        (row,) = await replicas.read_rows(connection)
    after = await end_of_log(database)

    assert (renewed.epoch, renewed.number, renewed.nonce) == (1, 1, before.nonce)
    assert before.database_us <= renewed.database_us <= after.database_us
    assert (row.renewals, row.applied_revision) == (2, 0), "what was read is not yet applied"


async def test_a_replica_without_a_row_cannot_renew(database: Database) -> None:
    async with database.reading() as connection:
        assert await replicas.renew(connection, str(uuid4())) is None


async def test_a_report_moves_forward_only(database: Database) -> None:
    replica_id = await registered(database)
    for _ in range(2):
        await put_account(database, "acme")
    async with database.reading() as connection:
        first, second = await changes.read_after(connection, 0, 10)
        assert await replicas.report(connection, replica_id, second.number, second.nonce, watchers=3)
        assert not await replicas.report(connection, replica_id, second.number, second.nonce)
        assert not await replicas.report(connection, replica_id, first.number, first.nonce)
        (row,) = await replicas.read_rows(connection)
    assert (row.applied_revision, row.watchers) == (2, 3)


async def test_a_report_of_another_history_is_not_taken(database: Database) -> None:
    replica_id = await registered(database)
    await put_account(database, "acme")
    end = await end_of_log(database)
    async with database.reading() as connection:
        assert not await replicas.report(connection, replica_id, 1, b"otherone"), "another nonce"
        assert not await replicas.report(connection, replica_id, 2, end.nonce), "a change that is not there"
        assert not await replicas.report(connection, str(uuid4()), 1, end.nonce), "no row"
        await connection.execute("UPDATE state SET epoch = 2")
        assert not await replicas.report(connection, replica_id, 1, end.nonce), "another epoch"
        (row,) = await replicas.read_rows(connection)
    assert row.applied_revision == 0


async def test_rows_are_read_by_id(database: Database) -> None:
    first, second, third = [await registered(database) for _ in range(3)]
    end = await end_of_log(database)

    async def ids(wanted: list[str] | None) -> list[str] | None:
        async with database.reading() as connection:
            rows = await replicas.read_rows_at(connection, end.number, end.nonce, wanted)
        return None if rows is None else [row.replica_id for row in rows]

    async with database.reading() as connection:
        assert [row.replica_id for row in await replicas.read_rows(connection)] == [first, second, third]
    assert await ids(None) == [first, second, third]
    assert await ids([third, first, str(uuid4())]) == [first, third]
    assert await ids([]) == []


async def test_a_server_without_the_change_shows_no_rows_rather_than_old_ones(database: Database) -> None:
    await registered(database)
    await put_account(database, "acme")
    first = await end_of_log(database)
    async with database.reading() as connection:

        async def shows(number: int, nonce: bytes | None) -> bool:
            return await replicas.read_rows_at(connection, number, nonce) is not None

        async def known(number: int, nonce: bytes) -> list[bool]:
            return [await shows(number, nonce), await shows(number, None), await shows(number, b"otherone")]

        assert await known(first.number, first.nonce) == [True, True, False], "the newest"
        await put_account(database, "bolt")
        assert await known(first.number, first.nonce) == [True, True, False], "one before it"
        assert not await shows(first.number + 2, None), "beyond the end"
        await connection.execute("DELETE FROM changes WHERE revision = $1", first.number)
        assert await shows(first.number, first.nonce), "truncated: it is behind the end, and that has to do"


async def test_only_a_row_that_stood_still_is_pruned(database: Database) -> None:
    replica_id = await registered(database)
    await put_account(database, "acme")
    end = await end_of_log(database)
    async with database.reading() as connection:
        await replicas.renew(connection, replica_id)
        assert not await replicas.prune(connection, replica_id, 0, end.number), "it renewed"
        assert not await replicas.prune(connection, replica_id, 1, 0), "it has applied that"
        assert await replicas.prune(connection, replica_id, 1, end.number)
        assert not await replicas.prune(connection, replica_id, 1, end.number), "it is gone"
        assert await replicas.read_rows(connection) == []


async def test_a_row_that_reported_is_not_pruned(database: Database) -> None:
    replica_id = await registered(database)
    await put_account(database, "acme")
    end = await end_of_log(database)
    async with database.reading() as connection:
        await replicas.report(connection, replica_id, end.number, end.nonce)
        assert not await replicas.prune(connection, replica_id, 0, end.number)


async def test_a_row_that_somebody_is_writing_is_left_alone(database: Database, database_url: str) -> None:
    replica_id = await registered(database)
    await put_account(database, "acme")
    renewing = await asyncpg.connect(database_url)
    async with renewing.transaction(), database.reading() as connection:
        await replicas.renew(renewing, replica_id)
        assert not await replicas.prune(connection, replica_id, 0, 1), "nor is it waited for"
    await renewing.close()


async def test_a_row_is_deleted_once(database: Database) -> None:
    replica_id = await registered(database)
    other = await registered(database)
    async with database.reading() as connection:
        assert await replicas.delete(connection, replica_id)
        assert not await replicas.delete(connection, replica_id)
        assert [row.replica_id for row in await replicas.read_rows(connection)] == [other]


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
async def test_withdrawing_a_registration_waits_for_a_commit_that_is_on_its_way(
    database: Database, database_url: str, ends: str
) -> None:
    replica_id = str(uuid4())
    other = await registered(database)
    registering, line = await asyncpg.connect(database_url), Line(database)
    await registering.execute("BEGIN")
    await registering.execute(replicas.REGISTER, replica_id, 5000, "")
    withdrawing = asyncio.ensure_future(
        line.call(lambda connection: replicas.withdraw(connection, replica_id, 5000), 5)
    )

    async def waits() -> bool:
        return bool(await registering.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await eventually(waits)
    await registering.execute(ends)
    await withdrawing
    await registering.close()
    await line.close()
    async with database.reading() as connection:
        assert [row.replica_id for row in await replicas.read_rows(connection)] == [other]
