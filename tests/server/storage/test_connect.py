"""Connections where a host of the URL keeps silent: it takes them, and says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from doorward_server.storage import url as database_url_module
from doorward_server.storage.line import Line, Unanswered
from tests.support.database import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database


@pytest.fixture
async def silent_directory() -> AsyncIterator[str]:
    """Where a socket is that everybody can connect to, and that nobody answers at."""
    release = asyncio.Event()

    async def keep_silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.transport.abort()

    with tempfile.TemporaryDirectory(prefix="doorward-silent-") as directory:
        server = await asyncio.start_unix_server(keep_silent, str(Path(directory, ".s.PGSQL.5432")))
        try:
            yield directory
        finally:
            server.close()
            release.set()


@contextlib.asynccontextmanager
async def on_two_hosts(database_url: str, silent: str, hold_ms: int) -> AsyncIterator[Database]:
    """A Database whose URL names the silent host first; told so only when it is open."""
    async with opened(database_url, hold_ms=hold_ms) as database:
        known = database.connector.url
        (host, port), *_ = known.hosts
        text = f"postgresql:///{known.database}?host={quote(f'{silent},{host}', safe='/,')}&port=5432,{port}&user={known.user}"
        connector = database.connector
        connector.url, connector.accept_failover_loss = database_url_module.parse(text), True
        connector.__post_init__()
        yield database


async def pid_of(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def test_whoever_gives_up_on_a_silent_host_is_connected_to_the_next_the_next_time(
    database_url: str, silent_directory: str
) -> None:
    async with on_two_hosts(database_url, silent_directory, 1000) as database:
        line = Line(database)
        with pytest.raises(Unanswered):
            await line.call(pid_of, 0.2)
        assert await line.call(pid_of, 5)
        await line.close()
        async with database.reading() as connection:
            assert await pid_of(connection), "the pool begins where the line got to"


async def test_a_host_that_left_a_call_unanswered_is_tried_after_the_others(
    database_url: str, silent_directory: str
) -> None:
    async with on_two_hosts(database_url, silent_directory, 1000) as database:
        line = Line(database)
        with pytest.raises(Unanswered):
            await line.call(pid_of, 0.2)
        with pytest.raises(Unanswered):
            await line.call(lambda connection: connection.execute("SELECT pg_sleep(60)"), 0.2)
        # Once: the silent one keeps it waiting, and then the first is found again.
        with pytest.raises(Unanswered):
            await line.call(pid_of, 0.2)
        assert await line.call(pid_of, 5)
        await line.close()


async def test_a_line_that_leads_elsewhere_than_the_last_acknowledged_write_is_made_anew(database: Database) -> None:
    hosts = database.connector.hosts
    hosts._count = 2
    keeper, other = Line(database), Line(database)
    former = await other.call(pid_of, 5)
    await keeper.call(pid_of, 5)
    assert other._connection is not None
    hosts.reached(1, other._connection)

    await keeper.found_primary()

    assert await other.call(pid_of, 5) != former
    for line in (keeper, other):
        await line.close()


async def test_the_pool_lends_nothing_that_may_lead_elsewhere(database: Database) -> None:
    hosts = database.connector.hosts
    hosts._count = 2
    keeper = Line(database)
    await keeper.call(pid_of, 5)
    await keeper.found_primary()
    async with database.reading() as connection:
        former = await pid_of(connection)
    await keeper.found_primary()
    async with database.reading() as connection:
        assert await pid_of(connection) == former, "nothing has led elsewhere"

    hosts._led_astray = True
    await keeper.found_primary()

    async with database.reading() as connection:
        assert await pid_of(connection) != former
    await keeper.close()
