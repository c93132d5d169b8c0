"""A project's id that passes from account to account, as a replica's caches see it: by what was applied, never by what was read.

DeleteProject names every live token that held a grant on the project, so that nothing cached of it outlives the change.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from doorward.core.catalog import Catalog
from doorward.core.matrix import DenyReason, Grant, decide
from doorward.core.token_table import CATALOG_KEY, UNKNOWN
from doorward_server.failpoints import Failpoint
from doorward_server.model import Change
from doorward_server.storage import projects
from doorward_server.storage.changes import Decided, commit
from tests.support.database import event_of, issue_token, put_account
from tests.support.issuing import put_project
from tests.support.replica import paused, running

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database
    from tests.support.replica import Parts

OURS, THEIRS = "o" * 16, "t" * 16


async def delete_project(database: Database, account_id: str, project_id: str) -> int:
    """As the use case does it; the change's number."""

    async def decide(tx: Transaction) -> Decided[None]:
        narrowed = await projects.delete(tx, account_id, project_id)
        subject = f"project:{project_id}"
        touched = (subject, *(f"token:{token_id}" for token_id in narrowed.token_ids))
        return Decided(None, Change("DeleteProject", account_id, touched), event_of(subject))

    return (await commit(database, decide, accounts=[account_id])).revision.number


async def decided(replica: Parts, token_id: str, account_id: str, project_id: str) -> DenyReason:
    """A check from memory, with whatever is missing loaded first, as a check brings it."""
    tables = replica.holding.tables
    for kind, table, key in (
        ("catalog", tables.catalogs, CATALOG_KEY),
        ("token", tables.tokens, token_id),
        ("account", tables.accounts, account_id),
        ("project", tables.projects, project_id),
    ):
        while table.get(key) is None:
            await replica.caches.fill(kind, key)
    catalog, token, account = (
        tables.catalogs.get(CATALOG_KEY),
        tables.tokens.get(token_id),
        tables.accounts.get(account_id),
    )
    assert isinstance(catalog, Catalog)
    assert token is not None
    assert token is not UNKNOWN
    assert account is not None
    assert account is not UNKNOWN
    owner = tables.projects.get(project_id)
    owner_id = None if owner is UNKNOWN else owner
    replica.caches.compile(token, account, catalog)
    compiled = tables.tokens.get(token_id)
    assert compiled is not None
    assert compiled is not UNKNOWN
    permission = catalog.permissions["jobs:read"]
    return decide(compiled, account, permission, None, project_id, owner_id, 0)


async def two_accounts(database: Database) -> None:
    """`acme` has the project, and a token on it; `other` a token on all of its own."""
    for account_id in ("acme", "other"):
        await put_account(database, account_id, plan="enterprise")
    await put_project(database, "acme", "p1")
    await issue_token(database, OURS, "acme", grants=(Grant("job_admin", ("p1",)),))
    await issue_token(database, THEIRS, "other", grants=(Grant("job_admin", None),))


async def test_a_warm_replica_follows_the_id_from_account_to_account_and_back(
    database: Database, tmp_path: Path
) -> None:
    await two_accounts(database)
    seen = []
    async with running(database, tmp_path) as replica:
        await replica.usable()

        async def look() -> None:
            ours = await decided(replica, OURS, "acme", "p1")
            seen.append((ours, await decided(replica, THEIRS, "other", "p1")))

        await look()
        for owner, next_owner in (("acme", "other"), ("other", "acme")):
            await replica.applied(await delete_project(database, owner, "p1"))
            await look()
            await replica.applied(await put_project(database, next_owner, "p1"))
            await look()

    nobodys = DenyReason.RESOURCE_NOT_IN_ACCOUNT
    assert seen == [
        (DenyReason.ALLOWED, nobodys),
        (nobodys, nobodys),
        (nobodys, DenyReason.ALLOWED),
        (nobodys, nobodys),
        (DenyReason.PERMISSION_NOT_GRANTED, nobodys),
    ]


async def test_a_token_read_before_the_deletion_is_not_installed_after_it(database: Database, tmp_path: Path) -> None:
    """Else it would hold a mask for a project that the same account puts again."""
    await two_accounts(database)
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.LOAD_AFTER_SNAPSHOT) as pause:
            load = asyncio.ensure_future(replica.caches.fill("token", OURS))
            await pause.reached.wait()
            await replica.applied(await delete_project(database, "acme", "p1"))
            await replica.applied(await put_project(database, "acme", "p1"))
            pause.release()
            await load

        assert replica.holding.tables.tokens.get(OURS) is None
        assert await decided(replica, OURS, "acme", "p1") is DenyReason.PERMISSION_NOT_GRANTED


async def test_a_project_read_before_it_passed_on_is_not_installed_after_it(database: Database, tmp_path: Path) -> None:
    await two_accounts(database)
    async with running(database, tmp_path) as replica:
        await replica.usable()
        with paused(Failpoint.LOAD_AFTER_SNAPSHOT) as pause:
            load = asyncio.ensure_future(replica.caches.fill("project", "p1"))
            await pause.reached.wait()
            await delete_project(database, "acme", "p1")
            await replica.applied(await put_project(database, "other", "p1"))
            pause.release()
            await load

        assert replica.holding.tables.projects.get("p1") is None
        assert await decided(replica, THEIRS, "other", "p1") is DenyReason.ALLOWED
