"""The rows of last use: never back, never for what is gone, and without deadlocks between replicas."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from doorward_server.storage import usage
from tests.support.database import issue_token, put_account

if TYPE_CHECKING:
    from doorward_server.storage.pool import Database

AT_ONCE = timedelta(0)
MINUTE = timedelta(minutes=1)


async def now(database: Database) -> datetime:
    async with database.reading() as connection:
        found: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return found


def in_us(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


async def use(database: Database, *uses: tuple[str, datetime], closer_than: timedelta = AT_ONCE) -> None:
    async with database.reading() as connection:
        await usage.write_uses(connection, [(token_id, in_us(time)) for token_id, time in uses], closer_than)


async def activity(database: Database, token_id: str) -> tuple[datetime | None, datetime]:
    async with database.reading() as connection:
        row = await connection.fetchrow(
            "SELECT last_used_time, idle_since FROM token_activity WHERE token_id = $1", token_id
        )
    assert row is not None
    return row["last_used_time"], row["idle_since"]


@pytest.fixture
async def issued(database: Database) -> datetime:
    """A token `one` was issued; the database's time before that."""
    before = await now(database)
    await put_account(database, "acme")
    await issue_token(database, "one", "acme")
    return before


async def test_a_use_is_kept_to_the_microsecond_and_ends_the_idleness(database: Database, issued: datetime) -> None:
    last_used, idle_since = await activity(database, "one")
    assert last_used is None
    used_at = await now(database)
    await use(database, ("one", used_at))
    assert idle_since < used_at
    assert await activity(database, "one") == (used_at, used_at)


async def test_an_earlier_use_moves_nothing_back(database: Database, issued: datetime) -> None:
    used_at = await now(database)
    await use(database, ("one", used_at))
    await use(database, ("one", used_at - MINUTE))
    assert await activity(database, "one") == (used_at, used_at)


async def test_a_use_by_a_clock_that_is_ahead_counts_as_now(database: Database, issued: datetime) -> None:
    await use(database, ("one", await now(database) + MINUTE))
    last_used, _ = await activity(database, "one")
    assert last_used is not None
    assert issued < last_used <= await now(database)


async def test_what_another_replica_has_just_written_is_left_alone(database: Database, issued: datetime) -> None:
    used_at = await now(database) - MINUTE
    await use(database, ("one", used_at))
    await use(database, ("one", used_at + timedelta(seconds=30)), closer_than=MINUTE / 2)
    assert (await activity(database, "one"))[0] == used_at
    await use(database, ("one", used_at + timedelta(seconds=31)), closer_than=MINUTE / 2)
    assert (await activity(database, "one"))[0] == used_at + timedelta(seconds=31)


async def test_a_token_that_is_gone_is_skipped(database: Database, issued: datetime) -> None:
    used_at = await now(database)
    await use(database, ("gone", used_at), ("one", used_at))
    assert (await activity(database, "one"))[0] == used_at
    async with database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM token_activity") == 1


async def test_what_no_list_asks_for_any_more_does_not_come_back_into_one(database: Database, issued: datetime) -> None:
    async with database.reading() as connection:
        await connection.execute("UPDATE token_activity SET idle_since = NULL")
        used_at = await now(database)
        await use(database, ("one", used_at))
        row = await connection.fetchrow("SELECT last_used_time, idle_since FROM token_activity")
    assert row is not None
    assert tuple(row) == (used_at, None)


MANY_MORE = """
INSERT INTO tokens
SELECT (jsonb_populate_record(tokens, jsonb_build_object('token_id', 'more' || number, 'ordinal', -number))).*
FROM tokens, generate_series(1, 5000) AS number WHERE token_id = 'one'
"""
THEIR_ACTIVITY = """
INSERT INTO token_activity (token_id, account_id, idle_since, ordinal)
SELECT token_id, account_id, create_time, ordinal FROM tokens WHERE token_id LIKE 'more%'
"""


async def test_replicas_that_write_the_same_tokens_do_not_stand_in_each_others_way(
    database: Database, issued: datetime
) -> None:
    async with database.reading() as connection:
        # So many that the planner goes by the index, in whatever order the ids are given.
        await connection.execute(MANY_MORE)
        await connection.execute(THEIR_ACTIVITY)
        await connection.execute("ANALYZE token_activity")
    token_ids = [f"more{number}" for number in range(1, 61)]
    base = await now(database)

    async def replica(number: int) -> None:
        order = token_ids if number % 2 else token_ids[::-1]
        for step in range(20):
            time = base - MINUTE + timedelta(milliseconds=step * 10 + number)
            await use(database, *((token_id, time) for token_id in order))

    # A deadlock would raise DATABASE_UNAVAILABLE.
    await asyncio.gather(*(replica(number) for number in range(4)))
    newest = base - MINUTE + timedelta(milliseconds=19 * 10 + 3)
    assert {(await activity(database, token_id))[0] for token_id in token_ids} == {newest}
