"""Fixture: a real server whose catalog has narrow minting sets (`minting.TOML`), shared by the session.

    def test_…(minting_stubs: Stubs): ...

Its database is seeded with that catalog before the server first sees it, so no test depends on another's ApplyCatalog.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from doorward_server.settings import Settings
from doorward_server.start import first_credentials, open_ring
from doorward_server.storage.migrate import migrate, seed
from doorward_server.storage.pool import Database
from tests.support import minting
from tests.support.server import start_server, stubs_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.postgres import PostgresServer
    from tests.support.server import Stubs


async def _begin(postgres_server: PostgresServer, data_dir: Path) -> str:
    name = await postgres_server.create_database()
    settings = Settings(data_dir=data_dir)
    ring = open_ring(settings)
    database = Database(postgres_server.url(name), hold_ms=settings.hold_ms)
    await migrate(database)
    await database.open()
    try:
        await seed(database, minting.TOML, {ring.current_id: ring.fingerprints()[ring.current_id]})
        await first_credentials(database, ring, data_dir)
    finally:
        await database.close()
    return name


@pytest.fixture(scope="session")
def minting_stubs(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    """Stubs on that server."""
    base = tmp_path_factory.mktemp("minting")
    data_dir = base / "data"
    data_dir.mkdir(mode=0o700)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        name = runner.run(_begin(postgres_server, data_dir))
        given = ("--database-url", postgres_server.url(name), "--pepper-file", str(data_dir / "pepper.keys"))
        running = start_server(data_dir, base / "scratch", given)
        try:
            with grpc.insecure_channel(running.address) as channel:
                yield stubs_on(channel, running)
        finally:
            assert running.stop() == 0
            runner.run(postgres_server.drop_database(name))
