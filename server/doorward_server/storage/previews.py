"""Live tokens with their grants, as previews read them: of one account, or of everybody in portions.

Nothing is decided from these. A live token is one that is not revoked. Called by `service/plan_preview.py` and
`service/catalog_preview.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from doorward_server.model import Grant

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import asyncpg

    from doorward_server.model import Page
    from doorward_server.storage.connect import Connection

__all__ = [
    "AccountSize",
    "CountedShape",
    "GrantCounts",
    "HeldToken",
    "count_grants",
    "count_shapes",
    "list_account_page",
    "list_accounts",
    "list_by_id",
    "list_of",
]

ALL_PROJECTS: Final = "*"
SOME_PROJECT: Final = "some"
BEFORE_ALL: Final = 2**63 - 1  # an ordinal that no token reaches

# An account's live tokens are bounded, so both read tokens_live and look each token's grants up by its id.
COUNT = """
SELECT count(DISTINCT token_id) AS tokens,
       count(*) FILTER (WHERE permission_set = ANY($2::text[])) AS first,
       count(*) FILTER (WHERE permission_set = ANY($3::text[])) AS second
FROM (
    SELECT DISTINCT grants.token_id, grants.permission_set
    FROM tokens JOIN grants ON grants.token_id = tokens.token_id
    WHERE tokens.account_id = $1 AND tokens.revoke_time IS NULL
      AND (grants.permission_set = ANY($2::text[]) OR grants.permission_set = ANY($3::text[]))
) AS held
"""

ACCOUNT_PAGE = """
SELECT page.account_id, page.token_id, page.display_name, page.ordinal, grants.permission_set,
       array_agg(grants.scope ORDER BY grants.scope) AS scopes
FROM (
    SELECT account_id, token_id, display_name, ordinal
    FROM tokens
    WHERE account_id = $1 AND ordinal < $2 AND revoke_time IS NULL
      AND EXISTS (
          SELECT FROM grants WHERE grants.token_id = tokens.token_id AND permission_set = ANY($3::text[])
      )
    ORDER BY ordinal DESC LIMIT $4
) AS page
JOIN grants ON grants.token_id = page.token_id AND grants.permission_set = ANY($3::text[])
GROUP BY page.account_id, page.token_id, page.display_name, page.ordinal, grants.permission_set
ORDER BY page.ordinal DESC, grants.permission_set
"""

ACCOUNTS = """
SELECT account_id, plan, live_tokens
FROM accounts
WHERE account_id >= $1 AND ($2 OR account_id > $1) AND live_tokens > 0 AND state <> 'deleted'
ORDER BY account_id LIMIT $3
"""

# Of accounts that begin at $2, so what is behind the key ($2, $3) is all of them but the first one's beginning.
OF_ACCOUNTS = """
SELECT page.account_id, page.token_id, page.display_name, page.ordinal, grants.permission_set,
       array_agg(grants.scope ORDER BY grants.scope) AS scopes
FROM (
    SELECT account_id, token_id, display_name, ordinal
    FROM tokens
    WHERE account_id = ANY($1::text[]) AND (account_id, token_id) > ($2, $3) AND revoke_time IS NULL
      AND EXISTS (
          SELECT FROM grants WHERE grants.token_id = tokens.token_id AND permission_set = ANY($4::text[])
      )
    ORDER BY account_id, token_id LIMIT $5
) AS page
JOIN grants ON grants.token_id = page.token_id
GROUP BY page.account_id, page.token_id, page.display_name, page.ordinal, grants.permission_set
ORDER BY page.account_id, page.token_id, grants.permission_set
"""

BY_ID = """
SELECT tokens.account_id, tokens.token_id, tokens.display_name, tokens.ordinal, grants.permission_set,
       array_agg(grants.scope ORDER BY grants.scope) AS scopes
FROM tokens JOIN grants ON grants.token_id = tokens.token_id
WHERE tokens.token_id = ANY($1::text[])
GROUP BY tokens.token_id, grants.permission_set
ORDER BY tokens.token_id, grants.permission_set
"""

# Where one grant at most is on named projects, it does not matter which ones these are: a few shapes stand for all such
# tokens, so that millions are counted without a row for each. A name has no "*" in it.
SHAPES = """
SELECT plan, shape, entangled, count(*) AS tokens
FROM (
    SELECT accounts.plan,
           array_agg(permission_set || CASE WHEN on_all THEN '*' ELSE '' END ORDER BY permission_set) AS shape,
           CASE WHEN count(*) FILTER (WHERE NOT on_all) > 1 THEN token_id END AS entangled
    FROM (
        SELECT tokens.account_id, tokens.token_id, grants.permission_set, bool_or(grants.scope = '*') AS on_all
        FROM tokens JOIN grants ON grants.token_id = tokens.token_id
        WHERE tokens.account_id = ANY($1::text[]) AND tokens.revoke_time IS NULL
        GROUP BY tokens.account_id, tokens.token_id, grants.permission_set
    ) AS by_set
    JOIN accounts ON accounts.account_id = by_set.account_id
    GROUP BY accounts.plan, token_id
    HAVING bool_or(permission_set = ANY($2::text[]))
) AS held
GROUP BY plan, shape, entangled
"""


@dataclass(frozen=True, slots=True)
class HeldToken:
    """A live token, with its grants or those that were asked for."""

    account_id: str
    token_id: str
    display_name: str
    ordinal: int
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class GrantCounts:
    """How many tokens hold a set of either group, and how many grants of each group there are."""

    tokens: int
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class AccountSize:
    """An account that has live tokens, and how many."""

    account_id: str
    plan: str
    live_tokens: int


@dataclass(frozen=True, slots=True)
class CountedShape:
    """How many tokens on this plan have such grants; at most one is on named projects, and one stands there for them."""

    plan: str
    grants: tuple[Grant, ...]
    tokens: int


async def count_grants(
    connection: Connection, account_id: str, first: Collection[str], second: Collection[str]
) -> GrantCounts:
    """Counts the grants of the account's live tokens whose set is in either of two disjoint groups of names."""
    row = await connection.fetchrow(COUNT, account_id, sorted(first), sorted(second))
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return GrantCounts(row["tokens"], row["first"], row["second"])


async def list_account_page(
    connection: Connection, account_id: str, permission_sets: Collection[str], page: Page
) -> list[HeldToken]:
    """A page of the account's live tokens that hold one of these sets, newest first, with those grants alone.

    The key of a row, for `Page.after`, is `(str(token.ordinal),)`.
    """
    before = BEFORE_ALL if page.after is None else int(page.after[0])
    return _held(await connection.fetch(ACCOUNT_PAGE, account_id, before, sorted(permission_sets), page.size))


async def list_accounts(connection: Connection, start: str, limit: int, *, inclusive: bool) -> list[AccountSize]:
    """Accounts that have live tokens, by id, from `start` on or (not `inclusive`) behind it."""
    rows = await connection.fetch(ACCOUNTS, start, inclusive, limit)
    return [AccountSize(row["account_id"], row["plan"], row["live_tokens"]) for row in rows]


async def list_of(
    connection: Connection,
    account_ids: Sequence[str],
    permission_sets: Collection[str],
    after: tuple[str, str],
    limit: int,
) -> list[HeldToken]:
    """The live tokens of these accounts that hold one of these sets, by account and id, with all their grants.

    Those behind the key `after`, `(account_id, token_id)`; at most `limit`.
    """
    return _held(await connection.fetch(OF_ACCOUNTS, account_ids, *after, sorted(permission_sets), limit))


async def list_by_id(connection: Connection, token_ids: Sequence[str]) -> list[HeldToken]:
    """These tokens, those that hold anything, with all their grants."""
    return _held(await connection.fetch(BY_ID, token_ids))


async def count_shapes(
    connection: Connection, account_ids: Sequence[str], permission_sets: Collection[str]
) -> tuple[list[CountedShape], list[str]]:
    """The live tokens of these accounts that hold one of these sets, counted by what their grants have in common.

    Also the ids of those that are not counted: with several grants on named projects it matters which ones these are.
    """
    shapes: list[CountedShape] = []
    entangled: list[str] = []
    for row in await connection.fetch(SHAPES, account_ids, sorted(permission_sets)):
        if row["entangled"] is None:
            grants = tuple(_grant_of_shape(name) for name in row["shape"])
            shapes.append(CountedShape(row["plan"], grants, row["tokens"]))
        else:
            entangled.append(row["entangled"])
    return shapes, entangled


def _held(rows: Sequence[asyncpg.Record]) -> list[HeldToken]:
    """A token for each run of rows, of which each has one grant."""
    held: list[HeldToken] = []
    for _, run in groupby(rows, key=lambda row: row["token_id"]):
        of_token = list(run)
        first = of_token[0]
        grants = tuple(Grant(row["permission_set"], _scope(row["scopes"])) for row in of_token)
        held.append(HeldToken(first["account_id"], first["token_id"], first["display_name"], first["ordinal"], grants))
    return held


def _grant_of_shape(name: str) -> Grant:
    return Grant(name[:-1], None) if name.endswith(ALL_PROJECTS) else Grant(name, (SOME_PROJECT,))


def _scope(scopes: Sequence[str]) -> tuple[str, ...] | None:
    return None if ALL_PROJECTS in scopes else tuple(scopes)
