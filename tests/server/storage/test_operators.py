"""Operators: written through the door, loaded with a position."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from doorward_server.model import Operator, OperatorRole, Page
from doorward_server.storage import changes, operators
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.operators import StoredOperator
from tests.support.database import PEPPER_ID, a_stored_secret, change_of, event_of

if TYPE_CHECKING:
    from doorward_server.model import StoredSecret
    from doorward_server.storage.changes import Transaction
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


async def test_an_operator_is_read_and_listed_as_written(database: Database) -> None:
    for operator_id, role in zip("bac", OperatorRole, strict=True):
        await create(database, operator_id, role)
    async with database.reading() as connection:
        found = await operators.read(connection, "a")
        first = await operators.list_page(connection, Page(2))
        rest = await operators.list_page(connection, Page(2, ("b",)))
        assert await operators.read(connection, "nobody") is None
    assert found is not None
    assert (found.role, found.display_name, found.revoke_time, found.revision) == (
        OperatorRole.AUDITOR,
        "Root",
        None,
        2,
    )
    assert [operator.operator_id for operator in first + rest] == ["a", "b", "c"]


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
