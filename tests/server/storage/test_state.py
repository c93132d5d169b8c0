"""The one row of `state`, and what is said where there is none."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import pytest

from doorward_server import errors
from doorward_server.storage import accounts, changes, operators, state, tokens
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.migrate import migrate
from doorward_server.storage.pool import Database
from tests.support.database import HOLD_MS, event_of, opened, put_account

if TYPE_CHECKING:
    from doorward_server.storage.changes import Transaction


async def test_the_state_and_the_catalog_come_with_the_position(database: Database) -> None:
    await put_account(database, "acme")
    toml = resources.files("doorward_server.catalog").joinpath("permission_sets.toml").read_text(encoding="utf-8")
    async with database.reading() as connection:
        end = await changes.read_end(connection)
        assert await state.read_state(connection) == state.State(1, 1, end.nonce, 1)
        assert await state.load_catalog(connection) == state.LoadedCatalog(1, 1, end.nonce, 1, toml)


async def test_a_fingerprint_is_added_once_and_never_changed(database: Database) -> None:
    async with database.reading() as connection:
        assert await state.read_fingerprints(connection) == {}
        assert await state.add_fingerprint(connection, "k1", "f1")
        assert await state.add_fingerprint(connection, "k2", "f2")
        assert await state.add_fingerprint(connection, "k1", "f1")
        assert not await state.add_fingerprint(connection, "k1", "other")
        assert await state.read_fingerprints(connection) == {"k1": "f1", "k2": "f2"}


async def test_a_catalog_s_text_is_not_copied_with_every_change(database: Database) -> None:
    stored = "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'state'::regclass"
    async with database.reading() as connection:
        before = await connection.fetchval(stored)
        for _ in range(20):
            await put_account(database, "acme")
        assert before > 0
        assert await connection.fetchval(stored) == before


async def test_before_a_deployment_was_seeded_everything_is_unavailable(empty_database_url: str) -> None:
    await migrate(Database(empty_database_url, hold_ms=HOLD_MS))

    async def decide(tx: Transaction) -> Decided[None]:
        return Decided(None, None, event_of("catalog:"))

    async with opened(empty_database_url) as database:
        with pytest.raises(errors.Unavailable):
            await commit(database, decide)
        async with database.reading() as connection:
            assert await state.read_state(connection) is None
            for read in (
                changes.read_end(connection),
                state.load_catalog(connection),
                state.read_fingerprints(connection),
                tokens.load(connection, "x"),
                accounts.load(connection, "x"),
                accounts.load_project(connection, "x"),
                operators.load(connection, "x"),
            ):
                with pytest.raises(errors.Unavailable):
                    await read
