"""Tokens: loaded in one snapshot, written through the door. How they are listed: test_token_lists.py."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from doorward_server.model import AccountState, Grant, Token
from doorward_server.storage import accounts, changes, tokens
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.failures import StatementRefused
from doorward_server.storage.tokens import StoredToken
from tests.support.database import PEPPER_ID, a_stored_secret, change_of, event_of, issue_token, put_account

if TYPE_CHECKING:
    from doorward_server.storage.changes import Committed, Transaction
    from doorward_server.storage.pool import Database

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
LATER_US = 4_102_444_800_000_000


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
        ordinal=1,
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
        "ordinal": 1,
        "token_id": "T1",
    }
    assert tuple(secret.values()) == (1, "operator:tester", PEPPER_ID)
    assert [tuple(row.values()) for row in granted] == [("T1", "acme", "s", "p1", 1), ("T1", "acme", "s", "p2", 1)]
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
    assert (token.revoke_reason, token.revision, token.ordinal) == ("leaked", 4, 1)
    assert account is not None
    assert (account.live_tokens, account.revision) == (1, 1), "counting is no change of the account"


async def test_a_load_has_all_that_a_decision_needs_and_no_secret_that_has_ended(database: Database) -> None:
    await put_account(database, "acme", plan="enterprise")
    grants = (Grant("a_set", None), Grant("b_set", ("p1", "p2")))
    await issue_token(database, "T1", "acme", grants=grants, expire_time=NOW, disabled=True)
    async with database.reading() as connection:
        second = a_stored_secret(version=2)
        await connection.execute(
            "INSERT INTO token_secrets (token_id, version, bcrypt_hash, not_after, issued_to) VALUES ($1, 2, $2, $3, '')",
            "T1",
            second.bcrypt_hash,
            LATER,
        )
        await connection.execute(
            "INSERT INTO token_secrets (token_id, version, bcrypt_hash, not_after, issued_to) VALUES ($1, 3, $2, $3, '')",
            "T1",
            second.bcrypt_hash,
            await connection.fetchval("SELECT clock_timestamp()"),
        )
        digest = await connection.fetchval("SELECT digest FROM token_secrets WHERE version = 1")
        end = await changes.read_end(connection)
        loaded = await tokens.load(connection, "T1")
        assert await tokens.read_hash(connection, "T1", 2) == second.bcrypt_hash
        assert await tokens.read_hash(connection, "T1", 4) is None
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
            secrets=((1, digest, PEPPER_ID, None), (2, None, None, LATER_US)),
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
        await tx.connection.execute(
            "UPDATE token_secrets SET not_after = to_timestamp($1)", LATER_US // 1_000_000 + number
        )
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
            LATER_US + number * 1_000_000,
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


async def test_many_are_revoked_at_once_those_that_were_not_before(database: Database) -> None:
    await put_account(database, "acme")
    for token_id in ("T1", "T2", "T3", "T4"):
        await issue_token(database, token_id, "acme")
    await revoke(database, "T1", "acme", "before")

    async def decide(tx: Transaction) -> Decided[frozenset[str]]:
        revoked = await tokens.revoke_many(tx, ["T1", "T2", "T3", "T9"], "leaked")
        return Decided(revoked, change_of("token:T2", "acme"), event_of("account:acme"))

    outcome = await commit(database, decide, accounts=["acme"])

    assert outcome.value == {"T2", "T3"}
    async with database.reading() as connection:
        records = await tokens.read_many(connection, ["T4", "T3", "T9", "T1"])
        idle = await connection.fetch("SELECT token_id FROM token_activity WHERE idle_since IS NOT NULL")
        assert await tokens.count_live(connection, "acme") == 1
    assert [(token.token_id, token.revoke_reason) for token in records] == [
        ("T4", ""),
        ("T3", "leaked"),
        ("T1", "before"),
    ]
    assert [token.revision for token in records] == [5, outcome.revision.number, 6]
    assert [row["token_id"] for row in idle] == ["T4"], "no list of idle tokens comes across one that is revoked"


async def test_ordinals_count_the_tokens_of_each_account(database: Database) -> None:
    for account_id in ("acme", "other"):
        await put_account(database, account_id)
    for number in range(3):
        await issue_token(database, f"A{number}", "acme", labels={"k": "v"})
    await issue_token(database, "O", "other")
    await revoke(database, "A2", "acme")
    await issue_token(database, "A3", "acme")
    async with database.reading() as connection:
        rows = await connection.fetch(
            "SELECT token_id, tokens.ordinal, array_agg(DISTINCT repeated.ordinal) AS repeated FROM tokens JOIN ("
            "SELECT token_id, ordinal FROM grants UNION ALL SELECT token_id, ordinal FROM token_labels UNION ALL"
            " SELECT token_id, ordinal FROM token_activity) AS repeated USING (token_id) GROUP BY token_id ORDER BY token_id"
        )
    assert [(row["token_id"], row["ordinal"]) for row in rows] == [("A0", 1), ("A1", 2), ("A2", 3), ("A3", 4), ("O", 1)]
    assert all(row["repeated"] == [row["ordinal"]] for row in rows)
