"""`Database`: what connects where, what is bounded, and that no driver error and no cancel request gets out."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from doorward_server import errors
from doorward_server.storage.failures import DatabaseUnusable, StatementRefused
from doorward_server.storage.pool import Database
from doorward_server.storage.url import parse
from tests.support.database import opened, put_account

if TYPE_CHECKING:
    from tests.support.database import DatabaseProxy
    from tests.support.postgres import PostgresServer


async def execute_at(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def set_default(url: str, setting: str, value: str) -> None:
    await execute_at(url, f'ALTER DATABASE "{parse(url).database}" SET {setting} = {value}')


async def pid_of(database: Database) -> int:
    async with database.reading() as connection:
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid


async def test_the_environment_does_not_change_what_is_connected_to(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGOPTIONS", "PGKRBSRVNAME"):
        monkeypatch.setenv(name, "9")
    for name, value in {
        "PGSSLMODE": "verify-full",
        "PGSSLNEGOTIATION": "direct",
        "PGTARGETSESSIONATTRS": "standby",
        "PGPASSFILE": "/nowhere",
        "PGSERVICEFILE": "/nowhere",
        "PGGSSLIB": "nonsense",
    }.items():
        monkeypatch.setenv(name, value)

    async with opened(database_url) as database, database.reading() as connection:
        row = await connection.fetchrow(
            "SELECT current_user AS role, current_database() AS name, current_setting('application_name') AS client"
        )
    assert row is not None
    assert (row["role"], row["name"], row["client"]) == (
        parse(database_url).user,
        parse(database_url).database,
        "doorward",
    )


async def test_sessions_have_our_settings_whatever_the_database_says(database_url: str) -> None:
    await set_default(database_url, "timezone", "'Asia/Tokyo'")
    await set_default(database_url, "client_min_messages", "error")
    await set_default(database_url, "default_transaction_isolation", "serializable")

    async with opened(database_url) as database, database.reading() as connection:
        settings = [
            await connection.fetchval("SELECT current_setting($1)", name)
            for name in ("timezone", "client_min_messages", "transaction_isolation", "statement_timeout")
        ]
    assert settings == ["UTC", "warning", "read committed", "4375ms"]


async def test_behind_a_transaction_pooler_nothing_is_set_that_it_refuses(database_url: str) -> None:
    database = Database(database_url, hold_ms=5000, pooler="transaction")
    await database.open()
    async with database.reading() as connection:
        sources = await connection.fetch("SELECT name FROM pg_settings WHERE source = 'client' ORDER BY name")
        await connection.fetchval("SELECT $1::int", 1)
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
    await database.close()
    assert {row["name"].lower() for row in sources} <= {"application_name", "client_encoding", "timezone"}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql:///x?host=/nowhere&user=me", "/nowhere:5432 cannot be used .FileNotFoundError"),
        ("postgresql://me:hunter2@127.0.0.1:1/x", "127.0.0.1:1 cannot be used .ConnectionRefusedError"),
    ],
)
async def test_a_database_that_cannot_be_reached_is_named_at_the_start(url: str, says: str) -> None:
    with pytest.raises(DatabaseUnusable, match=says) as refused:
        await Database(url, hold_ms=5000).open()
    assert "hunter2" not in str(refused.value)


async def test_a_database_that_does_not_exist_is_named_at_the_start(postgres_server: PostgresServer) -> None:
    with pytest.raises(DatabaseUnusable, match="InvalidCatalogNameError 3D000"):
        await Database(postgres_server.url("nowhere"), hold_ms=5000).open()


async def test_a_database_that_forgets_what_it_acknowledged_is_refused(database_url: str) -> None:
    await set_default(database_url, "synchronous_commit", "off")

    with pytest.raises(DatabaseUnusable, match="--accept-failover-loss"):
        await Database(database_url, hold_ms=5000).open()

    accepted = Database(database_url, hold_ms=5000, accept_failover_loss=True)
    await accepted.open()
    await accepted.close()


async def test_several_hosts_without_synchronous_replication_are_refused(database_url: str) -> None:
    (host, port), *_ = parse(database_url).hosts
    several = f"postgresql:///{parse(database_url).database}?host={host},{host}&port={port},{port}&user=doorward"

    with pytest.raises(DatabaseUnusable, match="synchronous_standby_names"):
        await Database(several, hold_ms=5000).open()

    accepted = Database(several, hold_ms=5000, accept_failover_loss=True)
    await accepted.open()
    await accepted.close()


async def test_a_host_that_is_down_or_read_only_is_passed_over(
    database_url: str, postgres_server: PostgresServer
) -> None:
    (host, port), *_ = parse(database_url).hosts
    several = f"postgresql:///{parse(database_url).database}?host=/nowhere,{host}&port={port},{port}&user=doorward"
    database = Database(several, hold_ms=5000, accept_failover_loss=True)
    await database.open()
    assert await pid_of(database) > 0
    await database.close()

    await set_default(database_url, "default_transaction_read_only", "on")
    with pytest.raises(DatabaseUnusable, match="TargetServerAttributeNotMatched"):
        await Database(database_url, hold_ms=5000).open()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"version": 140011}, "PostgreSQL 14 is too old"),
        ({"encoding": "LATIN1"}, "LATIN1"),
        ({"synchronous_commit": "off"}, "synchronous_commit=off"),
    ],
)
def test_an_unfit_server_is_refused(changed: dict[str, Any], says: str) -> None:
    found = {"version": 150000, "synchronous_commit": "on", "standbys": "", "encoding": "UTF8"}
    connector = Database("postgresql://db1/x", hold_ms=5000).connector
    connector._check(found)
    with pytest.raises(DatabaseUnusable, match=says):
        connector._check(found | changed)


@pytest.mark.parametrize(
    ("synchronous_commit", "standbys", "fit"),
    [
        ("on", "ANY 1 (a, b)", True),
        ("remote_apply", "a", True),
        ("on", "", False),
        ("local", "a", False),
        ("remote_write", "a", False),
    ],
)
def test_several_hosts_need_a_commit_that_is_on_two_disks(synchronous_commit: str, standbys: str, fit: bool) -> None:
    found = {"version": 180000, "synchronous_commit": synchronous_commit, "standbys": standbys, "encoding": "UTF8"}
    connector = Database("postgresql://db1,db2/x", hold_ms=5000).connector
    with contextlib.nullcontext() if fit else pytest.raises(DatabaseUnusable, match="several hosts"):
        connector._check(found)


async def test_a_wait_for_a_connection_is_bounded(database_url: str) -> None:
    async with opened(database_url, hold_ms=1000, pool_size=1) as database:
        async with database.reading() as connection:
            lent = await connection.fetchval("SELECT pg_backend_pid()")
            with pytest.raises(errors.Unavailable) as refused:
                await pid_of(database)
        assert refused.value.reason == "DATABASE_UNAVAILABLE"
        assert await pid_of(database) == lent, "a crowded pool is no reason to give its connections up"


async def test_writers_that_wait_for_a_lock_leave_connections_to_readers(database_url: str) -> None:
    blocker = await asyncpg.connect(database_url)
    async with opened(database_url, pool_size=4) as database:
        await put_account(database, "acme")
        async with blocker.transaction():
            await blocker.execute("SELECT FROM accounts FOR UPDATE")
            writers = [asyncio.create_task(put_account(database, "acme")) for _ in range(12)]
            while await blocker.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") == 0:
                pass
            pids = await asyncio.gather(pid_of(database), pid_of(database))
            assert len(set(pids)) == 2
        await asyncio.gather(*writers)
    await blocker.close()


async def test_a_database_that_is_not_open_is_unavailable(database_url: str) -> None:
    database = Database(database_url, hold_ms=5000)
    with pytest.raises(errors.Unavailable):
        await pid_of(database)
    await database.open()
    await database.close()
    await database.close()
    with pytest.raises(errors.Unavailable):
        await pid_of(database)


async def test_an_unanswered_read_ends_with_its_connection(database_proxy: DatabaseProxy) -> None:
    async with opened(database_proxy.url, hold_ms=500) as database:
        former = await pid_of(database)
        database_proxy.stall_answers()
        with pytest.raises(errors.Unavailable) as refused:
            await pid_of(database)
        assert refused.value.reason == "DATABASE_UNAVAILABLE"
        database_proxy.heal()
        assert await pid_of(database) != former
    assert database_proxy.cancel_requests == 0


async def test_a_cancelled_read_ends_with_its_connection_and_sends_no_cancel_request(
    database_proxy: DatabaseProxy,
) -> None:
    asked = asyncio.Event()

    async def read(database: Database) -> None:
        async with database.reading() as connection:
            asked.set()
            await connection.execute("SELECT pg_sleep(3600)")

    async with opened(database_proxy.url, pool_size=1) as database:
        former = await pid_of(database)
        reading = asyncio.create_task(read(database))
        await asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await pid_of(database) != former
    assert database_proxy.cancel_requests == 0


async def test_an_error_of_the_caller_keeps_the_connection(database_url: str) -> None:
    async with opened(database_url, pool_size=1) as database:
        former = await pid_of(database)
        with pytest.raises(errors.NotFound):
            async with database.reading():
                raise errors.NotFound("TEST", "not here")
        assert await pid_of(database) == former


async def test_a_refused_statement_says_nothing_of_its_values(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StatementRefused) as refused:
        async with database.reading() as connection:
            await connection.execute("SELECT $1::text::int", "hunter2")
    with pytest.raises(StatementRefused):
        async with database.reading() as connection:
            await connection.execute("SELECT $1::int", "hunter2")

    assert str(refused.value) == "The database refused a statement (InvalidTextRepresentationError 22P02)."
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert "hunter2" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("sqlstate", ["25006", "57P01", "08006", "55P03", "57014"])
async def test_a_failover_expires_every_pooled_connection(database_url: str, sqlstate: str) -> None:
    async with opened(database_url) as database:
        async with contextlib.AsyncExitStack() as stack:
            lent = [await stack.enter_async_context(database.reading()) for _ in range(3)]
            former = {await connection.fetchval("SELECT pg_backend_pid()") for connection in lent}
        with pytest.raises(errors.Unavailable):
            async with database.reading() as connection:
                await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$")

        async with contextlib.AsyncExitStack() as stack:
            lent = [await stack.enter_async_context(database.reading()) for _ in range(3)]
            assert former.isdisjoint({await connection.fetchval("SELECT pg_backend_pid()") for connection in lent})


async def test_an_ordinary_error_expires_nothing(database_url: str) -> None:
    async with opened(database_url, pool_size=1) as database:
        former = await pid_of(database)
        with pytest.raises(StatementRefused):
            async with database.reading() as connection:
                await connection.execute("SELECT 1/0")
        assert await pid_of(database) == former


async def test_sessions_that_the_server_ended_are_replaced(database_url: str) -> None:
    async with opened(database_url) as database:
        former = await pid_of(database)
        await execute_at(database_url, f"SELECT pg_terminate_backend({former}, 5000)")
        with contextlib.suppress(errors.Unavailable):  # whether its end was seen before it was lent is a race
            await pid_of(database)
        assert await pid_of(database) != former
        assert str(await put_account(database, "acme")) == "1.1"


async def test_closing_does_not_wait_for_a_reader_that_hangs(database_url: str) -> None:
    asked = asyncio.Event()

    async def hang(database: Database) -> None:
        async with database.reading() as connection:
            asked.set()
            await connection.execute("SELECT pg_sleep(3600)")

    async with opened(database_url, hold_ms=300_000) as database:
        reading = asyncio.create_task(hang(database))
        await asked.wait()
    with pytest.raises(errors.Unavailable):
        await reading
