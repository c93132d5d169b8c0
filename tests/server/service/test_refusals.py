"""The record of refusals: bounded in rate and in memory, complete in its counts, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from doorward_server.service import refusals as module
from doorward_server.service.refusals import ANONYMOUS, KINDS, OF_ALL_UNPROVED, OF_ONE_KIND, QUEUE, Refusals
from doorward_server.storage.pool import Database
from tests.support.stepped import SteppedClock, SteppedTiming, eventually, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.database import DatabaseProxy

SECOND_MS = 1_000


class Record:
    """The record under test, on a clock that the test steps."""

    def __init__(self, database: Database) -> None:
        self.clock = SteppedClock()
        self.database = database
        self.refusals = Refusals(database, SteppedTiming(self.clock))

    def refuse(
        self, actor: str = "token:t", reason: str = "EXCEEDS_CALLER", peer: str = "10.0.0.9", times: int = 1
    ) -> None:
        for _ in range(times):
            self.refusals.record(
                actor=actor, action="IssueToken", subject="account:acme", account_id=None, reason=reason, peer=peer
            )

    async def rows(self) -> list[dict[str, Any]]:
        async with self.database.reading() as connection:
            return [dict(row) for row in await connection.fetch("SELECT * FROM refusals ORDER BY refusal_id")]

    async def accounted_for(self) -> int:
        """How many refusals the rows tell of: themselves, and those that they say were left out."""
        return sum(1 + row["suppressed"] for row in await self.rows())

    def tells_of(self, count: int) -> Callable[[], Awaitable[bool]]:
        async def condition() -> bool:
            return await self.accounted_for() == count

        return condition


@pytest.fixture
def record(database: Database) -> Record:
    return Record(database)


@pytest.fixture
async def running(record: Record) -> AsyncIterator[Record]:
    """The same, with its background part."""
    task = asyncio.ensure_future(record.refusals.run())
    await settled()
    yield record
    task.cancel()
    await asyncio.wait({task})


async def test_a_refusal_is_written_within_a_second_with_the_databases_time(running: Record) -> None:
    async with running.database.reading() as connection:
        before = await connection.fetchval("SELECT clock_timestamp()")
    running.refusals.record(
        actor="operator:o", action="RevokeToken", subject="token:t", account_id="acme", reason="TOKEN_NOT_FOUND",
        peer="10.0.0.9",
    )  # fmt: skip
    running.clock.advance(SECOND_MS)
    await eventually(running.tells_of(1))

    (row,) = await running.rows()
    told = {name: row[name] for name in ("actor", "action", "subject", "account_id", "reason", "peer", "suppressed")}
    assert told == {
        "actor": "operator:o",
        "action": "RevokeToken",
        "subject": "token:t",
        "account_id": "acme",
        "reason": "TOKEN_NOT_FOUND",
        "peer": "10.0.0.9",
        "suppressed": 0,
    }
    # It was refused a second ago by our clock, and the database's moved on meanwhile.
    assert abs((row["time"] - before).total_seconds()) < 2


async def test_it_is_outside_the_chain(record: Record) -> None:
    record.refuse()
    await record.refusals.flush()
    async with record.database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM audit_events") == 0
        assert await connection.fetchval("SELECT audit_head FROM state") == bytes(32)
    assert await record.accounted_for() == 1


async def test_of_a_flood_of_one_kind_a_few_are_written_and_the_rest_is_counted(record: Record) -> None:
    record.refuse(times=1_000)
    await record.refusals.flush()
    rows = await record.rows()
    assert [row["suppressed"] for row in rows] == [0] * OF_ONE_KIND.burst + [1_000 - OF_ONE_KIND.burst - 1]
    assert await record.accounted_for() == 1_000


async def test_after_the_flood_its_count_is_written_even_if_nothing_follows(running: Record) -> None:
    running.refuse(times=100)
    # The allowance for one more comes back, and nothing of the kind was refused for a moment.
    running.clock.advance(OF_ONE_KIND.interval_ns / 1e6)
    await eventually(running.tells_of(100))
    assert len(await running.rows()) == OF_ONE_KIND.burst + 1


async def test_one_actors_flood_leaves_the_others_their_own_record(record: Record) -> None:
    record.refuse("token:loud", times=500)
    record.refuse("token:quiet")
    record.refuse("token:loud", reason="TOKEN_NOT_FOUND")
    await record.refusals.flush()
    written = Counter((row["actor"], row["reason"]) for row in await record.rows())
    assert written["token:quiet", "EXCEEDS_CALLER"] == 1
    assert written["token:loud", "TOKEN_NOT_FOUND"] == 1


async def test_unproved_callers_are_told_apart_by_their_address_and_cannot_drown_the_proved(record: Record) -> None:
    for number in range(OF_ALL_UNPROVED.burst * 3):
        record.refuse(ANONYMOUS, reason="CREDENTIAL_UNRECOGNIZED", peer=f"10.0.{number // 250}.{number % 250}")
    record.refuse("operator:o")
    assert len(record.refusals._queue) == OF_ALL_UNPROVED.burst + 1
    await record.refusals.flush()
    rows = await record.rows()
    assert [row["actor"] for row in rows].count("operator:o") == 1
    assert await record.accounted_for() == OF_ALL_UNPROVED.burst * 3 + 1


async def test_only_so_many_kinds_are_told_apart_and_the_others_are_counted_together(record: Record) -> None:
    for number in range(KINDS + 500):
        record.refuse(f"token:t{number}")
    assert len(record.refusals._kinds) == KINDS + 1
    await record.refusals.flush()
    assert await record.accounted_for() == KINDS + 500


async def test_a_kind_that_has_nothing_left_to_say_is_forgotten(running: Record) -> None:
    running.refuse(times=3)

    def is_forgotten() -> bool:
        running.clock.advance(SECOND_MS)
        return not running.refusals._kinds

    await eventually(is_forgotten)
    assert len(await running.rows()) == 3


async def test_what_the_database_does_not_take_is_written_later(database_proxy: DatabaseProxy) -> None:
    database = Database(database_proxy.url, hold_ms=500)
    await database.open()
    try:
        record = Record(database)
        record.refuse(times=3)
        database_proxy.stall_answers()
        with capture_logs() as logs:
            await record.refusals.flush()
        assert [entry["event"] for entry in logs if "refusals" in entry["event"]] == ["refusals_not_written"]
        database_proxy.heal()
        await record.refusals.flush()
        # Whether the unanswered statement was done, nobody knows; nothing is lost, and at the worst it stands there twice.
        assert await record.accounted_for() in {3, 6}
    finally:
        await database.close()


async def test_a_database_that_is_away_costs_no_more_memory_than_the_queue(record: Record) -> None:
    for number in range(QUEUE * 2):
        record.refuse(f"token:t{number % 2_000}")
        record.clock.advance(SECOND_MS)
    assert len(record.refusals._queue) == QUEUE
    assert len(record.refusals._kinds) <= KINDS + 1
    await record.refusals.flush()
    assert await record.accounted_for() == QUEUE * 2


async def test_rows_that_cannot_be_written_do_not_block_the_others(record: Record, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    record.refuse("token:nul\x00")
    record.refuse("token:fine")
    with capture_logs() as logs:
        await record.refusals.flush()
    assert [row["actor"] for row in await record.rows()] == ["token:fine"]
    assert [entry["count"] for entry in logs if entry["event"] == "refusals_lost"] == [1]
