"""A check under its lease (design section 7, Check)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from doorward.core.catalog import Catalog
from doorward.core.matrix import DenyReason
from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.service.authorize import Authorizer, Decision
from tests.support.database import put_account
from tests.support.issuing import issue, revoke
from tests.support.replica import Parts, paused, running
from tests.support.stepped import SteppedClock, SteppedTiming, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from doorward_server.replica.caches import Missing
    from doorward_server.storage.pool import Database


def asking(authorizer: Authorizer, secret: bytes) -> Callable[[int, set[bytes]], Decision | Missing]:
    """One check of an account-level-free permission on all projects: may it read the account's jobs at project p1?"""

    def attempt(now_us: int, refuted: set[bytes]) -> Decision | Missing:
        catalog = authorizer.find_catalog()
        if not isinstance(catalog, Catalog):
            return catalog
        permission = catalog.permissions["connections:read"]
        return authorizer.check(secret, permission, "acme", catalog=catalog, now_us=now_us, refuted=refuted)

    return attempt


def authorizer_of(replica: Parts) -> Authorizer:
    return Authorizer(replica.holding, replica.caches, replica.recognition)


async def test_without_a_lease_nothing_is_loaded(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path, without=("keeper",)) as replica:
        authorizer = authorizer_of(replica)
        with pytest.raises(Unavailable) as refused:
            await authorizer.under_lease(asking(authorizer, b"x"))
        assert refused.value.reason == "NO_LEASE"
        assert replica.holding.tables.catalogs.load_count == 0


async def test_allowed_then_revoked_then_denied(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        authorizer = authorizer_of(replica)
        secret = await issue(database, replica.ring, "acme")
        text = secret.reveal().encode()
        decision, _ = await authorizer.under_lease(asking(authorizer, text))
        assert decision == Decision(DenyReason.ALLOWED, secret.subject_id, "acme")
        await replica.applied(await revoke(database, "acme", secret.subject_id))
        decision, revision = await authorizer.under_lease(asking(authorizer, text))
        assert decision.reason is DenyReason.TOKEN_REVOKED
        assert revision.number == replica.holding.applied


async def test_a_check_never_uses_a_lease_newer_than_the_one_it_began_with(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        authorizer = authorizer_of(replica)
        secret = await issue(database, replica.ring, "acme")
        await replica.applied(2)
        with paused(Failpoint.LOAD_BEFORE_INSTALL) as pause:
            checking = asyncio.ensure_future(authorizer.under_lease(asking(authorizer, secret.reveal().encode())))
            await pause.reached.wait()
            captured = replica.holding.capture()
            assert captured is not None
            clock.advance(2000)
            await eventually(lambda: (replica.holding.capture() or 0) > captured)
            clock.advance(2500)
            await eventually(lambda: replica.holding.capture() is not None)
            pause.release()
            with pytest.raises(Unavailable) as refused:
                await checking
        assert refused.value.reason == "NO_LEASE"


async def test_expiry_is_judged_by_the_latest_time_the_database_can_show(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        before_us = replica.holding.latest_us()
        clock.advance(1000)
        # The clock here may run slow by a tenth and the database's fast by as much.
        assert replica.holding.latest_us() >= before_us + 1_250_000 - 50_000
