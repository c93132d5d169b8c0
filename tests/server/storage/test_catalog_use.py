"""What of a catalog is in use: by live tokens and by accounts that are not deleted, by the first row that is found."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from doorward_server.model import AccountState, Grant
from doorward_server.storage import accounts, catalog_use, changes, state
from doorward_server.storage.catalog_use import USED_SETS
from doorward_server.storage.changes import Decided, commit
from tests.support.database import change_of, event_of, issue_token, put_account
from tests.support.issuing import revoke

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

SETS = ["job_admin", "member", "job_runner", "no_such_set"]


async def used_sets(database: Database) -> frozenset[str]:
    async with database.reading() as connection:
        return await catalog_use.find_used_sets(connection, SETS)


async def delete_account(database: Database, account_id: str) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        await accounts.set_state(tx, account_id, AccountState.DELETED)
        return Decided(None, change_of(f"account:{account_id}"), event_of(f"account:{account_id}"))

    await commit(database, decide, accounts=[account_id])


async def test_a_set_is_in_use_while_a_live_token_has_it(database: Database) -> None:
    await put_account(database, "acme")
    await put_account(database, "other")
    await issue_token(database, "a", "acme", grants=(Grant("job_admin", None), Grant("member", ("p",))))
    await issue_token(database, "b", "other", grants=(Grant("job_runner", None),))
    assert await used_sets(database) == {"job_admin", "member", "job_runner"}

    await revoke(database, "acme", "a")
    assert await used_sets(database) == {"job_runner"}

    await delete_account(database, "other")
    assert await used_sets(database) == frozenset()


async def test_a_plan_is_in_use_while_an_account_is_on_it(database: Database) -> None:
    await put_account(database, "acme", plan="team")
    await put_account(database, "other", plan="enterprise")
    await put_account(database, "third", plan="team")
    plans = ["team", "enterprise", "free"]
    async with database.reading() as connection:
        assert await catalog_use.find_used_plans(connection, plans) == {"team", "enterprise"}
        assert await catalog_use.count_accounts(connection, plans) == {"team": 2, "enterprise": 1}
    await delete_account(database, "other")
    async with database.reading() as connection:
        assert await catalog_use.find_used_plans(connection, plans) == {"team"}
        assert await catalog_use.count_accounts(connection, plans) == {"team": 2}
        assert await catalog_use.find_used_plans(connection, []) == frozenset()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def test_a_set_that_nobody_uses_costs_no_walk_over_all_tokens(database: Database) -> None:
    await put_account(database, "acme")
    async with database.reading() as connection:
        await connection.execute(
            "INSERT INTO tokens (token_id, account_id, display_name, description, labels, allow_self_rotation, disabled,"
            " create_time, update_time, created_by, ordinal, revision)"
            " SELECT 't' || n, 'acme', '', '', '{}', false, false, now(), now(), 'operator:x', n, 1"
            " FROM generate_series(1, 20000) AS n"
        )
        await connection.execute(
            "INSERT INTO grants (token_id, account_id, permission_set, scope, ordinal)"
            " SELECT 't' || n, 'acme', 'member', '*', n FROM generate_series(1, 20000) AS n"
        )
        await connection.execute("ANALYZE tokens, grants, accounts")
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {USED_SETS}", SETS)
    (explained,) = json.loads(rows[0][0])
    touched = [node["Actual Rows"] * node["Actual Loops"] for node in nodes(explained["Plan"])]
    assert max(touched) <= len(SETS)
    assert "grants_by_set" in {node.get("Index Name") for node in nodes(explained["Plan"])}


async def test_a_catalog_is_replaced_with_its_version_and_its_text_is_kept(database: Database) -> None:
    text = "schema = 1\r\n# Ünïcode ☃ \\u0000\r\n"

    async def decide(tx: Transaction) -> Decided[int]:
        await state.lock(tx)
        version = await state.apply_catalog(tx, text)
        return Decided(version, change_of("catalog:"), event_of("catalog:"))

    committed = await commit(database, decide)

    async with database.reading() as connection:
        loaded = await state.load_catalog(connection)
        (row,) = await changes.read_after(connection, 0, 10)
    assert committed.value == 2
    assert (loaded.version, loaded.toml, loaded.number) == (2, text, committed.revision.number)
    assert row.subjects == ("catalog:",)


async def test_while_the_state_row_is_locked_nobody_else_commits(database: Database) -> None:
    locked, release = asyncio.Event(), asyncio.Event()

    async def decide(tx: Transaction) -> Decided[None]:
        await state.lock(tx)
        locked.set()
        await release.wait()
        await state.apply_catalog(tx, "x")
        return Decided(None, change_of("catalog:"), event_of("catalog:"))

    applying = asyncio.ensure_future(commit(database, decide))
    await locked.wait()
    putting = asyncio.ensure_future(put_account(database, "acme"))
    async with database.reading() as connection:
        while not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            assert not putting.done()
        assert await accounts.read(connection, "acme") is None
    release.set()

    assert (await applying).revision.number < (await putting).number
