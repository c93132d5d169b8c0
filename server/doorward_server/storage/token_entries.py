"""The statements behind `token_lists.py`: for each index that can drive a list, how far its next entries reach, and the page.

Text put together from constants, since every page asks for the same matching and every driver for the same two things.
All of them take the same arguments, `Arguments`. Called by `token_lists.py` alone.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from doorward_server.storage.connect import Connection

__all__ = [
    "BEFORE_ALL",
    "FIRST_PLACE",
    "LAST_PLACE",
    "Arguments",
    "holds_set",
    "read_page",
    "read_reach",
    "read_timed_page",
    "read_timed_reach",
]

BEFORE_ALL: Final = 2**63 - 1  # an ordinal that no token reaches
FIRST_PLACE: Final = (datetime(1970, 1, 1, tzinfo=UTC), 0)
LAST_PLACE: Final = (datetime.max.replace(tzinfo=UTC) - timedelta(microseconds=1), BEFORE_ALL)

# Every statement takes the same arguments, also those that it has no use for; here they get their types.
GIVEN = """
WITH given AS (
    SELECT $1::text AS account_id, $2::bigint AS before, $3::bigint AS lowest, $4::bigint AS at_most,
           $5::timestamptz AS now, $6::text[] AS states, $7::text AS created_by, $8::jsonb AS labels,
           $9::text AS display_name_prefix, $10::text AS permission_set, $11::text AS project_id,
           $12::timestamptz AS unused_since, $13::timestamptz AS expires_before, $14::text AS label, $15::text AS value,
           $16::text AS obtained_by, $17::boolean AS include_descendants,
           $18::timestamptz AS after_time, $19::bigint AS after_ordinal, $20::timestamptz AS until_time,
           $21::bigint AS until_ordinal
)
"""

# The entries of each driving index, in its order. None needs a table's row: they read nothing but the index.
ALL_ENTRIES = "SELECT ordinal FROM tokens WHERE account_id = $1 AND ordinal < $2 AND ordinal >= $3"
LIVE_ENTRIES = ALL_ENTRIES + " AND revoke_time IS NULL"
DISABLED_ENTRIES = ALL_ENTRIES + " AND revoke_time IS NULL AND disabled"
REVOKED_ENTRIES = ALL_ENTRIES + " AND revoke_time IS NOT NULL"
CREATOR_ENTRIES = ALL_ENTRIES + " AND created_by = $7"
LABEL_ENTRIES = """
SELECT ordinal FROM token_labels
WHERE account_id = $1 AND key = $14 AND value = $15 AND ordinal < $2 AND ordinal >= $3
"""
# These have an entry for each scope of a token.
SET_ENTRIES = """
SELECT ordinal FROM grants WHERE permission_set = $10 AND account_id = $1 AND ordinal < $2 AND ordinal >= $3
"""
PROJECT_ENTRIES = """
SELECT ordinal
FROM (
    SELECT ordinal FROM grants
    WHERE scope = $11 AND scope <> '*' AND account_id = $1 AND ordinal < $2 AND ordinal >= $3
    UNION ALL
    SELECT ordinal FROM grants WHERE scope = '*' AND account_id = $1 AND ordinal < $2 AND ordinal >= $3
) AS reaching
"""
# The same for a reach: of two indexes no more than what is needed of either.
PROJECT_REACH_ENTRIES = """
SELECT ordinal
FROM (
    (
        SELECT ordinal FROM grants WHERE scope = $11 AND scope <> '*' AND account_id = $1 AND ordinal < $2
        ORDER BY ordinal DESC LIMIT $4
    )
    UNION ALL
    (SELECT ordinal FROM grants WHERE scope = '*' AND account_id = $1 AND ordinal < $2 ORDER BY ordinal DESC LIMIT $4)
) AS reaching
"""
# These are not in the list's order, so they drive only where all that there are can be sorted. ORDER BY and OFFSET keep the
# planner from reading another index instead, in the list's order, until it has found them. The last name that begins with
# the prefix is the prefix and as many of the last character as a name has room for.
NAME_ENTRIES = """
SELECT ordinal
FROM (
    SELECT ordinal FROM tokens
    WHERE account_id = $1 AND display_name COLLATE "C" >= $9
      AND display_name COLLATE "C" <= $9 || repeat(chr(1114111), 200)
    ORDER BY display_name COLLATE "C" OFFSET 0
) AS named
WHERE ordinal < $2 AND ordinal >= $3
"""
EXPIRED_ENTRIES = """
SELECT ordinal
FROM (
    SELECT ordinal FROM tokens
    WHERE account_id = $1 AND revoke_time IS NULL AND expire_time <= $5
    ORDER BY expire_time OFFSET 0
) AS expired
WHERE ordinal < $2 AND ordinal >= $3
"""
# What a token has received: the secrets that were issued to it, and with them what those received. UNION ends a circle of
# tokens that rotate each other.
OBTAINED_ENTRIES = """
SELECT ordinal
FROM (
    WITH RECURSIVE obtained (token_id) AS (
        SELECT token_id FROM token_secrets WHERE issued_to = $16
        UNION
        SELECT further.token_id
        FROM obtained CROSS JOIN LATERAL (
            SELECT token_id FROM token_secrets WHERE issued_to = 'token:' || obtained.token_id OFFSET 0
        ) AS further
        WHERE $17
    )
    SELECT received.ordinal
    FROM obtained CROSS JOIN LATERAL (
        SELECT ordinal FROM tokens WHERE tokens.token_id = obtained.token_id AND account_id = $1 OFFSET 0
    ) AS received
    OFFSET 0
) AS received
WHERE ordinal < $2 AND ordinal >= $3
"""

# How far back a driver's next entries reach. Those that must be sorted are only counted.
REACH = "SELECT count(*) AS entries, min(ordinal) AS lowest FROM ("
FURTHEST = " ORDER BY ordinal DESC LIMIT $4) AS entry"
ANY = " LIMIT $4) AS entry"

REACHES: Final = {
    "all": GIVEN + REACH + ALL_ENTRIES + FURTHEST,
    "live": GIVEN + REACH + LIVE_ENTRIES + FURTHEST,
    "disabled": GIVEN + REACH + DISABLED_ENTRIES + FURTHEST,
    "revoked": GIVEN + REACH + REVOKED_ENTRIES + FURTHEST,
    "creator": GIVEN + REACH + CREATOR_ENTRIES + FURTHEST,
    "label": GIVEN + REACH + LABEL_ENTRIES + FURTHEST,
    "set": GIVEN + REACH + SET_ENTRIES + FURTHEST,
    "project": GIVEN + REACH + PROJECT_REACH_ENTRIES + FURTHEST,
    "name": GIVEN + REACH + NAME_ENTRIES + ANY,
    "expired": GIVEN + REACH + EXPIRED_ENTRIES + ANY,
}

# A token for each entry, by its ordinal, since an account's tokens lie near each other in that index and so stay in memory.
# The fence keeps the planner from joining with the whole table.
PAGE = "SELECT tokens.token_id, tokens.ordinal FROM ("
DISTINCT_PAGE = "SELECT tokens.token_id, tokens.ordinal FROM (SELECT DISTINCT ordinal FROM ("
DISTINCT = ") AS several"
NEWEST = " ORDER BY ordinal DESC"
OF_ENTRIES = """
) AS entry
CROSS JOIN LATERAL (
    SELECT * FROM tokens WHERE tokens.account_id = $1 AND tokens.ordinal = entry.ordinal OFFSET 0
) AS tokens
"""
# What the driver does not see to. The states exclude each other, in the order in which a check names them. A subquery with
# LIMIT is looked up for each row; EXISTS might be turned into a read of the whole index.
MATCHING = """
WHERE ($6::text[] IS NULL OR CASE
          WHEN revoke_time IS NOT NULL THEN 'REVOKED'
          WHEN expire_time <= $5 THEN 'EXPIRED'
          WHEN disabled THEN 'DISABLED'
          ELSE 'ACTIVE'
      END = ANY($6))
  AND ($7::text IS NULL OR created_by = $7)
  AND ($8::jsonb IS NULL OR labels @> $8)
  AND ($9::text IS NULL OR starts_with(display_name, $9))
  AND ($10::text IS NULL OR (
          SELECT true FROM grants
          WHERE permission_set = $10 AND grants.account_id = $1 AND grants.ordinal = tokens.ordinal LIMIT 1
      ))
  AND ($11::text IS NULL
       OR (
          SELECT true FROM grants WHERE scope = '*' AND grants.account_id = $1 AND grants.ordinal = tokens.ordinal LIMIT 1
       )
       OR (
          SELECT true FROM grants
          WHERE scope = $11 AND scope <> '*' AND grants.account_id = $1 AND grants.ordinal = tokens.ordinal LIMIT 1
       ))
  AND ($13::timestamptz IS NULL OR expire_time < $13)
"""
# Idle since that very moment is a token that was issued then, but not one that was used then. The index itself says it of
# all that are idle longer.
UNUSED = """(
    SELECT idle_since <= $12 AND (last_used_time IS NULL OR last_used_time < $12)
    FROM token_activity WHERE token_activity.token_id = tokens.token_id
)
"""
AND_UNUSED = " AND ($12::timestamptz IS NULL OR " + UNUSED + ")"
AND_UNUSED_THEN = " AND (entry.at < $12 OR " + UNUSED + ")"
NEWEST_FIRST = "ORDER BY entry.ordinal DESC LIMIT $4"

PAGES: Final = {
    "all": GIVEN + PAGE + ALL_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "live": GIVEN + PAGE + LIVE_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "disabled": GIVEN + PAGE + DISABLED_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "revoked": GIVEN + PAGE + REVOKED_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "creator": GIVEN + PAGE + CREATOR_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "label": GIVEN + PAGE + LABEL_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "set": GIVEN + DISTINCT_PAGE + SET_ENTRIES + DISTINCT + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "project": GIVEN + DISTINCT_PAGE + PROJECT_ENTRIES + DISTINCT + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "name": GIVEN + PAGE + NAME_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "expired": GIVEN + PAGE + EXPIRED_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + NEWEST_FIRST,
    "obtained": GIVEN + PAGE + OBTAINED_ENTRIES + NEWEST + OF_ENTRIES + MATCHING + AND_UNUSED + NEWEST_FIRST,
}

# The same for lists in the order of a time, each of which has one index, of live tokens alone: where the $4-th entry stands,
# and the tokens up to there.
UNUSED_ENTRIES = """
SELECT idle_since AS at, ordinal FROM token_activity
WHERE account_id = $1 AND idle_since <= $12 AND (idle_since, ordinal) > ($18, $19)
  AND (idle_since, ordinal) <= ($20, $21)
ORDER BY idle_since, ordinal
"""
EXPIRING_ENTRIES = """
SELECT expire_time AS at, ordinal FROM tokens
WHERE account_id = $1 AND revoke_time IS NULL AND expire_time < $13 AND (expire_time, ordinal) > ($18, $19)
  AND (expire_time, ordinal) <= ($20, $21)
ORDER BY expire_time, ordinal
"""
LAST_SCANNED = " OFFSET $4 - 1 LIMIT 1"
TIMED_PAGE = "SELECT tokens.token_id, tokens.ordinal, entry.at FROM ("
EARLIEST_FIRST = "ORDER BY entry.at, entry.ordinal LIMIT $4"

TIMED_REACHES: Final = {
    "unused": GIVEN + UNUSED_ENTRIES + LAST_SCANNED,
    "expiring": GIVEN + EXPIRING_ENTRIES + LAST_SCANNED,
}
TIMED_PAGES: Final = {
    "unused": GIVEN + TIMED_PAGE + UNUSED_ENTRIES + OF_ENTRIES + MATCHING + AND_UNUSED_THEN + EARLIEST_FIRST,
    "expiring": GIVEN + TIMED_PAGE + EXPIRING_ENTRIES + OF_ENTRIES + MATCHING + AND_UNUSED + EARLIEST_FIRST,
}

HOLDS_SET = "SELECT true FROM grants WHERE permission_set = $1 AND account_id = $2 LIMIT 1"


class Arguments(NamedTuple):
    """What every statement is given, in the order of its parameters. None narrows nothing.

    Of lists by ordinal `before` and `lowest` bound the page, of those by a time the places between `after_…` and `until_…`.
    `at_most`: rows, or for a reach entries.
    """

    account_id: str
    before: int
    lowest: int
    at_most: int
    now: datetime
    states: Sequence[str] | None
    created_by: str | None
    labels: str | None
    display_name_prefix: str | None
    permission_set: str | None
    project_id: str | None
    unused_since: datetime | None
    expires_before: datetime | None
    label: str | None = None
    value: str | None = None
    obtained_by: str | None = None
    include_descendants: bool = False
    after_time: datetime = FIRST_PLACE[0]
    after_ordinal: int = FIRST_PLACE[1]
    until_time: datetime = LAST_PLACE[0]
    until_ordinal: int = LAST_PLACE[1]


async def read_reach(connection: Connection, driver: str, arguments: Arguments) -> tuple[int, int | None]:
    """How many entries the driver has from `before` on down, at most `at_most`, and the lowest ordinal among them."""
    row = await connection.fetchrow(REACHES[driver], *arguments)
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return row["entries"], row["lowest"]


async def read_page(connection: Connection, driver: str, arguments: Arguments) -> list[asyncpg.Record]:
    """Matching tokens, newest first: `token_id`, `ordinal`."""
    return await connection.fetch(PAGES[driver], *arguments)


async def read_timed_reach(connection: Connection, driver: str, arguments: Arguments) -> asyncpg.Record | None:
    """Where the driver's `at_most`-th entry behind `after_…` stands: `at`, `ordinal`; None: there are not as many."""
    return await connection.fetchrow(TIMED_REACHES[driver], *arguments)


async def read_timed_page(connection: Connection, driver: str, arguments: Arguments) -> list[asyncpg.Record]:
    """Matching tokens, the earliest time first: `token_id`, `ordinal`, `at`."""
    return await connection.fetch(TIMED_PAGES[driver], *arguments)


async def holds_set(connection: Connection, account_id: str, permission_set: str) -> bool:
    """Whether any token of the account has a grant of this set, which the catalog need not know."""
    return bool(await connection.fetchval(HOLDS_SET, permission_set, account_id))
