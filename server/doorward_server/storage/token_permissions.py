"""Which live tokens of an account hold one of some permission sets in one of some scopes, a page at a time (design section 6).

As in `token_lists.py` no page reads on until it is full: an account may have a great many revoked tokens, and live ones
without the sets. Of the two indexes that have every token in question, the live ones and the grants of the sets, the one
whose next `SCANNED` entries reach furthest back drives the page; that goes as far as those do, whatever matches among them.
So a page may be short or empty without being the last, and none skips or repeats. Called by `service/permitted.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from doorward_server.storage.token_entries import BEFORE_ALL
from doorward_server.storage.token_lists import FoundToken, FoundTokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from doorward_server.model import Page
    from doorward_server.storage.connect import Connection

__all__ = ["ALL_PROJECTS", "SCANNED", "find_holders"]

ALL_PROJECTS: Final = "*"
# Entries that one page looks at, at most: some 10 ms if none of them matches.
SCANNED: Final = 2_000

LIVE_REACH = """
SELECT count(*) AS entries, min(ordinal) AS lowest
FROM (
    SELECT ordinal FROM tokens
    WHERE account_id = $1 AND ordinal < $2 AND revoke_time IS NULL
    ORDER BY ordinal DESC LIMIT $3
) AS entry
"""

# Of each set as many entries, one for each scope of a token; the set of which they reach least far decides.
GRANTS_REACH = """
SELECT sum(entries)::bigint AS entries, max(lowest) FILTER (WHERE entries = $4) AS lowest
FROM unnest($3::text[]) AS wanted (permission_set)
CROSS JOIN LATERAL (
    SELECT count(*) AS entries, min(ordinal) AS lowest
    FROM (
        SELECT ordinal FROM grants
        WHERE grants.permission_set = wanted.permission_set AND account_id = $1 AND ordinal < $2
        ORDER BY ordinal DESC LIMIT $4
    ) AS entry
) AS reach
"""

# A subquery with LIMIT is looked up for each row, by the grants' key; EXISTS might be turned into a read of a whole index.
LIVE_PAGE = """
SELECT tokens.token_id, tokens.ordinal
FROM tokens
WHERE account_id = $1 AND ordinal < $2 AND ordinal >= $3
  AND revoke_time IS NULL AND NOT disabled AND (expire_time IS NULL OR expire_time > $4)
  AND (
      SELECT true FROM grants
      WHERE grants.token_id = tokens.token_id AND permission_set = ANY($5::text[]) AND scope = ANY($6::text[])
      LIMIT 1
  )
ORDER BY ordinal DESC LIMIT $7
"""

# The entries of each set are a range of grants_by_set, and the scope stands in it too. The fences (OFFSET 0) keep the planner
# from joining with a whole table.
GRANTS_PAGE = """
SELECT tokens.token_id, tokens.ordinal
FROM (
    SELECT DISTINCT held.ordinal
    FROM unnest($5::text[]) AS wanted (permission_set)
    CROSS JOIN LATERAL (
        SELECT ordinal FROM grants
        WHERE grants.permission_set = wanted.permission_set AND account_id = $1 AND ordinal < $2 AND ordinal >= $3
          AND scope = ANY($6::text[])
        OFFSET 0
    ) AS held
    ORDER BY ordinal DESC
) AS entry
CROSS JOIN LATERAL (
    SELECT * FROM tokens WHERE tokens.account_id = $1 AND tokens.ordinal = entry.ordinal OFFSET 0
) AS tokens
WHERE revoke_time IS NULL AND NOT disabled AND (expire_time IS NULL OR expire_time > $4)
ORDER BY entry.ordinal DESC LIMIT $7
"""

PAGES: Final = {"live": LIVE_PAGE, "granted": GRANTS_PAGE}


class _Reach(NamedTuple):
    """How far back a driver's page goes (0: to the end), and how many entries it has until there."""

    lowest: int
    entries: int
    driver: str


async def find_holders(
    connection: Connection,
    account_id: str,
    permission_sets: Sequence[str],
    scopes: Sequence[str],
    page: Page,
    now: datetime,
    *,
    scanned: int = SCANNED,
) -> FoundTokens:
    """A page, newest first, of the account's tokens with a grant of one of the sets in one of the scopes.

    Of those that are not revoked, disabled or, at `now`, expired. A scope is a project's id or `ALL_PROJECTS`. The key of a
    row, for `Page.after`, is `(ordinal,)`.
    """
    if not permission_sets:
        return FoundTokens((), None)
    before = BEFORE_ALL if page.after is None else int(page.after[0])
    reach = await _furthest(connection, account_id, permission_sets, before, scanned)
    arguments = (account_id, before, reach.lowest, now, list(permission_sets), list(scopes), page.size)
    rows = await connection.fetch(PAGES[reach.driver], *arguments)
    found = tuple(FoundToken(row["token_id"], row["ordinal"]) for row in rows)
    if len(found) == page.size:
        return FoundTokens(found, (str(found[-1].ordinal),))
    return FoundTokens(found, (str(reach.lowest),) if reach.lowest else None)


async def _furthest(
    connection: Connection, account_id: str, permission_sets: Sequence[str], before: int, scanned: int
) -> _Reach:
    """The driver that reaches further back; if both reach the end, the one with fewer entries."""
    live = await connection.fetchrow(LIVE_REACH, account_id, before, scanned)
    of_each = max(1, scanned // len(permission_sets))
    granted = await connection.fetchrow(GRANTS_REACH, account_id, before, list(permission_sets), of_each)
    assert live is not None and granted is not None  # noqa: S101, PT018 - an aggregate always has a row
    lowest = live["lowest"] if live["entries"] == scanned else None
    return min(
        _Reach(lowest or 0, live["entries"], "live"),
        _Reach(granted["lowest"] or 0, granted["entries"] or 0, "granted"),
    )
