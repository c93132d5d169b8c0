"""Operators: written through the door, loaded with a position."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from doorward_server.model import Operator, OperatorRole, Page
from doorward_server.storage import changes, operators
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.operators import StoredOperator
from tests.support.database import PEPPER_ID, a_stored_secret, change_of, event_of

if TYPE_CHECKING:
    from doorward_server.model import StoredSecret
    from doorward_server.storage.changes import Committed, Transaction
    from doorward_server.storage.pool import Database


async def create(
    database: Database, operator_id: str, role: OperatorRole, expires_in: timedelta | None = None
) -> tuple[Operator, StoredSecret]:
    secret = a_stored_secret()

    async def decide(tx: Transaction) -> Decided[Operator]:
        expire_time = None if expires_in is None else tx.now + expires_in
        operator = Operator(operator_id, role, "Root", tx.now, expire_time, None, 0)
        await operators.insert(tx, operator, secret)
        subject = f"operator:{operator_id}"
        return Decided(operator, change_of(subject), event_of(subject))

    return (await commit(database, decide)).value, secret


async def revoke(database: Database, operator_id: str) -> Committed[bool]:
    async def decide(tx: Transaction) -> Decided[bool]:
        revoked = await operators.revoke(tx, operator_id)
        subject = f"operator:{operator_id}"
        return Decided(revoked, change_of(subject) if revoked else None, event_of(subject))

    return await commit(database, decide, operators_update=[operator_id])


async def test_an_operator_is_read_as_written(database: Database) -> None:
    made, _ = await create(database, "a", OperatorRole.AUDITOR)
    async with database.reading() as connection:
        found = await operators.read(connection, "a")
        assert await operators.read(connection, "nobody") is None
    assert found == replace(made, revision=1)


async def test_operators_are_listed_newest_first_by_role_and_activity(database: Database) -> None:
    async with database.reading() as connection:
        assert not await operators.exists(connection)
    for operator_id, role in zip("bac", OperatorRole, strict=True):
        await create(database, operator_id, role)
    await create(database, "expired", OperatorRole.ADMIN, timedelta(seconds=-1))
    await create(database, "later", OperatorRole.ADMIN, timedelta(days=1))
    await revoke(database, "a")
    async with database.reading() as connection:
        assert await operators.exists(connection)
        first = await operators.list_page(connection, Page(2))
        rest = await operators.list_page(
            connection, Page(9, (first[-1].create_time.isoformat(), first[-1].operator_id))
        )
        active = await operators.list_page(connection, Page(9), include_inactive=False)
        admins = await operators.list_page(connection, Page(9), role=OperatorRole.ADMIN, include_inactive=False)
    assert [operator.operator_id for operator in first + rest] == ["later", "expired", "c", "a", "b"]
    assert [operator.operator_id for operator in active] == ["later", "c", "b"]
    assert [operator.operator_id for operator in admins] == ["later", "b"]


async def test_operators_of_one_moment_are_paged_by_id(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        for operator_id in ("x", "z", "y"):
            operator = Operator(operator_id, OperatorRole.CALLER, "", tx.now, None, None, 0)
            await operators.insert(tx, operator, a_stored_secret())
        return Decided(None, change_of("operator:x"), event_of("operator:x"))

    await commit(database, decide)
    async with database.reading() as connection:
        found: list[Operator] = []
        while page := await operators.list_page(
            connection, Page(1, (found[-1].create_time.isoformat(), found[-1].operator_id) if found else None)
        ):
            found += page
    assert [operator.operator_id for operator in found] == ["z", "y", "x"]


async def test_an_operator_is_revoked_once_and_keeps_the_first_time(database: Database) -> None:
    await create(database, "a", OperatorRole.ADMIN)
    first = await revoke(database, "a")
    again = await revoke(database, "a")
    async with database.reading() as connection:
        found = await operators.read(connection, "a")
        loaded = (await operators.load(connection, "a")).operator
    assert found is not None
    assert loaded is not None
    assert (first.value, again.value) == (True, False)
    assert (found.revision, again.changed) == (first.revision.number, False)
    assert found.revoke_time is not None
    assert loaded.revoked


async def test_a_load_has_the_position_and_what_proves_the_operator(database: Database) -> None:
    operator, secret = await create(database, "root", OperatorRole.ADMIN, timedelta(days=1))
    async with database.reading() as connection:
        end = await changes.read_end(connection)
        loaded = await operators.load(connection, "root")
        nobody = await operators.load(connection, "nobody")
        assert await operators.read_hash(connection, "root") == secret.bcrypt_hash
        assert await operators.read_hash(connection, "nobody") is None
    assert operator.expire_time is not None
    expire_us = round(operator.expire_time.timestamp() * 1_000_000)
    assert loaded == operators.LoadedOperator(
        end.epoch,
        end.number,
        end.nonce,
        StoredOperator("root", OperatorRole.ADMIN, False, expire_us, secret.digest, PEPPER_ID),
    )
    assert nobody == operators.LoadedOperator(end.epoch, end.number, end.nonce, None)


async def test_an_active_admin_exists_only_while_one_is_neither_revoked_nor_expired(database: Database) -> None:
    async with database.reading() as connection:
        assert not await operators.active_admin_exists(connection)
        await create(database, "reader", OperatorRole.AUDITOR)
        await create(database, "former", OperatorRole.ADMIN, timedelta(seconds=-1))
        assert not await operators.active_admin_exists(connection)
        await create(database, "root", OperatorRole.ADMIN, timedelta(days=1))
        assert await operators.active_admin_exists(connection)
        await connection.execute("UPDATE operators SET revoke_time = now() WHERE operator_id = 'root'")
        assert not await operators.active_admin_exists(connection)


async def test_a_digest_is_written_back(database: Database) -> None:
    await create(database, "root", OperatorRole.ADMIN)
    async with database.reading() as connection:
        assert await operators.write_back_digest(connection, "root", b"d" * 32, "pepper-2")
        assert not await operators.write_back_digest(connection, "nobody", b"d" * 32, "pepper-2")
        loaded = (await operators.load(connection, "root")).operator
    assert loaded is not None
    assert (loaded.digest, loaded.pepper_id) == (b"d" * 32, "pepper-2")
