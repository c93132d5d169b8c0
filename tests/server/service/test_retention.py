"""Retention as a part of the server: the audit's months go without breaking its chain, and 0 keeps for ever."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from doorward_server.service.audit_chain import ChainBroken, Noted, verify
from doorward_server.service.retention import Retention
from doorward_server.settings import Settings
from doorward_server.storage import audit, audit_chain
from doorward_server.storage.audit_chain import Run, events_in_order
from doorward_server.storage.audit_retention import merged
from tests.support.database import issue_token, opened, put_account
from tests.support.stepped import PATIENCE_S, SteppedClock, SteppedTiming, eventually, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from doorward_server.storage.pool import Connection, Database

PARTITION = """
DO $$
DECLARE first_day timestamptz := (date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => {months}))
                                 AT TIME ZONE 'UTC';
BEGIN
    EXECUTE format('CREATE TABLE %I PARTITION OF audit_events FOR VALUES FROM (%L) TO (%L)',
                   'audit_events_' || to_char(first_day AT TIME ZONE 'UTC', 'YYYY_MM'), first_day,
                   first_day AT TIME ZONE 'UTC' + interval '1 month');
END
$$
"""


class Kept:
    """A deployment with retention on a clock that the test steps."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        self.clock = SteppedClock()
        self.settings = Settings(**settings)
        self.retention = Retention(self.settings, database, SteppedTiming(self.clock))

    async def partitions(self) -> list[str]:
        async with self.database.reading() as connection:
            rows = await connection.fetch(
                "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'audit_events'::regclass"
            )
        return sorted(row["name"] for row in rows)

    async def ids(self) -> list[int]:
        return [event.event_id async for event in events_in_order(self.database, 10_000)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.retention.run())
        await settled()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def months_ago(database: Database, months: int, day: int = 10) -> datetime:
    async with database.reading() as connection:
        found: datetime = await connection.fetchval(
            "SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => $1)) AT TIME ZONE 'UTC'",
            months,
        )
    return found + timedelta(days=day)


async def date_back(database: Database, times: Sequence[datetime]) -> None:
    """Makes it so that the events were written at these times: their times, and the chain with them."""
    async with database.reading() as connection:
        for months in range(1, 6):
            await connection.execute(PARTITION.format(months=months))
        chain = bytes(32)
        events = [event async for event in events_in_order(database, 10_000)]
        for stored, time in zip(events, [*times, *(event.time for event in events[len(times) :])], strict=True):
            digest = audit.event_digest(stored.event, time)
            chain = audit.chained(chain, stored.event_id, stored.epoch, stored.number, digest)
            await connection.execute(
                "UPDATE audit_events SET time = $2, chain = $3 WHERE event_id = $1", stored.event_id, time, chain
            )
        await connection.execute("UPDATE state SET audit_head = $1", chain)


@pytest.fixture
async def old(database: Database) -> Database:
    """Two events each of five, four, three, two, one months ago and of now; in order."""
    await put_account(database, "acme")
    for number in range(11):
        await issue_token(database, f"t{number}", "acme")
    await date_back(
        database,
        [await months_ago(database, months, day) for months in range(5, 0, -1) for day in (5, 25)],
    )
    return database


async def test_months_that_are_over_for_long_go_and_the_chain_goes_on(old: Database) -> None:
    kept = Kept(old, retention_audit_months=2)
    before = await verify(old)
    assert before.events == 12
    assert len(await kept.partitions()) == 8

    await kept.retention.keep_audit()

    # The three months before the last two are gone, each with an event of its own that says so.
    assert await kept.ids() == [*range(7, 13), 13, 14, 15]
    assert len(await kept.partitions()) == 5
    verified = await verify(old)
    assert (verified.events, verified.dropped, verified.last_event_id) == (9, 6, 15)
    assert await verify(old, Noted(12, before.chain)) == verified
    async with old.reading() as connection:
        told = await connection.fetchrow("SELECT * FROM audit_events WHERE event_id = 15")
    assert told is not None
    assert (told["actor"], told["on_behalf_of"], told["action"]) == ("direct", "retention", "DropAuditEvents")
    assert told["subject"] == f"audit:{await months_ago(old, 3):%Y-%m}"


async def test_what_is_taken_out_besides_is_found(old: Database) -> None:
    await Kept(old, retention_audit_months=2).retention.keep_audit()
    async with old.reading() as connection:
        await connection.execute("DELETE FROM audit_events WHERE event_id = 7")
    with pytest.raises(ChainBroken, match="event 7 is missing, and not because retention dropped"):
        await verify(old)


async def test_what_was_taken_out_before_a_month_went_is_found_afterwards(old: Database) -> None:
    async with old.reading() as connection:
        await connection.execute("DELETE FROM audit_events WHERE event_id = 3")
    await Kept(old, retention_audit_months=2).retention.keep_audit()
    with pytest.raises(ChainBroken, match="event 3 is missing"):
        await verify(old)


async def test_a_partition_that_somebody_else_dropped_is_found(old: Database) -> None:
    kept = Kept(old, retention_audit_months=2)
    async with old.reading() as connection:
        await connection.execute(f"DROP TABLE {(await kept.partitions())[0]}")
    with pytest.raises(ChainBroken, match="events 1 to 2 are missing"):
        await verify(old)


async def test_an_event_across_a_months_end_does_not_break_the_chain(database: Database) -> None:
    # Times are read before the order is decided: at a month's end a later event may lie in the earlier month.
    await put_account(database, "acme")
    for number in range(7):
        await issue_token(database, f"t{number}", "acme")
    end = await months_ago(database, 3, 0)
    just = timedelta(milliseconds=1)
    await date_back(
        database, [end - just * 9, end + just, end - just * 5, end + just * 3, end - just * 2, end + just * 5]
    )
    kept = Kept(database, retention_audit_months=3)

    await kept.retention.keep_audit()
    assert await kept.ids() == [2, 4, 6, *range(7, 11)]
    assert (await verify(database)).dropped == 3

    await Kept(database, retention_audit_months=2).retention.keep_audit()
    assert await kept.ids() == [*range(7, 12)]
    async with database.reading() as connection:
        runs = await audit_chain.read_dropped(connection, 11)
    assert [(run.first, run.last) for run in runs] == [(1, 6)]
    assert (await verify(database)).dropped == 6


@pytest.mark.parametrize(("reads", "dropped"), [(1, 6), (2, 6), (3, 6), (6, 0)])
async def test_verifying_while_months_go_finds_nothing_wrong(
    old: Database, monkeypatch: pytest.MonkeyPatch, reads: int, dropped: int
) -> None:
    monkeypatch.setattr(audit_chain, "CHUNK", 2)
    kept, begun = Kept(old, retention_audit_months=2), 0

    async with opened(_url_of(old)) as reader:
        reading = reader.reading

        @contextlib.asynccontextmanager
        async def interrupted() -> AsyncIterator[Connection]:
            nonlocal begun
            begun += 1
            if begun == reads + 1:
                await kept.retention.keep_audit()
            async with reading() as connection:
                yield connection

        monkeypatch.setattr(reader, "reading", interrupted)
        verified = await verify(reader)
    # What had been read by then is not missed.
    assert (verified.dropped, verified.last_event_id) == ((6, 15) if dropped else (0, 12))
    assert (await verify(old)).dropped == 6


async def test_without_a_number_of_months_the_audit_is_kept_for_ever(old: Database) -> None:
    kept = Kept(old, retention_audit_months=0)
    await kept.retention.keep_audit()
    assert await kept.ids() == [*range(1, 13)]


async def test_whoever_reads_the_audit_is_waited_for_no_longer_than_writers_may_wait(old: Database) -> None:
    async with (
        opened(_url_of(old), hold_ms=300_000) as patient,
        opened(_url_of(old)) as other,
        other.session() as reader,
    ):
        kept = Kept(patient, retention_audit_months=2)
        await reader.execute("BEGIN")
        await reader.execute("SELECT count(*) FROM audit_events")
        async with asyncio.timeout(PATIENCE_S):  # whatever a mutation would wait for a lock
            await kept.retention.keep_audit()
        assert len(await kept.ids()) == 12, "later, then"
        await put_account(old, "acme")
        await reader.execute("ROLLBACK")
        await kept.retention.keep_audit()
    assert (await verify(old)).dropped == 6


async def test_of_two_replicas_that_drop_at_once_each_month_is_dropped_once(old: Database) -> None:
    await asyncio.gather(*(Kept(old, retention_audit_months=2).retention.keep_audit() for _ in range(3)))
    await Kept(old, retention_audit_months=2).retention.keep_audit()
    verified = await verify(old)
    assert (verified.dropped, verified.last_event_id) == (6, 15)


async def test_a_forged_claim_of_what_was_dropped_is_built_upon_by_nobody(old: Database) -> None:
    await Kept(old, retention_audit_months=4).retention.keep_audit()
    async with old.reading() as connection:
        await connection.execute("UPDATE audit_events SET after = '{}' WHERE action = 'DropAuditEvents'")
    kept = Kept(old, retention_audit_months=2)
    with capture_logs() as logs:
        await kept.retention.keep_audit()
    assert "audit_chain_broken" in [entry["event"] for entry in logs]
    assert len(await kept.ids()) == 11


# ---- as it runs


async def test_it_looks_at_intervals_and_makes_the_coming_months(database: Database) -> None:
    kept = Kept(database, retention_interval=600, retention_changes=0)
    for _ in range(3):
        await put_account(database, "acme")
    newest = (await kept.partitions())[-1]
    async with database.reading() as connection:
        await connection.execute(f"DROP TABLE {newest}")

    async with kept.running():
        kept.clock.advance(599_999)
        await settled()
        async with database.reading() as connection:
            assert await connection.fetchval("SELECT count(*) FROM changes") == 3
        kept.clock.advance(1)

        async def is_shorter() -> bool:
            async with database.reading() as connection:
                return bool(await connection.fetchval("SELECT count(*) = 1 FROM changes"))

        await eventually(is_shorter)
    assert (await kept.partitions())[-1] == newest


async def test_it_goes_on_after_the_database_was_away(database: Database) -> None:
    kept = Kept(database, retention_interval=600, retention_changes=0)
    for _ in range(3):
        await put_account(database, "acme")
    async with kept.running():
        async with opened(_url_of(database)) as other, other.session() as connection:
            await connection.execute("ALTER TABLE changes RENAME TO away")
            with capture_logs() as logs:
                kept.clock.advance(600_000)
                await eventually(lambda: any(entry.get("work") == "keep_changes" for entry in logs))
            await connection.execute("ALTER TABLE away RENAME TO changes")

        async def is_shorter() -> bool:
            kept.clock.advance(600_000)
            async with database.reading() as connection:
                return bool(await connection.fetchval("SELECT count(*) = 1 FROM changes"))

        await eventually(is_shorter)


async def test_zero_days_keep_tokens_and_refusals_for_ever(database: Database) -> None:
    await put_account(database, "acme")
    await issue_token(database, "old", "acme")
    async with database.reading() as connection:
        await connection.execute("UPDATE tokens SET revoke_time = now() - interval '99 years'")
        await connection.execute(
            "INSERT INTO refusals (time, actor, action, subject, reason, peer)"
            " VALUES (now() - interval '99 years', 'anonymous', 'Check', '', 'CREDENTIAL_MISSING', '')"
        )
    for days, count in ((0, 1), (36_500, 1), (1, 0)):
        kept = Kept(database, retention_revoked_days=days, retention_refusals_days=days)
        await kept.retention.keep_tokens()
        await kept.retention.keep_refusals()
        async with database.reading() as connection:
            assert await connection.fetchval("SELECT count(*) FROM tokens") == count
            assert await connection.fetchval("SELECT count(*) FROM refusals") == count


def test_runs_that_touch_become_one() -> None:
    chains = [bytes([number]) * 32 for number in range(4)]
    runs = [Run(7, 9, chains[2]), Run(1, 4, chains[0]), Run(5, 5, chains[1]), Run(11, 11, chains[3])]
    assert merged(runs) == (Run(1, 5, chains[1]), Run(7, 9, chains[2]), Run(11, 11, chains[3]))
    assert merged([]) == ()


def _url_of(database: Database) -> str:
    (host, port), *_ = database.connector.url.hosts
    return f"postgresql:///{database.connector.url.database}?host={host}&port={port}&user={database.connector.url.user}"
