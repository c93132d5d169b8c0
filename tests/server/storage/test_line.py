"""`Line`: answers in time or none, no cancel request ever, and news of NOTIFY across reconnects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from doorward_server import errors
from doorward_server.storage.failures import StatementRefused
from doorward_server.storage.line import Line, Unanswered
from doorward_server.storage.pool import Database
from tests.support.database import opened, put_account

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from doorward_server.storage.pool import Connection
    from tests.support.database import DatabaseProxy


async def pid_of(connection: Connection) -> int:
    pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid


async def sleep_forever(connection: Connection) -> None:
    await connection.execute("SELECT pg_sleep(3600)")


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    made = Line(database)
    yield made
    await made.close()


async def test_calls_share_one_connection_and_take_turns(line: Line) -> None:
    pids = await asyncio.gather(*(line.call(pid_of, 5) for _ in range(5)))
    assert len(set(pids)) == 1


async def test_what_is_not_answered_in_time_is_abandoned_with_its_connection(database_proxy: DatabaseProxy) -> None:
    async with opened(database_proxy.url) as database:
        line = Line(database)
        former = await line.call(pid_of, 5)
        with pytest.raises(Unanswered):
            await line.call(sleep_forever, 0.2)
        assert await line.call(pid_of, 5) != former
        await line.close()
    assert database_proxy.cancel_requests == 0


async def test_the_wait_for_the_turn_and_for_a_connection_count(database_proxy: DatabaseProxy) -> None:
    async with opened(database_proxy.url) as database:
        line = Line(database)
        asked = asyncio.Event()

        async def operation(connection: Connection) -> None:
            asked.set()
            await sleep_forever(connection)

        first = asyncio.create_task(line.call(operation, 0.4))
        await asked.wait()
        with pytest.raises(Unanswered):
            await line.call(pid_of, 0.1)
        assert not first.done(), "the one whose turn it is goes on"
        with pytest.raises(Unanswered):
            await first
        database_proxy.stall_answers()
        with pytest.raises(Unanswered):
            await line.call(pid_of, 0.2)
        database_proxy.heal()
        await line.call(pid_of, 5)
        await line.close()


async def test_a_caller_that_leaves_sends_no_cancel_request(database_proxy: DatabaseProxy) -> None:
    asked = asyncio.Event()

    async def operation(connection: Connection) -> None:
        asked.set()
        await sleep_forever(connection)

    async with opened(database_proxy.url) as database:
        line = Line(database)
        call = asyncio.create_task(line.call(operation, 5))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await line.call(pid_of, 5)
        await line.close()
    assert database_proxy.cancel_requests == 0


async def test_a_broken_line_is_unavailable_and_the_next_call_connects_anew(
    line: Line, database: Database, database_url: str
) -> None:
    former = await line.call(pid_of, 5)
    with pytest.raises(errors.Unavailable):
        await line.call(lambda connection: connection.execute("SELECT pg_terminate_backend(pg_backend_pid())"), 5)
    assert await line.call(pid_of, 5) != former


async def test_any_error_of_an_operation_drops_its_transaction(line: Line, database: Database) -> None:
    async def half(connection: Connection) -> None:
        await connection.execute("BEGIN")
        await connection.execute("UPDATE state SET revision = 99")
        raise ValueError("half done")

    with pytest.raises(ValueError, match="half done"):
        await line.call(half, 5)
    with pytest.raises(StatementRefused):
        await line.call(lambda connection: connection.execute("SELECT nothing"), 5)

    assert await line.call(lambda connection: connection.fetchval("SELECT revision FROM state"), 5) == 0


async def test_an_answer_with_a_warning_does_not_count(line: Line) -> None:
    async def warned(connection: Connection) -> str:
        return await connection.execute("DO $$ BEGIN RAISE WARNING 'cancelling wait'; END $$")

    with pytest.raises(errors.Unavailable):
        await line.call(warned, 5)
    await line.call(lambda connection: connection.execute("DO $$ BEGIN RAISE NOTICE 'fine'; END $$"), 5)


async def test_no_database_is_unavailable(database_proxy: DatabaseProxy, database_url: str) -> None:
    async with opened(database_proxy.url) as database:
        line = Line(database)
        connection = await asyncpg.connect(database_url)
        await connection.execute(f'ALTER DATABASE "{database.connector.url.database}" SET synchronous_commit = off')
        await connection.close()
        with pytest.raises(errors.Unavailable):
            await line.call(pid_of, 5)


async def test_a_listener_hears_every_change_and_every_loss(
    line: Line, database: Database, database_proxy: DatabaseProxy
) -> None:
    async with opened(database_proxy.url) as through_the_proxy:
        listening = Line(through_the_proxy)
        heard = asyncio.Event()
        await listening.call(pid_of, 5)
        await listening.listen("doorward", heard.set)
        await listening.call(pid_of, 5)
        assert not heard.is_set()

        await put_account(database, "acme")
        await hears(heard)

        database_proxy.cut()
        await hears(heard)

        await listening.call(pid_of, 5)
        await put_account(database, "acme")
        await hears(heard)
        await listening.close()


async def hears(heard: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await heard.wait()
    heard.clear()


async def test_behind_a_transaction_pooler_nothing_is_listened_to(database_url: str) -> None:
    database = Database(database_url, hold_ms=5000, pooler="transaction")
    line = Line(database)
    await line.listen("doorward", lambda: None)
    listened = await line.call(lambda connection: connection.fetch("SELECT pg_listening_channels()"), 5)
    assert listened == []
    await line.close()


async def test_terminate_ends_an_operation_in_flight(line: Line) -> None:
    asked = asyncio.Event()

    async def operation(connection: Connection) -> None:
        asked.set()
        await sleep_forever(connection)

    call = asyncio.create_task(line.call(operation, 60))
    await asked.wait()
    line.terminate()
    with pytest.raises(errors.Unavailable):
        await call
