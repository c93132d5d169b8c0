"""A token changes in place: its fields, and its grants and labels whole; what stays keeps its place in every list."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from doorward_server.model import Grant, Token
from doorward_server.storage import changes, token_changes, tokens
from doorward_server.storage.changes import Decided, commit
from tests.support.database import change_of, event_of, issue_token, put_account

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

END = datetime(2036, 1, 1, tzinfo=UTC)


async def changed(database: Database, token_id: str, write: Callable[[Transaction, Token], Awaitable[None]]) -> Token:
    """The token after `write`, which gets it as it was."""

    async def decide(tx: Transaction) -> Decided[None]:
        token = await tokens.read(tx.connection, token_id)
        assert token is not None
        await write(tx, token)
        return Decided(None, change_of(f"token:{token_id}", "acme"), event_of(f"token:{token_id}"))

    await commit(database, decide, accounts=["acme"])
    async with database.reading() as connection:
        token = await tokens.read(connection, token_id)
    assert token is not None
    return token


async def update(database: Database, token_id: str, **fields: Any) -> Token:
    async def write(tx: Transaction, token: Token) -> None:
        await token_changes.update(tx, replace(token, update_time=tx.now, **fields))

    return await changed(database, token_id, write)


async def rows_of(database: Database, sql: str) -> list[tuple[Any, ...]]:
    async with database.reading() as connection:
        return [tuple(row) for row in await connection.fetch(sql, "T1")]


async def before_and_after(database: Database, **fields: Any) -> tuple[Token, Token]:
    """T1, the second of three tokens, before and after an update."""
    await put_account(database, "acme")
    for token_id in ("T0", "T1", "T2"):
        grants = (Grant("a_set", None), Grant("b_set", ("p1", "p2")))
        await issue_token(database, token_id, "acme", labels={"team": "data", "env": "prod"}, grants=grants)
    async with database.reading() as connection:
        before = await tokens.read(connection, "T1")
    assert before is not None
    return before, await update(database, "T1", **fields)


async def test_every_field_that_can_be_updated_is_written_and_no_other(database: Database) -> None:
    wanted: dict[str, Any] = {
        "display_name": "Ünï'; --",
        "description": "new",
        "labels": {"team": "ops", "new": ""},
        "grants": (Grant("b_set", ("p2", "p3")), Grant("c_set", None)),
        "expire_time": END,
        "allow_self_rotation": True,
    }
    before, after = await before_and_after(database, **wanted)

    assert after == replace(before, **wanted, update_time=after.update_time, revision=after.revision)
    assert after.update_time > before.update_time
    async with database.reading() as connection:
        assert after.revision == (await changes.read_end(connection)).number
        other = await tokens.read(connection, "T0")
    assert other is not None
    assert (other.grants, other.labels) == (before.grants, before.labels)


async def test_rows_that_lists_read_follow_and_keep_the_tokens_ordinal(database: Database) -> None:
    before, _ = await before_and_after(
        database, labels={"team": "ops", "env": "prod", "new": ""}, grants=(Grant("b_set", ("p2", "p3")),)
    )

    labels = await rows_of(
        database, "SELECT account_id, key, value, ordinal FROM token_labels WHERE token_id = $1 ORDER BY key"
    )
    granted = await rows_of(
        database, "SELECT account_id, permission_set, scope, ordinal FROM grants WHERE token_id = $1 ORDER BY scope"
    )

    assert before.ordinal == 2
    assert labels == [("acme", "env", "prod", 2), ("acme", "new", "", 2), ("acme", "team", "ops", 2)]
    assert granted == [("acme", "b_set", "p2", 2), ("acme", "b_set", "p3", 2)]


async def test_what_stays_is_not_written_again(database: Database) -> None:
    """Else an update of one label of a token with 100 grants on 1,000 projects would write 100,000 rows."""
    sql = "SELECT permission_set, scope, xmin::text FROM grants WHERE token_id = $1 ORDER BY 1, 2"
    await before_and_after(database, description="new")
    before = await rows_of(database, sql)

    await update(database, "T1", grants=(Grant("a_set", None), Grant("b_set", ("p1", "p2", "p3"))), labels={})

    after = await rows_of(database, sql)
    assert [row for row in after if row[1] != "p3"] == before
    assert len(after) == len(before) + 1


async def test_everything_can_be_taken_away(database: Database) -> None:
    _, after = await before_and_after(database, labels={}, grants=(Grant("c_set", None),), expire_time=None)

    assert (after.labels, after.grants, after.expire_time) == ({}, (Grant("c_set", None),), None)
    assert await rows_of(database, "SELECT 1 FROM token_labels WHERE token_id = $1") == []


async def test_a_token_is_disabled_and_enabled_and_stays_what_it_was(database: Database) -> None:
    before, _ = await before_and_after(database, description="new")

    async def disable(tx: Transaction, token: Token) -> None:
        await token_changes.set_disabled(tx, token.token_id, disabled=True)

    async def enable(tx: Transaction, token: Token) -> None:
        await token_changes.set_disabled(tx, token.token_id, disabled=False)

    disabled = await changed(database, "T1", disable)
    enabled = await changed(database, "T1", enable)

    assert disabled == replace(
        before, description="new", disabled=True, update_time=disabled.update_time, revision=disabled.revision
    )
    assert enabled == replace(disabled, disabled=False, update_time=enabled.update_time, revision=enabled.revision)
    assert before.update_time < disabled.update_time < enabled.update_time
    assert before.revision < disabled.revision < enabled.revision
