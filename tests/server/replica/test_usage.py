"""Last use: gathered by checks, written at intervals, and lost only with the process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from doorward.core.token_table import Tables
from doorward_server.replica import usage as module
from doorward_server.replica.holding import Holding
from doorward_server.replica.usage import Usage
from doorward_server.storage.pool import Database
from tests.support.database import issue_token, put_account
from tests.support.stepped import SteppedClock, SteppedTiming, eventually, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tests.support.database import DatabaseProxy

INTERVAL_S = 30.0


class Gathering:
    """A replica's buffer and the part that writes it, on a clock that the test steps."""

    def __init__(self, database: Database) -> None:
        self.clock = SteppedClock()
        self.database = database
        self.holding = Holding(SteppedTiming(self.clock), hold_ms=5000, tables=Tables(100), proofs=100)
        self.usage = Usage(self.holding, database, INTERVAL_S)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.usage.run())
        await settled()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def now_us(self) -> int:
        async with self.database.reading() as connection:
            now: int = await connection.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        return now

    async def last_used_us(self) -> int | None:
        async with self.database.reading() as connection:
            found: int | None = await connection.fetchval(
                "SELECT (extract(epoch FROM last_used_time) * 1000000)::bigint FROM token_activity WHERE token_id = 'one'"
            )
        return found


async def gathering(database: Database) -> Gathering:
    await put_account(database, "acme")
    await issue_token(database, "one", "acme")
    return Gathering(database)


async def test_uses_are_written_once_an_interval(database: Database) -> None:
    parts = await gathering(database)
    async with parts.running():
        used_us = parts.holding.used["one"] = await parts.now_us()
        parts.clock.advance(INTERVAL_S * 1000 - 1)
        await settled()
        assert await parts.last_used_us() is None
        parts.clock.advance(1)

        async def is_written() -> bool:
            return await parts.last_used_us() == used_us

        await eventually(is_written)
    assert not parts.holding.used


async def test_many_are_written_before_the_interval_is_over(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY", 3)
    monkeypatch.setattr(module, "BATCH", 2)
    parts = await gathering(database)
    async with parts.running():
        parts.holding.used.update(dict.fromkeys(("one", "two", "three"), await parts.now_us()))
        parts.clock.advance(1_000)

        async def is_written() -> bool:
            return await parts.last_used_us() is not None

        await eventually(is_written)


async def test_the_rest_is_written_at_the_end(database: Database) -> None:
    parts = await gathering(database)
    used_us = parts.holding.used["one"] = await parts.now_us()
    await parts.usage.flush()
    assert await parts.last_used_us() == used_us


async def test_what_the_database_does_not_take_is_kept_for_the_next_time(database_proxy: DatabaseProxy) -> None:
    database = Database(database_proxy.url, hold_ms=500)
    await database.open()
    try:
        parts = await gathering(database)
        used_us = await parts.now_us()
        parts.holding.used["one"] = used_us
        database_proxy.stall_answers()
        with capture_logs() as logs:
            writing = asyncio.ensure_future(parts.usage.flush())
            await eventually(lambda: not parts.holding.used)
            # Used again while the write is on its way: that is the later one, and it stays.
            parts.holding.used["two"] = used_us + 1
            await writing
        assert [entry["event"] for entry in logs if "uses" in entry["event"]] == ["uses_not_written"]
        assert parts.holding.used == {"one": used_us, "two": used_us + 1}
        database_proxy.heal()
        await parts.usage.flush()
        assert await parts.last_used_us() == used_us
    finally:
        await database.close()
