"""How fresh an answer must be (design sections 3 and 7)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from doorward.core.revision import Revision
from doorward_server.errors import FailedPrecondition, Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.service.freshness import LATEST_KNOWN, Demand, Freshness
from tests.support.database import put_account
from tests.support.replica import Parts, paused, running
from tests.support.stepped import settled

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.pool import Database


def freshness_of(replica: Parts) -> Freshness:
    return Freshness(replica.holding, replica.keeper, replica.database)


async def test_no_demand_waits_for_nothing(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path, without=("keeper",)) as replica:
        await freshness_of(replica).reached(LATEST_KNOWN, None)


async def test_a_revision_is_waited_for(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.APPLY_BEFORE) as pause:
            revision = await put_account(database, "acme")
            await pause.reached.wait()
            waiting = asyncio.ensure_future(freshness_of(replica).reached(Demand(at_least=revision), None))
            await settled()
            assert not waiting.done()
            pause.release()
            await waiting
        assert replica.holding.applied >= revision.number


async def test_the_end_of_the_log_is_waited_for(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.NOTIFY_DROP):
            revision = await put_account(database, "acme")
            await freshness_of(replica).reached(Demand(fully=True), None)
        assert replica.holding.applied >= revision.number


@pytest.mark.parametrize(
    ("revision", "reason"),
    [(Revision(1, 1000), "REVISION_BEYOND_END"), (Revision(2, 0), "REVISION_OF_ANOTHER_EPOCH")],
)
async def test_what_can_never_be_reached_is_said_at_once(
    database: Database, tmp_path: Path, revision: Revision, reason: str
) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with pytest.raises(FailedPrecondition) as refused:
            await freshness_of(replica).reached(Demand(at_least=revision), None)
        assert refused.value.reason == reason


async def test_what_is_not_reached_by_the_deadline_is_unavailable(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.APPLY_BEFORE) as pause:
            revision = await put_account(database, "acme")
            await pause.reached.wait()
            until_ns = replica.timing.now_ns() + 200_000_000
            with pytest.raises(Unavailable) as refused:
                await freshness_of(replica).reached(Demand(at_least=revision), until_ns)
            pause.release()
        assert refused.value.reason == "REVISION_NOT_REACHED"
