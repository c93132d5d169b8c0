"""A new epoch after a restore: what the transaction does, what it keeps out meanwhile, what an old replica can still do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from doorward.core.revision import Revision
from doorward_server.errors import Unavailable
from doorward_server.model import AuditEvent
from doorward_server.storage import changes, epochs, replicas
from doorward_server.storage.failures import DatabaseUnusable
from doorward_server.storage.line import Line
from tests.support.database import opened, put_account
from tests.support.stepped import eventually

if TYPE_CHECKING:
    from doorward_server.storage.epochs import Departed
    from doorward_server.storage.pool import Database

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def event_of(former: int, departed: Departed) -> AuditEvent:
    return AuditEvent("direct", "NewEpoch", f"epoch:{former + 1}", None, {"replicas": departed.replicas})


async def at_once(_departed: Departed) -> None:
    return


async def begin(database: Database, least_hold_ms: int = 0) -> Revision:
    return (await epochs.begin_epoch(database, least_hold_ms, at_once, event_of))[0]


async def end_of_log(database: Database) -> changes.LogEnd:
    async with database.reading() as connection:
        return await changes.read_end(connection)


async def registered(database: Database, hold_ms: int = 5000) -> tuple[str, replicas.Registered]:
    replica_id = str(uuid4())
    line = Line(database)
    answer = await line.call(lambda connection: replicas.register(connection, replica_id, hold_ms, "test"), 20)
    await line.close()
    return replica_id, answer


async def row_ids(database: Database) -> set[str]:
    async with database.reading() as connection:
        return {row.replica_id for row in await replicas.read_rows(connection)}


async def waiting_for_a_lock(database: Database) -> bool:
    async with database.reading() as connection:
        return bool(await connection.fetchval(WAITING))


class Stopped:
    """The wait of a new epoch, which ends when the test says so."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, _departed: Departed) -> None:
        self.reached.set()
        await self.release.wait()


async def test_the_epoch_and_the_nonce_are_new_and_the_number_goes_on(database: Database) -> None:
    await put_account(database, "acme")
    before = await end_of_log(database)

    revision = await begin(database)

    after = await end_of_log(database)
    assert revision == Revision(2, 1)
    assert (after.epoch, after.number) == (2, 1)
    assert after.nonce != before.nonce
    assert await put_account(database, "acme") == Revision(2, 2)


async def test_all_rows_go_and_the_longest_hold_is_waited(database: Database) -> None:
    for hold_ms in (1000, 7000, 2000):
        await registered(database, hold_ms)
    told = []

    async def outlast(departed: Departed) -> None:
        told.append(departed)

    _, departed = await epochs.begin_epoch(database, 5000, outlast, event_of)

    assert told == [departed] == [epochs.Departed(3, 7000)]
    assert await row_ids(database) == set()


async def test_a_backup_that_knows_no_replica_is_waited_for_all_the_same(database: Database) -> None:
    _, departed = await epochs.begin_epoch(database, 5000, at_once, event_of)
    assert departed == epochs.Departed(0, 5000)


async def test_until_it_commits_the_rows_stand_for_a_barrier_and_nobody_renews(database: Database) -> None:
    replica_id, _ = await registered(database)
    stopped, line = Stopped(), Line(database)
    beginning = asyncio.create_task(epochs.begin_epoch(database, 0, stopped, event_of))
    await stopped.reached.wait()

    renewing = asyncio.create_task(line.call(lambda connection: replicas.renew(connection, replica_id), 20))
    await eventually(lambda: waiting_for_a_lock(database))
    await put_account(database, "acme")

    assert await row_ids(database) == {replica_id}
    assert not renewing.done()
    stopped.release.set()
    await beginning
    assert await renewing is None, "the row is gone: this replica must register anew"
    await line.close()


async def test_whoever_registers_meanwhile_comes_after_it(database: Database) -> None:
    stopped = Stopped()
    beginning = asyncio.create_task(epochs.begin_epoch(database, 0, stopped, event_of))
    await stopped.reached.wait()
    registering = asyncio.create_task(registered(database))
    await eventually(lambda: waiting_for_a_lock(database))
    stopped.release.set()
    await beginning

    replica_id, answer = await registering

    assert answer.epoch == 2
    assert await row_ids(database) == {replica_id}


async def test_killed_in_its_wait_it_has_changed_nothing_and_can_be_repeated(database: Database) -> None:
    replica_id, _ = await registered(database, 7000)
    before = await end_of_log(database)
    stopped = Stopped()
    beginning = asyncio.create_task(epochs.begin_epoch(database, 0, stopped, event_of))
    await stopped.reached.wait()
    beginning.cancel()
    await asyncio.wait({beginning})

    assert await row_ids(database) == {replica_id}
    after = await end_of_log(database)
    assert (after.epoch, after.nonce) == (before.epoch, before.nonce)
    revision, departed = await epochs.begin_epoch(database, 0, at_once, event_of)
    assert (revision.epoch, departed) == (2, epochs.Departed(1, 7000))


async def test_two_at_once_begin_two_epochs_one_after_the_other(database: Database) -> None:
    await registered(database)
    begun = await asyncio.gather(begin(database), begin(database))
    assert sorted(revision.epoch for revision in begun) == [2, 3]


async def test_a_report_of_the_former_epoch_is_refused_though_its_change_is_in_the_log(database: Database) -> None:
    replica_id, _ = await registered(database)
    await put_account(database, "acme")
    end = await end_of_log(database)
    async with database.reading() as connection:
        kept = await connection.fetchrow("SELECT * FROM replicas")
        assert kept is not None
        await begin(database)
        # As a restore that brought the row back after all would have it.
        await connection.execute(
            "INSERT INTO replicas SELECT * FROM json_populate_record(NULL::replicas, $1::json)",
            json.dumps(dict(kept), default=str),
        )
        assert not await replicas.report(connection, replica_id, end.number, end.nonce)
        renewed = await replicas.renew(connection, replica_id)
    assert renewed is not None
    assert renewed.epoch == 2


async def test_its_audit_event_is_in_the_chain(database: Database) -> None:
    await put_account(database, "acme")
    await registered(database)
    async with database.reading() as connection:
        former = await connection.fetchval("SELECT audit_head FROM state")
    await begin(database)
    await put_account(database, "acme")

    async with database.reading() as connection:
        event, following = await connection.fetch("SELECT * FROM audit_events ORDER BY event_id OFFSET 1")
    assert (event["actor"], event["action"], event["subject"]) == ("direct", "NewEpoch", "epoch:2")
    assert json.loads(event["before"]) == {"replicas": 1}
    content = {
        "time": event["time"].isoformat(timespec="microseconds"),
        **{key: event[key] for key in ("account_id", "actor", "on_behalf_of", "action", "subject", "peer")},
        "tokens": [],
        "before": {"replicas": 1},
        "after": None,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).digest()
    assert (event["event_id"], event["epoch"], event["revision"]) == (2, 2, 1)
    assert event["chain"] == hashlib.sha256(former + struct.pack("!qqq", 2, 2, 1) + digest).digest()
    assert following["action"] == "Test"
    assert following["chain"] != event["chain"]


async def test_a_backup_from_months_ago_gets_the_audits_partition_of_this_month(database: Database) -> None:
    async with database.reading() as connection:
        partitions = await connection.fetch("SELECT inhrelid::regclass::text AS name FROM pg_inherits "
                                            "WHERE inhparent = 'audit_events'::regclass")  # fmt: skip
        for partition in partitions:
            await connection.execute(f"DROP TABLE {partition['name']}")
    assert (await begin(database)).epoch == 2


async def test_a_database_without_anything_of_doorwards_is_named(empty_database_url: str) -> None:
    async with opened(empty_database_url) as database:
        with pytest.raises(DatabaseUnusable, match="restore the backup"):
            await begin(database)


async def test_a_schema_without_a_deployment_is_refused(database: Database) -> None:
    async with database.reading() as connection:
        await connection.execute("DELETE FROM state")
    with pytest.raises(Unavailable, match="no deployment"):
        await begin(database)


async def test_it_works_through_a_pool_of_one_connection(database_url: str) -> None:
    async with opened(database_url, pool_size=1) as database:
        assert (await begin(database)).epoch == 2
