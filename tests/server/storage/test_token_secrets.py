"""A token's secrets: one is current, one more may live, numbers are never used twice, and rows do not pile up."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from doorward_server.storage import token_secrets, tokens
from doorward_server.storage.changes import Decided, commit
from tests.support.database import a_stored_secret, change_of, event_of, issue_token, put_account

if TYPE_CHECKING:
    from datetime import datetime

    from doorward_server.model import StoredSecret
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database
    from doorward_server.storage.token_secrets import LiveSecret

HOUR = timedelta(hours=1)


async def rotate(
    database: Database, version: int, ends: dict[int, timedelta], issued_to: str = "operator:tester"
) -> tuple[datetime, StoredSecret]:
    """Makes `version` the current one; `ends`, from now. When that was, and what was stored."""
    secret = a_stored_secret(version)

    async def decide(tx: Transaction) -> Decided[datetime]:
        await token_secrets.rotate(
            tx, "T1", {version: tx.now + after for version, after in ends.items()}, secret, issued_to
        )
        return Decided(tx.now, change_of("token:T1", "acme"), event_of("token:T1"))

    return (await commit(database, decide, accounts=["acme"])).value, secret


async def a_token(database: Database) -> None:
    await put_account(database, "acme")
    await issue_token(database, "T1", "acme")


async def live(database: Database, at: datetime) -> list[LiveSecret]:
    async with database.reading() as connection:
        return await token_secrets.read_live(connection, "T1", at)


async def rows(database: Database) -> list[tuple[int, str]]:
    async with database.reading() as connection:
        found = await connection.fetch("SELECT version, issued_to FROM token_secrets ORDER BY version")
    return [tuple(row) for row in found]


async def test_the_former_secret_lives_until_its_end_and_the_current_one_has_none(database: Database) -> None:
    await a_token(database)
    now, _ = await rotate(database, 2, {1: HOUR})

    during = await live(database, now)
    before_the_end = await live(database, now + HOUR - timedelta(microseconds=1))
    at_the_end = await live(database, now + HOUR)

    assert [(secret.version, secret.not_after) for secret in during] == [(1, now + HOUR), (2, None)]
    assert before_the_end == during
    assert [(secret.version, secret.not_after) for secret in at_the_end] == [(2, None)]


async def test_a_secret_that_is_stopped_at_once_is_not_live_at_that_very_moment(database: Database) -> None:
    await a_token(database)
    now, _ = await rotate(database, 2, {1: timedelta(0)})

    assert [secret.version for secret in await live(database, now)] == [2]


async def test_a_rotation_is_a_change_of_the_token_and_of_its_secrets_alone(database: Database) -> None:
    await a_token(database)
    async with database.reading() as connection:
        before = await tokens.read(connection, "T1")
    now, stored = await rotate(database, 2, {1: HOUR}, issued_to="token:T9")
    async with database.reading() as connection:
        after = await tokens.read(connection, "T1")
        row = await connection.fetchrow("SELECT * FROM token_secrets WHERE version = 2")
    assert before is not None
    assert after is not None
    assert row is not None

    assert after.update_time == now
    assert after.revision == before.revision + 1
    assert dict(row) == {
        "token_id": "T1",
        "version": 2,
        "bcrypt_hash": stored.bcrypt_hash,
        "digest": stored.digest,
        "pepper_id": stored.pepper_id,
        "not_after": None,
        "issued_to": "token:T9",
    }


async def test_of_ended_secrets_the_newest_of_each_recipient_is_kept(database: Database) -> None:
    """`obtained_by` asks who ever received one: that is not forgotten, and nothing else is remembered."""
    await a_token(database)
    at_once = timedelta(0)
    for version, issued_to in enumerate(("token:A", "token:A", "token:B", "token:A", "token:C", "token:C"), start=2):
        await rotate(database, version, {version - 1: at_once}, issued_to)

    assert await rows(database) == [
        (1, "operator:tester"),
        (4, "token:B"),
        (5, "token:A"),
        (6, "token:C"),  # ended by the last rotation; goes with the next one
        (7, "token:C"),
    ]


async def test_a_token_that_rotates_itself_for_ever_keeps_a_handful_of_rows(database: Database) -> None:
    await a_token(database)
    for version in range(2, 30):
        await rotate(database, version, {version - 1: timedelta(0)}, "token:T1")

    assert await rows(database) == [(1, "operator:tester"), (28, "token:T1"), (29, "token:T1")]


async def test_a_secret_in_its_overlap_is_never_forgotten(database: Database) -> None:
    await a_token(database)
    await rotate(database, 2, {1: HOUR})
    for version in (3, 4, 5):
        await rotate(database, version, {1: HOUR, version - 1: timedelta(0)})
    now, _ = await rotate(database, 6, {1: HOUR, 5: timedelta(0)})

    assert [secret.version for secret in await live(database, now)] == [1, 6]


@pytest.mark.parametrize("rotations", [1, 2], ids=["ended", "gone"])
async def test_a_digest_is_not_written_back_to_a_secret_that_has_ended(database: Database, rotations: int) -> None:
    """A bcrypt of the old secret that is done after a rotation changes nothing (faults, 39)."""
    await a_token(database)
    for version in range(2, 2 + rotations):
        await rotate(database, version, {version - 1: timedelta(0)})
    async with database.reading() as connection:
        before = await connection.fetch("SELECT version, digest FROM token_secrets ORDER BY version")
        written = await tokens.write_back_digest(connection, "T1", 1, bytes(32), "pepper-1")
        after = await connection.fetch("SELECT version, digest FROM token_secrets ORDER BY version")

    assert written is False
    assert after == before
    assert (1 in [row["version"] for row in after]) is (rotations == 1)
