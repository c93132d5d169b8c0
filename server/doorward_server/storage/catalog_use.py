"""What of a catalog is in use: permission sets by grants of live tokens, plans by accounts (contract: ApplyCatalog).

A live token is one that is not revoked, of an account that is not deleted. Each question is answered by the first row
that is found, so that asking under the lock of the state row keeps other changes waiting for milliseconds.
Called by `service/catalog_use.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from doorward_server.storage.connect import Connection

__all__ = ["count_accounts", "find_used_plans", "find_used_sets"]

# LIMIT keeps the planner from joining whole tables, and the order, which is that of grants_by_set, from reading whole ones
# where nearly every grant is of one set: for each set that index is read until a grant is a live token's.
USED_SETS = """
SELECT permission_set
FROM unnest($1::text[]) AS asked (permission_set), LATERAL (
    SELECT FROM grants
    JOIN tokens ON tokens.token_id = grants.token_id AND tokens.revoke_time IS NULL
    JOIN accounts ON accounts.account_id = tokens.account_id AND accounts.state <> 'deleted'
    WHERE grants.permission_set = asked.permission_set
    ORDER BY grants.account_id, grants.ordinal DESC LIMIT 1
) AS used
"""

USED_PLANS = """
SELECT plan
FROM unnest($1::text[]) AS asked (plan), LATERAL (
    SELECT FROM accounts WHERE accounts.plan = asked.plan AND accounts.state <> 'deleted' LIMIT 1
) AS used
"""

COUNT_ACCOUNTS = """
SELECT plan, count(*) AS accounts FROM accounts WHERE plan = ANY($1::text[]) AND state <> 'deleted' GROUP BY plan
"""


async def find_used_sets(connection: Connection, names: Collection[str]) -> frozenset[str]:
    """Which of these sets some live token's grant names."""
    if not names:
        return frozenset()
    return frozenset(row["permission_set"] for row in await connection.fetch(USED_SETS, sorted(names)))


async def find_used_plans(connection: Connection, names: Collection[str]) -> frozenset[str]:
    """Which of these plans some account, not deleted, is on."""
    if not names:
        return frozenset()
    return frozenset(row["plan"] for row in await connection.fetch(USED_PLANS, sorted(names)))


async def count_accounts(connection: Connection, plans: Collection[str]) -> dict[str, int]:
    """How many accounts, not deleted, are on each of these plans; without those that none is on."""
    if not plans:
        return {}
    return {row["plan"]: row["accounts"] for row in await connection.fetch(COUNT_ACCOUNTS, sorted(plans))}
