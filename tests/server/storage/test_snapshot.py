"""Several statements of one moment: what is committed between two of them is seen by neither, and nothing lingers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from doorward_server.errors import Unavailable
from doorward_server.storage import accounts
from doorward_server.storage.failures import StatementRefused
from doorward_server.storage.snapshot import snapshot
from tests.support.database import opened, put_account

if TYPE_CHECKING:
    from doorward_server.storage.pool import Database

IN_TRANSACTION = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"


async def test_what_is_committed_in_between_is_not_seen(database: Database) -> None:
    await put_account(database, "acme", "team")
    async with snapshot(database) as connection:
        before = await accounts.read(connection, "acme")
        await put_account(database, "acme", "enterprise")
        await put_account(database, "other")
        assert await accounts.read(connection, "acme") == before
        assert await accounts.read(connection, "other") is None
    async with snapshot(database) as connection:
        after = await accounts.read(connection, "acme")
    assert after is not None
    assert after.plan == "enterprise"


async def test_nothing_can_be_written_in_it(database: Database) -> None:
    with pytest.raises(Unavailable):  # as by a primary that was deposed
        async with snapshot(database) as connection:
            await connection.execute("UPDATE state SET revision = revision + 1")


@pytest.mark.parametrize("how", ["left", "failed", "refused"])
async def test_its_connection_is_good_for_the_next_one(database_url: str, how: str) -> None:
    async with opened(database_url, pool_size=1) as database:
        try:
            async with snapshot(database) as connection:
                if how == "failed":
                    await connection.execute("SELECT 1 / 0")
                if how == "refused":
                    raise LookupError
        except (StatementRefused, LookupError):
            pass
        await put_account(database, "acme")
        async with database.reading() as connection:
            assert await accounts.read(connection, "acme") is not None
            assert await connection.fetchval(IN_TRANSACTION) == 0


async def test_one_that_is_cancelled_leaves_no_transaction_behind(database: Database) -> None:
    entered = asyncio.Event()

    async def linger() -> None:
        async with snapshot(database):
            entered.set()
            await asyncio.Event().wait()

    lingering = asyncio.ensure_future(linger())
    await entered.wait()
    lingering.cancel()
    await asyncio.wait({lingering})
    async with snapshot(database) as connection:
        assert await accounts.read(connection, "acme") is None
