"""Fixtures: one real PostgreSQL for the whole session, and databases in it that a test has to itself.

    async with postgres_server.database() as url: ...              # a new, empty database
    async with postgres_server.database(template=name) as url: ... # a copy of one that was prepared once

The server is the product's own embedded one, in a temporary directory; only fsync is off, since no test here cuts power.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import asyncpg
import pytest

from doorward_server.embedded.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


# A cluster or two of some 50 MB each, and the databases of a session.
_ROOM_BYTES: Final = 2 * 1024 * 1024 * 1024


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new directory, gone afterwards; in memory where there is room for it.

    A database is 300 files, and an ext4 without a journal, as build machines have, spends a millisecond on making each
    when as many were removed in the minutes before.
    """
    memory = Path("/dev/shm")  # noqa: S108 - the directory in it is new and private
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="doorward-tests-", dir=memory if roomy else None) as directory:
        yield Path(directory)


class PostgresServer:
    """A running PostgreSQL; its databases are made and dropped by name, from any event loop."""

    def __init__(self, embedded: EmbeddedPostgres) -> None:
        self._embedded = embedded

    def url(self, database: str = "postgres") -> str:
        """The URL of a database of this server, there or not."""
        return self._embedded.url_of(database)

    async def create_database(self, *, template: str = "template0") -> str:
        """Makes a database as a copy of `template`, to which nobody may be connected; its name."""
        name = f"test_{uuid4().hex}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        return name

    async def drop_database(self, name: str) -> None:
        """Drops it, ending the sessions that are still in it."""
        await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @contextlib.asynccontextmanager
    async def database(self, *, template: str = "template0") -> AsyncIterator[str]:
        """The URL of a database that is dropped at the end of the block."""
        name = await self.create_database(template=template)
        try:
            yield self.url(name)
        finally:
            await self.drop_database(name)

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One embedded PostgreSQL, shared by the whole session."""
    # Its own loop, run only to start and to stop it: a test's loop lives as long as the test.
    with (
        scratch_directory() as directory,
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
    ):
        embedded = EmbeddedPostgres(directory / "data", parameters={"fsync": "off"})
        runner.run(embedded.start())
        try:
            yield PostgresServer(embedded)
        finally:
            runner.run(embedded.stop())
