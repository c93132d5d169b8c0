"""An answer is kept with its mutation or not at all, for ten minutes by the database's time, and found by its key alone."""

from __future__ import annotations

import secrets
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest

from doorward_server.storage import idempotency
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.idempotency import KEPT, SealedResponse
from tests.support.database import change_of, event_of, put_account

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

T = TypeVar("T")

CALLER = "operator:tester"


def a_key() -> bytes:
    return secrets.token_bytes(32)


def a_response() -> SealedResponse:
    return SealedResponse(secrets.token_bytes(32), secrets.token_bytes(100))


async def inside(database: Database, act: Callable[[Transaction], Awaitable[T]], account_id: str = "acme") -> T:
    """What `act` answers under the lock of an account, committed."""

    async def decide(tx: Transaction) -> Decided[T]:
        answer = await act(tx)
        tx.wrote_account(account_id)
        return Decided(answer, change_of(f"account:{account_id}", account_id), event_of(f"account:{account_id}"))

    return (await commit(database, decide, accounts=[account_id])).value


async def age(database: Database, by: timedelta) -> None:
    """Lets every kept answer be older."""
    async with database.reading() as connection:
        await connection.execute("UPDATE idempotent_responses SET expires = expires - $1::interval", by)


async def test_what_is_kept_is_found_by_its_key_and_by_no_other(database: Database) -> None:
    await put_account(database, "acme")
    key_hash, response = a_key(), a_response()

    kept = await inside(database, lambda tx: idempotency.keep(tx, key_hash, CALLER, response))

    assert kept is True
    assert await inside(database, lambda tx: idempotency.find(tx, key_hash)) == response
    assert await inside(database, lambda tx: idempotency.find(tx, a_key())) is None


async def test_it_expires_ten_minutes_after_its_own_transaction(database: Database) -> None:
    await put_account(database, "acme")
    key_hash = a_key()
    await inside(database, lambda tx: idempotency.keep(tx, key_hash, CALLER, a_response()))

    await age(database, KEPT - timedelta(seconds=30))
    nearly = await inside(database, lambda tx: idempotency.find(tx, key_hash))
    await age(database, timedelta(seconds=30))
    expired = await inside(database, lambda tx: idempotency.find(tx, key_hash))

    assert timedelta(minutes=10) == KEPT
    assert nearly is not None
    assert expired is None


async def test_a_living_answer_is_never_replaced_and_an_expired_one_makes_room(database: Database) -> None:
    await put_account(database, "acme")
    key_hash, first, second = a_key(), a_response(), a_response()
    await inside(database, lambda tx: idempotency.keep(tx, key_hash, CALLER, first))

    refused = await inside(database, lambda tx: idempotency.keep(tx, key_hash, CALLER, second))
    found = await inside(database, lambda tx: idempotency.find(tx, key_hash))
    await age(database, KEPT)
    replaced = await inside(database, lambda tx: idempotency.keep(tx, key_hash, "operator:other", second))

    assert (refused, found, replaced) == (False, first, True)
    assert await inside(database, lambda tx: idempotency.find(tx, key_hash)) == second


async def test_what_is_rolled_back_is_not_kept(database: Database) -> None:
    await put_account(database, "acme")
    key_hash = a_key()

    async def keep_and_fail(tx: Transaction) -> None:
        assert await idempotency.keep(tx, key_hash, CALLER, a_response())
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await inside(database, keep_and_fail)

    assert await inside(database, lambda tx: idempotency.find(tx, key_hash)) is None


async def test_retention_deletes_what_has_expired_a_few_at_a_time(database: Database) -> None:
    await put_account(database, "acme")
    keys = [a_key() for _ in range(5)]
    for key_hash in keys[:4]:
        await inside(database, partial(idempotency.keep, key_hash=key_hash, caller=CALLER, response=a_response()))
    await age(database, KEPT)
    await inside(database, lambda tx: idempotency.keep(tx, keys[4], CALLER, a_response()))

    async with database.reading() as connection:
        deleted = [await idempotency.delete_expired(connection, 3) for _ in range(3)]
        left = await connection.fetch("SELECT key_hash FROM idempotent_responses")

    assert deleted == [3, 1, 0]
    assert [row["key_hash"] for row in left] == [keys[4]]


def test_neither_is_shown() -> None:
    response = a_response()

    assert repr(response.sealed) not in repr(response)
