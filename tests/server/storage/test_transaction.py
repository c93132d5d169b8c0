"""A frozen writer cannot hold the door, and a COMMIT counts as done only when the server said so plainly."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from doorward_server import errors, failpoints
from doorward_server.failpoints import Failpoint
from doorward_server.storage import accounts
from doorward_server.storage.changes import Committed, Decided, commit
from doorward_server.storage.transaction import Bounds
from tests.support.database import change_of, event_of, opened, put_account

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database
    from tests.support.database import DatabaseProxy

SHORT_HOLD_MS = 600


@contextlib.contextmanager
def stop_at(point: Failpoint, stop: Callable[[], Awaitable[None]]) -> Iterator[None]:
    failpoints.arm(point, stop)
    try:
        yield
    finally:
        failpoints.disarm(point)


async def rename(tx: Transaction) -> Decided[None]:
    before = await accounts.read(tx.connection, "acme")
    await accounts.upsert_account(tx, before, "acme", "Renamed", "team")
    return Decided(None, change_of("account:acme", "acme"), event_of("account:acme"))


async def change_catalog(tx: Transaction) -> Decided[None]:
    return Decided(None, change_of("catalog:"), event_of("catalog:"))


async def value_at(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


class Freeze:
    """A stop that holds whoever comes first; the others pass."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.thaw = asyncio.Event()

    async def __call__(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            await self.thaw.wait()


def test_all_bounds_are_below_the_hold_and_in_their_order() -> None:
    for hold_ms in (500, 5000, 300_000):
        bounds = Bounds.of(hold_ms)
        assert 0 < bounds.idle_ms < bounds.lock_ms < bounds.statement_ms < hold_ms
        assert bounds.commit_s == 2 * hold_ms / 1000


async def test_the_time_outs_hold_inside_the_transaction_only(database: Database) -> None:
    names = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout", "transaction_isolation")
    inside: list[str] = []

    async def decide(tx: Transaction) -> Decided[None]:
        inside.extend([await tx.connection.fetchval("SELECT current_setting($1)", name) for name in names])
        return await change_catalog(tx)

    await commit(database, decide)

    assert inside == ["2500ms", "3750ms", "4375ms", "read committed"]
    async with database.reading() as connection:
        assert await connection.fetchval("SHOW lock_timeout") == "0"


@pytest.mark.parametrize("point", [Failpoint.MUTATION_AFTER_LOCK, Failpoint.MUTATION_BEFORE_COMMIT])
async def test_a_writer_that_stopped_with_the_locks_loses_them(database_url: str, point: Failpoint) -> None:
    freeze = Freeze()
    async with opened(database_url, hold_ms=3 * SHORT_HOLD_MS) as database, asyncio.TaskGroup() as group:
        await put_account(database, "acme")
        with stop_at(point, freeze):
            frozen = group.create_task(outcome_of(commit(database, rename, accounts=["acme"])))
            await freeze.reached.wait()

            committed = await commit(database, rename, accounts=["acme"])
            freeze.thaw.set()
            refused = await frozen

    assert str(committed.revision) == "1.2", "the frozen writer's revision was never given away"
    assert isinstance(refused, errors.Unavailable)
    assert await value_at(database_url, "SELECT count(*) FROM changes") == 2


async def outcome_of(operation: Awaitable[Committed[None]]) -> Committed[None] | errors.Refused:
    try:
        return await operation
    except errors.Refused as refused:
        return refused


async def test_a_lock_that_is_not_to_be_had_ends_the_change(database_url: str) -> None:
    blocker = await asyncpg.connect(database_url)
    async with opened(database_url, hold_ms=SHORT_HOLD_MS) as database:
        await put_account(database, "acme")
        async with blocker.transaction():
            await blocker.execute("SELECT FROM accounts FOR UPDATE")
            with pytest.raises(errors.Unavailable) as refused:
                await commit(database, rename, accounts=["acme"])
            assert refused.value.reason == "DATABASE_UNAVAILABLE"
        assert str((await commit(database, rename, accounts=["acme"])).revision) == "1.2"
    await blocker.close()


async def test_a_statement_that_never_ends_is_ended(database_url: str) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        await tx.connection.execute("SELECT pg_sleep(3600)")
        raise AssertionError("it ended by itself")

    async with opened(database_url, hold_ms=SHORT_HOLD_MS) as database:
        with pytest.raises(errors.Unavailable) as refused:
            await commit(database, decide)
        assert refused.value.reason == "DATABASE_UNAVAILABLE"


async def test_a_commit_whose_acknowledgement_is_lost_is_no_success(
    database_proxy: DatabaseProxy, database_url: str
) -> None:
    async def stall() -> None:
        database_proxy.stall_answers()

    async with opened(database_proxy.url, hold_ms=500) as database:
        with stop_at(Failpoint.MUTATION_BEFORE_COMMIT, stall), pytest.raises(errors.Unavailable) as refused:
            await put_account(database, "acme")

        assert refused.value.reason == "COMMIT_UNKNOWN"
        assert await value_at(database_url, "SELECT count(*) FROM accounts") == 1, "it was made, but who could know"
        database_proxy.heal()
        assert str(await put_account(database, "acme")) == "1.2", "the next change takes a new connection"
    assert database_proxy.cancel_requests == 0


async def test_a_line_that_breaks_after_commit_was_sent_is_no_success(database_proxy: DatabaseProxy) -> None:
    async def break_before_the_answer() -> None:
        database_proxy.stall_answers()
        asyncio.get_running_loop().call_later(0.1, database_proxy.cut)

    async with opened(database_proxy.url) as database:
        with (
            stop_at(Failpoint.MUTATION_BEFORE_COMMIT, break_before_the_answer),
            pytest.raises(errors.Unavailable) as refused,
        ):
            await put_account(database, "acme")
    assert refused.value.reason == "COMMIT_UNKNOWN"


async def test_the_failpoint_of_a_lost_acknowledgement_is_no_success(database: Database) -> None:
    async def lose() -> None:
        raise ConnectionResetError

    with stop_at(Failpoint.MUTATION_ACK_LOST, lose), pytest.raises(errors.Unavailable) as refused:
        await put_account(database, "acme")
    assert refused.value.reason == "COMMIT_UNKNOWN"


async def at_commit(url: str, body: str) -> None:
    """Lets the server run `body` (PL/pgSQL) while it commits whatever inserted an account."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        f"CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION at_commit()"
    )
    await connection.close()


async def test_a_warning_on_commit_is_no_success(database: Database, database_url: str) -> None:
    await at_commit(database_url, "RAISE WARNING 'canceling wait for synchronous replication';")

    with pytest.raises(errors.Unavailable) as refused:
        await put_account(database, "acme")

    assert refused.value.reason == "COMMIT_UNKNOWN"
    assert await value_at(database_url, "SELECT count(*) FROM accounts") == 1


async def test_a_notice_on_commit_is_a_success(database: Database, database_url: str) -> None:
    await at_commit(database_url, "RAISE NOTICE 'nothing to worry about';")

    assert str(await put_account(database, "acme")) == "1.1"


async def test_a_server_that_goes_away_during_commit_is_no_success(database: Database, database_url: str) -> None:
    await at_commit(database_url, "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60);")

    with pytest.raises(errors.Unavailable) as refused:
        await put_account(database, "acme")
    assert refused.value.reason == "COMMIT_UNKNOWN"


async def test_a_serialization_failure_at_commit_is_tried_again_and_then_aborted(
    database: Database, database_url: str
) -> None:
    await at_commit(database_url, "RAISE EXCEPTION USING ERRCODE = 'serialization_failure';")
    decisions = 0

    async def decide(tx: Transaction) -> Decided[None]:
        nonlocal decisions
        decisions += 1
        return await rename(tx)

    with pytest.raises(errors.Aborted) as refused:
        await commit(database, decide, accounts=["acme"])

    assert (refused.value.reason, decisions) == ("CHANGED_CONCURRENTLY", 4)
    assert await value_at(database_url, "SELECT count(*) FROM accounts") == 0


async def test_a_caller_that_leaves_during_the_decision_leaves_nothing_and_sends_no_cancel_request(
    database_proxy: DatabaseProxy, database_url: str
) -> None:
    asked = asyncio.Event()

    async def decide(tx: Transaction) -> Decided[None]:
        await rename(tx)
        asked.set()
        await tx.connection.execute("SELECT pg_sleep(3600)")
        raise AssertionError("it ended by itself")

    async with opened(database_proxy.url) as database:
        mutation = asyncio.create_task(commit(database, decide, accounts=["acme"]))
        await asked.wait()
        mutation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mutation
        assert str(await put_account(database, "other")) == "1.1"

    assert database_proxy.cancel_requests == 0
    assert await value_at(database_url, "SELECT count(*) FROM accounts") == 1


async def test_a_caller_that_leaves_during_commit_sends_no_cancel_request(
    database_proxy: DatabaseProxy, database_url: str
) -> None:
    sent = asyncio.Event()

    async def stall() -> None:
        database_proxy.stall_answers()
        sent.set()

    async with opened(database_proxy.url) as database:
        with stop_at(Failpoint.MUTATION_BEFORE_COMMIT, stall):
            mutation = asyncio.create_task(put_account(database, "acme"))
            await sent.wait()
            while await value_at(database_url, "SELECT count(*) FROM accounts") == 0:
                pass
            mutation.cancel()
            with pytest.raises(asyncio.CancelledError):
                await mutation
        database_proxy.heal()
        assert str(await put_account(database, "acme")) == "1.2"

    assert database_proxy.cancel_requests == 0
