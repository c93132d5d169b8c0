"""Applying the change log (design section 7, Apply)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.failpoints import Failpoint
from tests.support.database import issue_token, put_account
from tests.support.replica import paused, running
from tests.support.stepped import SteppedClock, SteppedTiming, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.pool import Database

TOKEN = "t" * 16


async def test_a_change_is_applied_when_it_is_notified(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        revision = await put_account(database, "acme")
        # The clock stands still, so no poll can have found it.
        await replica.applied(revision.number)


async def test_without_the_notification_the_poll_finds_it(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    with paused(Failpoint.NOTIFY_DROP):
        async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
            await replica.usable()
            revision = await put_account(database, "acme")
            clock.advance(1300)
            await replica.applied(revision.number)


async def test_what_a_change_touches_is_evicted_and_the_rest_stays(database: Database, tmp_path: Path) -> None:
    for account_id in ("acme", "bolt"):
        await put_account(database, account_id)
        await issue_token(database, (account_id * 4)[:16], account_id)
    async with running(database, tmp_path) as replica:
        await replica.usable()
        tables = replica.holding.tables
        await replica.caches.fill("token", "acme" * 4)
        await replica.caches.fill("token", "bolt" * 4)
        await replica.caches.fill("project", "nowhere")
        revision = await put_account(database, "acme", plan="enterprise")
        await replica.applied(revision.number)
        assert tables.accounts.get("acme") is None
        assert tables.accounts.get("bolt") is not None
        assert tables.tokens.get("bolt" * 4) is not None
        assert tables.projects.get("nowhere") is not None


async def test_an_unknown_id_is_forgotten_when_it_is_issued(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        await replica.caches.fill("token", TOKEN)
        assert replica.holding.tables.tokens.unknown_count == 1
        revision = await issue_token(database, TOKEN, "acme")
        await replica.applied(revision.number)
        assert replica.holding.tables.tokens.unknown_count == 0


async def test_many_changes_are_applied_in_order(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.APPLY_BEFORE) as pause:
            for number in range(30):
                await put_account(database, f"account-{number}")
            pause.release()
        await replica.applied(30)
        assert str(replica.holding.revision) == "1.30"


async def test_a_gap_in_the_log_starts_the_replica_anew(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        generation = replica.holding.history.generation
        with paused(Failpoint.NOTIFY_DROP):
            await put_account(database, "acme")
            await put_account(database, "bolt")
            async with database.reading() as connection:
                await connection.execute("DELETE FROM changes WHERE revision = 1")
        replica.keeper.hurry()
        await eventually(lambda: replica.holding.history.generation > generation)
        await replica.usable()
        assert replica.holding.applied == 2


async def test_a_log_truncated_past_the_replica_starts_it_anew(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        generation = replica.holding.history.generation
        with paused(Failpoint.NOTIFY_DROP):
            await put_account(database, "acme")
            async with database.reading() as connection:
                await connection.execute("DELETE FROM changes")
        replica.keeper.hurry()
        await eventually(lambda: replica.holding.history.generation > generation)
        await replica.usable()
