"""Migrations: each applied once, by whoever comes first, all or none; a schema that is too new is refused."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from doorward_server.storage.failures import DatabaseUnusable, StatementRefused
from doorward_server.storage.migrate import Migration, migrate, migrations, seed
from doorward_server.storage.pool import Database
from tests.support.database import HOLD_MS, opened

if TYPE_CHECKING:
    from typing import Any

SECOND = Migration(9001, "9001_second.sql", "CREATE TABLE second (one int)", needs_code=1)


@pytest.fixture
def unmigrated(empty_database_url: str) -> Database:
    return Database(empty_database_url, hold_ms=HOLD_MS)


async def column(url: str, query: str) -> list[Any]:
    async with opened(url) as database, database.reading() as connection:
        return [row[0] for row in await connection.fetch(query)]


def test_the_files_are_numbered_without_gap_and_say_what_they_need() -> None:
    known = migrations()
    assert [migration.number for migration in known] == list(range(1, len(known) + 1))
    assert all(migration.needs_code <= migration.number for migration in known)


async def test_each_is_applied_once(unmigrated: Database, empty_database_url: str) -> None:
    names = [migration.name for migration in migrations()]
    assert await migrate(unmigrated) == names
    assert await migrate(unmigrated) == []
    assert await migrate(unmigrated, [*migrations(), SECOND]) == ["9001_second.sql"]
    assert await column(empty_database_url, "SELECT name FROM schema_migrations ORDER BY number") == [
        *names,
        "9001_second.sql",
    ]


async def test_of_many_that_start_at_once_one_applies(unmigrated: Database) -> None:
    applied = await asyncio.gather(*(migrate(unmigrated) for _ in range(6)))
    assert sorted(map(len, applied)) == [0] * 5 + [len(migrations())]


async def test_a_migration_that_fails_leaves_nothing_of_any(unmigrated: Database, empty_database_url: str) -> None:
    broken = Migration(9001, "9001_broken.sql", "CREATE TABLE half (one int); SELECT 1/0", needs_code=1)
    with pytest.raises(StatementRefused):
        await migrate(unmigrated, [*migrations(), broken])
    assert await column(empty_database_url, "SELECT relname FROM pg_class WHERE relname IN ('half', 'tokens')") == []


async def test_a_schema_that_this_code_does_not_know_is_refused(unmigrated: Database) -> None:
    newer = Migration(9001, "9001_newer.sql", "DROP TABLE usage", needs_code=9001)
    await migrate(unmigrated, [Migration(1, "0001_first.sql", "CREATE TABLE usage (one int)", needs_code=1), newer])
    with pytest.raises(DatabaseUnusable, match=r"needs a server that knows migration 9001.*Run the newer version"):
        await migrate(unmigrated)


async def test_code_runs_on_a_newer_schema_that_allows_it(unmigrated: Database) -> None:
    await migrate(unmigrated, [*migrations(), SECOND])
    assert await migrate(unmigrated) == []


async def test_a_file_that_was_changed_after_it_was_applied_is_refused(unmigrated: Database) -> None:
    first = Migration(1, "0001_first.sql", "SELECT 1", needs_code=1)
    await migrate(unmigrated, [first])
    with pytest.raises(DatabaseUnusable, match=r"0001_initial\.sql is not the one that was applied"):
        await migrate(unmigrated)


async def test_a_database_that_is_not_there_is_unusable(empty_database_url: str) -> None:
    with pytest.raises(DatabaseUnusable, match="cannot be used"):
        await migrate(Database(empty_database_url.replace("test_", "gone_"), hold_ms=HOLD_MS))


async def test_a_deployment_is_seeded_once(unmigrated: Database, empty_database_url: str) -> None:
    await migrate(unmigrated)
    async with opened(empty_database_url) as database:
        seeded = await asyncio.gather(*(seed(database, f"catalog {number}", {"k": "f"}) for number in range(4)))
        assert sorted(seeded) == [False, False, False, True]
        async with database.reading() as connection:
            row = await connection.fetchrow("SELECT * FROM state")
    assert row is not None
    assert (row["epoch"], row["revision"], row["catalog_version"], row["audit_head"]) == (1, 0, 1, bytes(32))
    assert len(row["nonce"]) == 8
    assert row["nonce"] != bytes(8)
    assert row["catalog"] == f'{{"toml": "catalog {seeded.index(True)}"}}'


async def test_the_audit_has_partitions_of_three_months_by_utc(database: Database) -> None:
    async with database.reading() as connection:
        rows = await connection.fetch(
            "SELECT inhrelid::regclass::text AS name, pg_get_expr(relpartbound, inhrelid) AS bound FROM pg_inherits"
            " JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'audit_events'::regclass ORDER BY 1"
        )
        now: datetime = await connection.fetchval("SELECT now()")
    month = now.astimezone(UTC).year * 12 + now.astimezone(UTC).month - 1
    months = [(number // 12, number % 12 + 1) for number in range(month, month + 4)]
    assert [row["name"] for row in rows] == [f"audit_events_{year:04}_{number:02}" for year, number in months[:3]]
    assert [row["bound"] for row in rows] == [
        f"FOR VALUES FROM ('{a:04}-{b:02}-01 00:00:00+00') TO ('{c:04}-{d:02}-01 00:00:00+00')"
        for (a, b), (c, d) in itertools.pairwise(months)
    ]
