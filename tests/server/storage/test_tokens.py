"""Tokens: loaded in one snapshot, written through the door, listed by index reads."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from doorward_server.model import AccountState, Grant, Page, Token, TokenState
from doorward_server.storage import accounts, changes, tokens
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.failures import StatementRefused
from doorward_server.storage.tokens import LISTS, LOAD, READ, StoredToken
from tests.support.database import PEPPER_ID, a_stored_secret, change_of, event_of, issue_token, put_account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doorward_server.storage.changes import Committed, Transaction
    from doorward_server.storage.pool import Connection, Database

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


async def revoke(database: Database, token_id: str, account_id: str, reason: str = "") -> Committed[bool]:
    async def decide(tx: Transaction) -> Decided[bool]:
        revoked = await tokens.revoke(tx, token_id, reason)
        change = change_of(f"token:{token_id}", account_id) if revoked else None
        return Decided(revoked, change, event_of(f"token:{token_id}"))

    return await commit(database, decide, accounts=[account_id])


async def test_a_token_is_read_as_it_was_written(database: Database) -> None:
    await put_account(database, "acme")
    await issue_token(
        database,
        "T1",
        "acme",
        display_name="Ünï'; --",
        description="what it is for",
        labels={"team": "data", "ä": '"quoted"'},
        grants=(Grant("metadata_only", ("p2", "p1")), Grant("job_admin", None)),
        allow_self_rotation=True,
        expire_time=NOW,
    )
    async with database.reading() as connection:
        token = await tokens.read(connection, "T1")
        assert await tokens.read(connection, "T2") is None

    assert token is not None
    assert token == Token(
        token_id="T1",
        account_id="acme",
        display_name="Ünï'; --",
        description="what it is for",
        labels={"team": "data", "ä": '"quoted"'},
        grants=(Grant("job_admin", None), Grant("metadata_only", ("p1", "p2"))),
        allow_self_rotation=True,
        disabled=False,
        create_time=token.create_time,
        update_time=token.create_time,
        expire_time=NOW,
        revoke_time=None,
        revoke_reason="",
        created_by="operator:tester",
        create_revision=2,
        revision=2,
        last_used_time=None,
    )


async def test_what_lists_and_filters_will_read_is_written_with_the_token(database: Database) -> None:
    await put_account(database, "acme")
    await issue_token(database, "T1", "acme", labels={"team": "data"}, grants=(Grant("s", ("p1", "p2")),))
    async with database.reading() as connection:
        label = await connection.fetchrow("SELECT * FROM token_labels")
        secret = await connection.fetchrow("SELECT version, issued_to, pepper_id FROM token_secrets")
        granted = await connection.fetch("SELECT * FROM grants ORDER BY scope")
        activity = await connection.fetchrow("SELECT * FROM token_activity")
        token = await tokens.read(connection, "T1")
    assert token is not None
    assert label is not None
    assert secret is not None
    assert activity is not None
    assert dict(label) == {
        "account_id": "acme",
        "key": "team",
        "value": "data",
        "create_revision": 2,
        "token_id": "T1",
    }
    assert tuple(secret.values()) == (1, "operator:tester", PEPPER_ID)
    assert [tuple(row.values()) for row in granted] == [("T1", "acme", "s", "p1"), ("T1", "acme", "s", "p2")]
    assert (activity["idle_since"], activity["last_used_time"]) == (token.create_time, None)


async def test_a_token_of_no_account_is_refused(database: Database) -> None:
    with pytest.raises(StatementRefused):
        await issue_token(database, "T1", "nobody")


async def test_a_revocation_is_final_and_counted_once(database: Database) -> None:
    await put_account(database, "acme")
    for token_id in ("T1", "T2"):
        await issue_token(database, token_id, "acme")
    first = await revoke(database, "T1", "acme", "leaked")
    again = await revoke(database, "T1", "acme", "another reason")
    unknown = await revoke(database, "T9", "acme")

    assert [(outcome.value, outcome.changed) for outcome in (first, again, unknown)] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    async with database.reading() as connection:
        token = await tokens.read(connection, "T1")
        assert await tokens.count_live(connection, "acme") == 1
        assert await tokens.count_live(connection, "nobody") == 0
        account = await accounts.read(connection, "acme")
    assert token is not None
    assert token.revoke_time == token.update_time
    assert (token.revoke_reason, token.revision, token.create_revision) == ("leaked", 4, 2)
    assert account is not None
    assert (account.live_tokens, account.revision) == (1, 1), "counting is no change of the account"


async def test_a_load_has_all_that_a_decision_needs(database: Database) -> None:
    await put_account(database, "acme", plan="enterprise")
    grants = (Grant("a_set", None), Grant("b_set", ("p1", "p2")))
    await issue_token(database, "T1", "acme", grants=grants, expire_time=NOW, disabled=True)
    async with database.reading() as connection:
        second = a_stored_secret(version=2)
        await connection.execute(
            "INSERT INTO token_secrets (token_id, version, bcrypt_hash, not_after, issued_to) VALUES ($1, 2, $2, $3, '')",
            "T1",
            second.bcrypt_hash,
            NOW + timedelta(microseconds=1),
        )
        digest = await connection.fetchval("SELECT digest FROM token_secrets WHERE version = 1")
        end = await changes.read_end(connection)
        loaded = await tokens.load(connection, "T1")
        assert await tokens.read_hash(connection, "T1", 2) == second.bcrypt_hash
        assert await tokens.read_hash(connection, "T1", 3) is None
    now_us = 1_795_521_600_000_000
    assert loaded == tokens.LoadedToken(
        end.epoch,
        end.number,
        end.nonce,
        StoredToken(
            token_id="T1",
            account_id="acme",
            revoked=False,
            disabled=True,
            expire_us=now_us,
            secrets=((1, digest, PEPPER_ID, None), (2, None, None, now_us + 1)),
            grants=(("a_set", None), ("b_set", ("p1", "p2"))),
            plan="enterprise",
            account_state=AccountState.ACTIVE,
        ),
    )


async def test_a_load_of_what_is_not_there_has_the_position_too(database: Database) -> None:
    await put_account(database, "acme")
    async with database.reading() as connection:
        end = await changes.read_end(connection)
        for token_id in ("T1", "' OR true --", "", "%"):
            assert await tokens.load(connection, token_id) == tokens.LoadedToken(1, 1, end.nonce, None)


async def test_a_load_is_of_one_moment_while_writers_move_everything(database: Database) -> None:
    """Each change moves the token, its secret, its grant, its account and the revision together; torn shows at once.

    Read in two statements (the position first or last), or the secrets or grants in one of their own, a load in
    between two commits shows a revision that does not fit, within a few hundred loads.
    """
    await put_account(database, "acme")
    await issue_token(database, "T1", "acme")

    async def decide(tx: Transaction) -> Decided[None]:
        number = await tx.connection.fetchval("SELECT revision FROM state") + 1  # nobody else writes
        await tx.connection.execute(
            "UPDATE tokens SET disabled = $1, expire_time = to_timestamp($2)", number % 2 == 1, number
        )
        await tx.connection.execute("UPDATE token_secrets SET not_after = to_timestamp($1)", number)
        await tx.connection.execute("UPDATE grants SET permission_set = 'set' || $1::bigint", number)
        await tx.connection.execute("UPDATE accounts SET plan = 'plan' || $1::bigint", number)
        tx.wrote_token("T1")
        return Decided(None, change_of("token:T1", "acme"), event_of("token:T1"))

    async def write() -> None:
        for _ in range(120):
            await commit(database, decide, accounts=["acme"])

    await commit(database, decide, accounts=["acme"])
    writing = asyncio.create_task(write())
    seen: set[int] = set()
    while not writing.done():
        async with database.reading() as connection:
            loaded = await tokens.load(connection, "T1")
        number, token = loaded.number, loaded.token
        assert token is not None
        assert (token.disabled, token.expire_us, token.secrets[0][3], token.grants[0][0], token.plan) == (
            number % 2 == 1,
            number * 1_000_000,
            number * 1_000_000,
            f"set{number}",
            f"plan{number}",
        )
        assert loaded.nonce == await nonce_at(database, number)
        seen.add(number)
    await writing
    assert len(seen) > 20, "the writers and the loads did run beside each other"


async def nonce_at(database: Database, number: int) -> bytes:
    async with database.reading() as connection:
        (row,) = await changes.read_after(connection, number - 1, 1)
    return row.nonce


async def test_a_digest_is_written_back_for_the_proved_version_only(database: Database) -> None:
    await put_account(database, "acme")
    await issue_token(database, "T1", "acme")
    async with database.reading() as connection:
        assert not await tokens.write_back_digest(connection, "T1", 2, b"d" * 32, "pepper-2")
        assert not await tokens.write_back_digest(connection, "T2", 1, b"d" * 32, "pepper-2")
        before = await tokens.load(connection, "T1")
        assert await tokens.write_back_digest(connection, "T1", 1, b"d" * 32, "pepper-2")
        after = await tokens.load(connection, "T1")
    assert before.token is not None
    assert before.token.secrets[0][2] == PEPPER_ID
    assert after.token is not None
    assert after.token.secrets == ((1, b"d" * 32, "pepper-2", None),)
    assert after.number == before.number, "it is no change"


async def test_nothing_that_proves_a_token_is_shown() -> None:
    secret = a_stored_secret()
    stored = StoredToken(
        "T1", "acme", False, False, None, ((1, secret.digest, "k", None),), (), "p", AccountState.ACTIVE
    )
    assert str(secret.digest) not in repr(stored)


# Lists: one account among twenty, 300 tokens each, every state; the newest first.

ACCOUNTS, TOKENS = 20, 300


def copied_tokens() -> Iterator[tuple[Any, ...]]:
    for number in range(1, ACCOUNTS * TOKENS + 1):
        kind = number // ACCOUNTS % 10
        yield (
            f"T{number}",
            f"a{number % ACCOUNTS}",
            "",
            "",
            "{}",
            False,
            kind == 1,  # disabled
            NOW,
            NOW,
            {2: NOW, 3: NOW + timedelta(microseconds=1), 4: NOW}.get(
                kind
            ),  # expired at NOW; one moment later; revoked too
            NOW if kind >= 4 else None,  # revoked: six of ten
            "operator:tester",
            number,
            number,
        )


async def copy_tokens(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO accounts (account_id, display_name, plan, state, create_time, update_time, revision)"
        " SELECT 'a' || n, '', 'team', 'active', now(), now(), 1 FROM generate_series(0, 19) AS n"
    )
    await connection.copy_records_to_table(
        "tokens",
        records=list(copied_tokens()),
        columns=[
            "token_id",
            "account_id",
            "display_name",
            "description",
            "labels",
            "allow_self_rotation",
            "disabled",
            "create_time",
            "update_time",
            "expire_time",
            "revoke_time",
            "created_by",
            "create_revision",
            "revision",
        ],
    )
    await connection.execute("INSERT INTO grants SELECT token_id, account_id, 'job_admin', '*' FROM tokens")
    await connection.execute("INSERT INTO token_secrets SELECT token_id, 1, '', NULL, NULL, NULL, '' FROM tokens")
    await connection.execute("INSERT INTO token_activity SELECT token_id, account_id, NULL, create_time FROM tokens")
    await connection.execute("ANALYZE")


def kinds_of(state: TokenState | None) -> set[int]:
    return {
        None: set(range(10)),
        TokenState.ACTIVE: {0, 3},
        TokenState.DISABLED: {1},
        TokenState.EXPIRED: {2},
        TokenState.REVOKED: {4, 5, 6, 7, 8, 9},
    }[state]


async def test_pages_hold_each_token_of_the_account_and_state_once_newest_first(database: Database) -> None:
    async with database.reading() as connection:
        await copy_tokens(connection)
        for state in (None, *TokenState):
            listed: list[Token] = []
            page = Page(17)
            while rows := await tokens.list_page(connection, "a7", state, page, NOW):
                assert len(rows) <= 17
                listed += rows
                page = Page(17, (str(rows[-1].create_revision),))
            expected = [
                number
                for number in range(ACCOUNTS * TOKENS, 0, -1)
                if number % ACCOUNTS == 7 and number // ACCOUNTS % 10 in kinds_of(state)
            ]
            assert [token.create_revision for token in listed] == expected
            assert all(token.grants == (Grant("job_admin", None),) for token in listed)


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


async def plan_of(connection: Connection, mode: str, sql: str, types: str, values: str) -> list[dict[str, Any]]:
    await connection.execute(f"SET plan_cache_mode = force_{mode}_plan; PREPARE planned ({types}) AS {sql}")
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE planned ({values})")
    await connection.execute("DEALLOCATE planned; RESET plan_cache_mode")
    return list(nodes_of(json.loads(explained)[0]["Plan"]))


@pytest.mark.parametrize("mode", ["custom", "generic"])
async def test_lists_and_loads_read_the_indexes_that_are_meant_for_them(database: Database, mode: str) -> None:
    key = "text, bigint, integer"
    lists = {
        None: ({"tokens_by_account"}, key, "'a7', 5000, 20"),
        TokenState.ACTIVE: ({"tokens_live"}, key + ", timestamptz", "'a7', 5000, 20, '2026-11-24Z'"),
        TokenState.DISABLED: ({"tokens_disabled"}, key + ", timestamptz", "'a7', 5000, 20, '2026-11-24Z'"),
        TokenState.EXPIRED: (
            {"tokens_expiring", "tokens_live"},
            key + ", timestamptz",
            "'a7', 5000, 20, '2026-11-24Z'",
        ),
        TokenState.REVOKED: ({"tokens_revoked"}, key, "'a7', 5000, 20"),
    }
    async with database.reading() as connection:
        await copy_tokens(connection)
        for state, (meant, types, values) in lists.items():
            nodes = await plan_of(connection, mode, LISTS[state], types, values)
            used = {node["Index Name"] for node in nodes if node.get("Index Name", "").startswith("tokens_")}
            assert len(used) == 1, (state, nodes)
            assert used <= meant, (state, used)
            assert not [node for node in nodes if node["Node Type"] == "Seq Scan"], state
        for sql in (LOAD, READ):
            nodes = await plan_of(connection, mode, sql, "text", "'T77'")
            scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
            assert scanned <= {"state", "accounts"}, "tables of a page or two; the rest by key"
