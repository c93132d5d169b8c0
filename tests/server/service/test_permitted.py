"""A page of tokens that may do something belongs to the history that is applied here, and to a lease from before it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.model import Caller, CallerKind, Grant, OperatorRole, Page
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.freshness import Freshness
from doorward_server.service.permitted import Permitted, Question
from tests.support.database import issue_token, put_account
from tests.support.replica import Parts, paused, running
from tests.support.stepped import settled

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.service.permitted import PermittedPage
    from doorward_server.storage.pool import Database

ADMIN = Caller(CallerKind.OPERATOR, "admin", role=OperatorRole.ADMIN)
# Long enough for no renewal to come in between.
HOLD_MS = 60_000


async def listed(replica: Parts, page: Page | None = None) -> PermittedPage:
    freshness = Freshness(replica.holding, replica.keeper, replica.database)
    permitted = Permitted(replica.database, Catalogs(), replica.holding, freshness)
    return await permitted.list_tokens(ADMIN, Question("connections:read", "acme", None), page or Page(10), None)


async def test_a_page_is_shown_once_its_moment_is_applied_here(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path, hold_ms=HOLD_MS) as replica:
        await replica.usable()
        with paused(Failpoint.APPLY_BEFORE) as pause:
            revision = await issue_token(database, "T1", "acme", grants=(Grant("job_admin", None),))
            await pause.reached.wait()
            waiting = asyncio.ensure_future(listed(replica))
            await settled()
            assert not waiting.done()
            pause.release()
            page = await waiting

        assert [token.token_id for token in page.shown.tokens] == ["T1"]
        assert page.revision == revision
        assert replica.holding.applied >= revision.number


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE state SET nonce = '\\x0102030405060708'",
        "UPDATE state SET epoch = epoch + 1",
        "UPDATE state SET revision = revision - 1",
    ],
    ids=["another nonce", "another epoch", "behind"],
)
async def test_a_page_from_another_history_is_not_shown(database: Database, tmp_path: Path, statement: str) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path, hold_ms=HOLD_MS) as replica:
        await replica.usable()
        assert (await listed(replica)).next_key is None
        async with database.reading() as connection:
            await connection.execute(statement)

        with pytest.raises(Unavailable) as refused:
            await listed(replica)

        assert refused.value.reason == "DATABASE_UNAVAILABLE"


async def test_without_a_lease_nothing_is_read(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path, without=("keeper",)) as replica:
        with pytest.raises(Unavailable) as refused:
            await listed(replica)

        assert refused.value.reason == "NO_LEASE"
