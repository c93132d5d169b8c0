"""Shared loads behind fences (design section 7, Load; tests 2-5 of the model's faults)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from doorward.core.token_table import UNKNOWN
from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from tests.support.database import DatabaseProxy, issue_token, opened, put_account
from tests.support.issuing import put_project, revoke
from tests.support.replica import paused, running
from tests.support.stepped import eventually, settled

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.pool import Database

TOKEN = "t" * 16


async def test_a_load_that_a_change_overtook_serves_nobody(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    await issue_token(database, TOKEN, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.LOAD_AFTER_SNAPSHOT) as pause:
            load = asyncio.ensure_future(replica.caches.fill("token", TOKEN))
            await pause.reached.wait()
            await replica.applied(await revoke(database, "acme", TOKEN))
            # Whoever joins now waits for the same load, and must not be served by it either.
            joined = asyncio.ensure_future(replica.caches.fill("token", TOKEN))
            await settled()
            pause.release()
            await asyncio.gather(load, joined)
        assert replica.holding.tables.tokens.get(TOKEN) is None
        await replica.caches.fill("token", TOKEN)
        entry = replica.holding.tables.tokens.get(TOKEN)
        assert entry is not None
        assert entry is not UNKNOWN
        assert entry[2] is True


async def test_an_unknown_that_a_change_overtook_is_not_remembered(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.LOAD_AFTER_SNAPSHOT) as pause:
            load = asyncio.ensure_future(replica.caches.fill("project", "p1"))
            await pause.reached.wait()
            await replica.applied(await put_project(database, "acme", "p1"))
            pause.release()
            await load
        assert replica.holding.tables.projects.get("p1") is None


async def test_a_token_in_flight_while_its_plan_changes_is_not_installed(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme", plan="enterprise")
    await issue_token(database, TOKEN, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.LOAD_AFTER_SNAPSHOT) as pause:
            load = asyncio.ensure_future(replica.caches.fill("token", TOKEN))
            await pause.reached.wait()
            revision = await put_account(database, "acme", plan="team")
            await replica.applied(revision.number)
            pause.release()
            await load
        assert replica.holding.tables.tokens.get(TOKEN) is None
        assert replica.holding.tables.accounts.get("acme") is None


async def test_a_load_waits_until_its_snapshot_is_applied(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.APPLY_BEFORE) as pause:
            await issue_token(database, TOKEN, "acme")
            await pause.reached.wait()
            load = asyncio.ensure_future(replica.caches.fill("account", "acme"))
            await eventually(lambda: replica.holding.tables.accounts.in_flight("acme") is not None)
            await settled()
            assert not load.done()
            assert replica.holding.tables.accounts.get("acme") is None
            pause.release()
            await load
        assert replica.holding.tables.accounts.get("acme") is not None


async def test_a_load_of_an_older_registration_is_discarded(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.LOAD_AFTER_SNAPSHOT) as pause:
            load = asyncio.ensure_future(replica.caches.fill("account", "acme"))
            await pause.reached.wait()
            generation = replica.holding.history.generation
            replica.holding.begin_anew("the test says so")
            await eventually(lambda: replica.holding.history.generation > generation)
            pause.release()
            await load
        assert replica.holding.tables.accounts.get("acme") is None


async def test_a_load_from_another_history_is_refused(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path, without=("feed",)) as replica:
        await replica.usable()
        async with database.reading() as connection:
            await connection.execute("UPDATE state SET nonce = $1", b"otherone")
        await replica.caches.fill("account", "acme")
        assert replica.holding.tables.accounts.get("acme") is None


async def test_whoever_gives_up_does_not_cancel_the_others_load(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.LOAD_BEFORE_SNAPSHOT) as pause:
            first = asyncio.ensure_future(replica.caches.fill("account", "acme"))
            await pause.reached.wait()
            second = asyncio.ensure_future(replica.caches.fill("account", "acme"))
            await settled()
            first.cancel()
            await asyncio.wait({first})
            pause.release()
            await second
            assert pause.count == 1
        assert replica.holding.tables.accounts.get("acme") is not None


async def test_an_error_is_never_remembered(database_proxy: DatabaseProxy, tmp_path: Path) -> None:
    async with (
        opened(database_proxy.url, hold_ms=1000, pool_size=2) as database,
        running(database, tmp_path, hold_ms=1000) as replica,
    ):
        await replica.usable()
        await put_account(database, "acme")
        database_proxy.stall_answers()
        with pytest.raises(Unavailable):
            await replica.caches.fill("account", "acme")
        assert replica.holding.tables.accounts.get("acme") is None
        assert replica.holding.tables.accounts.load_count == 0
        database_proxy.heal()
        database_proxy.cut()
        await replica.usable()
        await eventually(lambda: replica.holding.registration_due is None)
        await replica.caches.fill("account", "acme")
        assert replica.holding.tables.accounts.get("acme") is not None


async def test_nothing_is_loaded_before_the_registration(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path, without=("keeper",)) as replica:
        with pytest.raises(Unavailable, match="registered"):
            await replica.caches.fill("account", "acme")
