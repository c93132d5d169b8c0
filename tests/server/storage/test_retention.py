"""What retention deletes, and above all what it must leave."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from doorward_server.model import Refusal
from doorward_server.storage import changes, refusals, replicas, retention, tokens
from doorward_server.storage.changes import Decided, commit
from tests.support.database import a_stored_secret, a_token, change_of, event_of, issue_token, put_account

if TYPE_CHECKING:
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

AT_ONCE = timedelta(0)
DAY = timedelta(days=1)


async def kept_changes(database: Database) -> list[int]:
    async with database.reading() as connection:
        return [row["revision"] for row in await connection.fetch("SELECT revision FROM changes ORDER BY 1")]


async def delete_changes(database: Database, kept: timedelta = AT_ONCE, limit: int = 100) -> int:
    async with database.reading() as connection:
        return await retention.delete_changes(connection, kept, limit)


async def registered(database: Database) -> str:
    """A replica that stands at the log's end."""
    replica_id = str(uuid.uuid4())
    async with database.session() as connection:
        await replicas.register(connection, replica_id, 5000, "test")
    return replica_id


async def report(database: Database, replica_id: str) -> bool:
    """Says that it has applied everything."""
    async with database.reading() as connection:
        end = await changes.read_end(connection)
        return await replicas.report(connection, replica_id, end.number, end.nonce)


async def revoke(database: Database, token_id: str, days_ago: int) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        await tokens.revoke(tx, token_id, "")
        return Decided(None, change_of(f"token:{token_id}", "acme"), event_of(f"token:{token_id}"))

    await commit(database, decide, accounts=["acme"])
    async with database.reading() as connection:
        await connection.execute(
            "UPDATE tokens SET revoke_time = revoke_time - $2::interval WHERE token_id = $1", token_id, DAY * days_ago
        )


async def issue_to(database: Database, token_id: str, recipient: str) -> None:
    """Issues a token whose secret was handed to another one."""

    async def decide(tx: Transaction) -> Decided[None]:
        token = replace(a_token(token_id, "acme", tx.now), created_by=recipient)
        await tokens.insert(tx, token, a_stored_secret(), recipient)
        return Decided(None, change_of(f"token:{token_id}", "acme"), event_of(f"token:{token_id}"))

    await commit(database, decide, accounts=["acme"])


async def token_ids(database: Database) -> set[str]:
    async with database.reading() as connection:
        return {row["token_id"] for row in await connection.fetch("SELECT token_id FROM tokens")}


# ---- the change log


async def test_the_newest_change_stays_whatever_its_age(database: Database) -> None:
    for _ in range(5):
        await put_account(database, "acme")
    assert await delete_changes(database) == 4
    assert await delete_changes(database) == 0
    assert await kept_changes(database) == [5]


async def test_a_young_change_stays(database: Database) -> None:
    for _ in range(5):
        await put_account(database, "acme")
    assert await delete_changes(database, timedelta(hours=1)) == 0
    async with database.reading() as connection:
        await connection.execute("UPDATE changes SET commit_time = commit_time - interval '2 hours' WHERE revision < 3")
    assert await delete_changes(database, timedelta(hours=1)) == 2
    assert await kept_changes(database) == [3, 4, 5]


async def test_what_one_replica_has_not_applied_stays(database: Database) -> None:
    await put_account(database, "acme")
    await put_account(database, "acme")
    slow, swift = await registered(database), await registered(database)
    for _ in range(4):
        await put_account(database, "acme")
    assert await report(database, swift)

    assert await delete_changes(database) == 1
    assert await kept_changes(database) == [2, 3, 4, 5, 6], "the slow one stands at 2 and reads on from 3"
    assert await report(database, slow)
    assert await delete_changes(database) == 4
    assert await kept_changes(database) == [6]


async def test_a_replica_whose_own_position_is_gone_still_reports_the_next_change(database: Database) -> None:
    await put_account(database, "acme")
    replica_id = await registered(database)
    await put_account(database, "acme")
    assert await report(database, replica_id)
    assert await delete_changes(database) == 1
    # Its row says 2; change 3 comes, change 2 goes as soon as it says so.
    await put_account(database, "acme")
    assert await report(database, replica_id)
    assert await delete_changes(database) == 1
    assert await kept_changes(database) == [3]
    async with database.reading() as connection:
        (row,) = await replicas.read_rows(connection)
    assert row.applied_revision == 3


async def test_who_reads_on_from_a_deleted_change_finds_a_later_one_and_so_knows(database: Database) -> None:
    for _ in range(5):
        await put_account(database, "acme")
    await delete_changes(database)
    async with database.reading() as connection:
        assert [row.number for row in await changes.read_after(connection, 2, 100)] == [5]


async def test_only_so_many_go_at_a_time_and_the_oldest_first(database: Database) -> None:
    for _ in range(6):
        await put_account(database, "acme")
    assert await delete_changes(database, limit=2) == 2
    assert await kept_changes(database) == [3, 4, 5, 6]


async def test_while_another_replica_is_at_it_nothing_is_deleted(database: Database) -> None:
    for _ in range(3):
        await put_account(database, "acme")
    async with database.session() as other:
        await other.execute("BEGIN")
        await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('doorward retention', 0))")
        assert await delete_changes(database) == 0
        await other.execute("ROLLBACK")
    assert await delete_changes(database) == 2


# ---- tokens


async def delete_tokens(database: Database, kept: timedelta = DAY * 30) -> int:
    async with database.reading() as connection:
        return (await retention.delete_tokens(connection, kept, 100)).deleted


@pytest.fixture
async def acme(database: Database) -> Database:
    await put_account(database, "acme")
    return database


async def test_long_revoked_tokens_go_with_everything_of_theirs_and_no_others(acme: Database) -> None:
    for token_id in ("live", "young", "old"):
        await issue_token(acme, token_id, "acme", labels={"team": "data"})
    await revoke(acme, "young", 29)
    await revoke(acme, "old", 31)

    assert await delete_tokens(acme) == 1
    assert await token_ids(acme) == {"live", "young"}
    async with acme.reading() as connection:
        for table in ("token_secrets", "grants", "token_labels", "token_activity"):
            left = await connection.fetch(f"SELECT DISTINCT token_id FROM {table}")  # noqa: S608 - names from above
            assert {row["token_id"] for row in left} == {"live", "young"}, table
        assert await connection.fetchval("SELECT live_tokens FROM accounts") == 1
        assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE subject = 'token:old'") == 2


async def test_a_revoked_token_stays_while_another_has_a_secret_that_was_handed_to_it(acme: Database) -> None:
    await issue_token(acme, "leaked", "acme")
    await issue_to(acme, "between", "token:leaked")
    await issue_to(acme, "child", "token:between")
    await issue_to(acme, "own", "token:own")
    for token_id in ("leaked", "between", "own"):
        await revoke(acme, token_id, 31)

    # From `leaked` to `child` the line runs through `between`.
    assert await delete_tokens(acme) == 1
    assert await token_ids(acme) == {"leaked", "between", "child"}

    await revoke(acme, "child", 31)
    assert [await delete_tokens(acme) for _ in range(3)] == [1, 1, 1]
    assert await token_ids(acme) == set()


async def test_tokens_go_in_batches_that_step_over_what_stays(acme: Database) -> None:
    await issue_token(acme, "parent", "acme")
    await issue_to(acme, "child", "token:parent")
    await revoke(acme, "parent", 40)
    for number in range(5):
        await issue_token(acme, f"t{number}", "acme")
        await revoke(acme, f"t{number}", 39 - number)

    last, deleted = retention.FROM_START, []
    async with acme.reading() as connection:
        for _ in range(4):
            last = await retention.delete_tokens(connection, DAY * 30, 2, last)
            deleted.append((last.deleted, last.seen))
    assert deleted == [(1, 2), (2, 2), (2, 2), (0, 0)]
    assert await token_ids(acme) == {"parent", "child"}


# ---- refusals


async def test_old_refusals_go(database: Database) -> None:
    refusal = Refusal("anonymous", "Check", "", None, "CREDENTIAL_UNRECOGNIZED", "10.0.0.9")
    day_us = 86_400_000_000
    async with database.reading() as connection:
        await refusals.write(connection, [(day_us * days, refusal) for days in (40, 35, 31, 29, 0)])
        assert await retention.delete_refusals(connection, DAY * 30, 2) == 2
        assert await retention.delete_refusals(connection, DAY * 30, 2) == 1
        assert await connection.fetchval("SELECT count(*) FROM refusals") == 2
