"""Takes a project away, out of every grant that names it (contract: AccountAdmin.DeleteProject).

The project's account is locked, so that no token of it is issued or changed meanwhile. Whoever puts the same id waits for
the row that goes here, and comes after this change in the log. Called by `service/projects.py`.

An account has a bounded number of live tokens, and any number of revoked ones whose records name the project too. Those
forget it as well, since its id may be somebody else's next; but no replica needs to hear of that, their own rows are left
as the revocation left them, and of very many a portion is done at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = ["Narrowed", "Taken", "count_named", "count_revoked", "delete", "forget"]

# A plan that was kept from when these tables were small joins thousands of grants with all tokens, row by row: that took
# longer than a statement may. One that is made now knows how large they are.
PLAN_ANEW = "SET LOCAL plan_cache_mode = force_custom_plan"

COUNT_NAMED = """
SELECT count(*) FROM (
    SELECT FROM grants WHERE scope = $1 AND scope <> '*' AND account_id = $2 LIMIT $3
) AS named
"""

# One statement, hence one snapshot: `rest` still sees the grants as they were. `scope <> '*'` lets the planner use
# grants_by_project whatever $1 is. Tokens are written here once, and not by the door's last statement, where thousands of
# rows would keep every other change waiting for the state row (measured: 10,000 for 0.7 s): so their revision, which is
# their etag, goes up by one and not to this change's number. It never exceeds that, and what a later change stamps is
# higher, so that no two states of a token share one.
DELETE = """
WITH gone AS (
    DELETE FROM projects WHERE project_id = $1
), taken AS (
    DELETE FROM grants USING tokens
    WHERE grants.scope = $1 AND grants.scope <> '*' AND grants.account_id = $2
      AND tokens.token_id = grants.token_id AND tokens.revoke_time IS NULL
    RETURNING grants.token_id, grants.permission_set
), narrowed AS (
    UPDATE tokens SET update_time = $3, revision = revision + 1
    FROM (SELECT DISTINCT token_id FROM taken) AS touched
    WHERE tokens.token_id = touched.token_id
    RETURNING tokens.token_id
), counted AS (
    SELECT count(*) AS grants_changed,
           count(*) FILTER (WHERE NOT EXISTS (
               SELECT FROM grants AS rest
               WHERE rest.token_id = taken.token_id AND rest.permission_set = taken.permission_set AND rest.scope <> $1
           )) AS grants_removed
    FROM taken
)
SELECT grants_changed, grants_removed, (SELECT array_agg(token_id ORDER BY token_id) FROM narrowed) AS live_tokens
FROM counted
"""

FORGET = """
WITH found AS (
    SELECT grants.token_id, grants.permission_set
    FROM grants JOIN tokens ON tokens.token_id = grants.token_id AND tokens.revoke_time IS NOT NULL
    WHERE grants.scope = $1 AND grants.scope <> '*' AND grants.account_id = $2
    LIMIT $3
), taken AS (
    DELETE FROM grants USING found
    WHERE grants.token_id = found.token_id AND grants.permission_set = found.permission_set AND grants.scope = $1
    RETURNING grants.token_id, grants.permission_set
)
SELECT count(*) AS grants_changed,
       count(*) FILTER (WHERE NOT EXISTS (
           SELECT FROM grants AS rest
           WHERE rest.token_id = taken.token_id AND rest.permission_set = taken.permission_set AND rest.scope <> $1
       )) AS grants_removed
FROM taken
"""

COUNT_REVOKED = """
SELECT count(*) AS grants_changed,
       count(*) FILTER (WHERE NOT EXISTS (
           SELECT FROM grants AS rest
           WHERE rest.token_id = found.token_id AND rest.permission_set = found.permission_set AND rest.scope <> $1
       )) AS grants_removed
FROM (
    SELECT grants.token_id, grants.permission_set
    FROM grants JOIN tokens ON tokens.token_id = grants.token_id AND tokens.revoke_time IS NOT NULL
    WHERE grants.scope = $1 AND grants.scope <> '*' AND grants.account_id = $2
    LIMIT $3
) AS found
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """From how many grants a project was taken, and how many of these went because they named no other."""

    grants_changed: int
    grants_removed: int

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.grants_changed + other.grants_changed, self.grants_removed + other.grants_removed)


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What was taken from live tokens, and from which ones, sorted."""

    taken: Taken
    token_ids: tuple[str, ...]


async def delete(tx: Transaction, account_id: str, project_id: str) -> Narrowed:
    """Deletes the project of this account, which is locked, and takes its id out of every grant of a live token."""
    await tx.connection.execute(PLAN_ANEW)
    row = await tx.connection.fetchrow(DELETE, project_id, account_id, tx.now)
    assert row is not None  # noqa: S101 - an aggregate always has a row
    tx.wrote = True
    return Narrowed(_taken(row), tuple(row["live_tokens"] or ()))


async def forget(tx: Transaction, account_id: str, project_id: str, limit: int | None) -> Taken:
    """Takes its id out of `limit` grants of revoked tokens (None: all there are); the account is locked."""
    await tx.connection.execute(PLAN_ANEW)
    row = await tx.connection.fetchrow(FORGET, project_id, account_id, limit)
    assert row is not None  # noqa: S101 - an aggregate always has a row
    tx.wrote = tx.wrote or row["grants_changed"] > 0
    return _taken(row)


async def count_named(connection: Connection, account_id: str, project_id: str, limit: int) -> int:
    """How many grants, of live and of revoked tokens, name the project; counted up to `limit`."""
    return int(await connection.fetchval(COUNT_NAMED, project_id, account_id, limit))


async def count_revoked(tx: Transaction, account_id: str, project_id: str, limit: int | None) -> Taken:
    """What `forget` would take."""
    await tx.connection.execute(PLAN_ANEW)
    row = await tx.connection.fetchrow(COUNT_REVOKED, project_id, account_id, limit)
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return _taken(row)


def _taken(row: asyncpg.Record) -> Taken:
    return Taken(row["grants_changed"], row["grants_removed"])
