"""Accounts and projects: written through the door, read by key, loaded with a position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward_server.model import AccountState, Page, Project
from doorward_server.storage import accounts, changes
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.failures import StatementRefused
from tests.support.database import change_of, event_of, put_account

if TYPE_CHECKING:
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database


async def put_project(database: Database, account_id: str, project_id: str, display_name: str = "") -> Project | None:
    async def decide(tx: Transaction) -> Decided[Project | None]:
        project = await accounts.upsert_project(tx, account_id, project_id, display_name)
        change = None if project is None else change_of(f"project:{project_id}", account_id)
        return Decided(project, change, event_of(f"project:{project_id}"))

    return (await commit(database, decide, accounts=[account_id])).value


async def test_an_account_is_made_and_then_changed_in_place(database: Database) -> None:
    await put_account(database, "acme", plan="team")
    async with database.reading() as connection:
        made = await accounts.read(connection, "acme")
    await put_account(database, "acme", plan="enterprise")
    async with database.reading() as connection:
        changed = await accounts.read(connection, "acme")

    assert made is not None
    assert changed is not None
    assert (made.plan, made.state, made.revision, made.live_tokens) == ("team", AccountState.ACTIVE, 1, 0)
    assert (changed.plan, changed.revision, changed.create_time) == ("enterprise", 2, made.create_time)
    assert changed.update_time > made.update_time == made.create_time


async def test_an_unknown_account_is_read_as_none(database: Database) -> None:
    async with database.reading() as connection:
        assert await accounts.read(connection, "nobody") is None
        assert await accounts.read_project(connection, "nothing") is None


async def test_pages_follow_the_bytes_of_the_ids(database: Database) -> None:
    ids = ["B", "a", "_", "A-1", "A1", "Z"]
    for account_id in ids:
        await put_account(database, account_id)
    async with database.reading() as connection:
        first = await accounts.list_page(connection, Page(4))
        rest = await accounts.list_page(connection, Page(4, (first[-1].account_id,)))
    assert [account.account_id for account in first + rest] == sorted(ids, key=str.encode)


async def test_an_id_of_another_form_is_refused_by_the_schema_too(database: Database) -> None:
    for account_id in ("", "a b", "a'; DROP TABLE accounts; --", "ä", "a" * 65, "a\n", "a.b", "*"):
        with pytest.raises(StatementRefused):
            await put_account(database, account_id)
    await put_account(database, "a" * 64)


async def test_ids_are_values_never_sql(database: Database) -> None:
    await put_account(database, "acme")
    async with database.reading() as connection:
        for text in ("' OR true --", "acme' --", "$1", "%", "acme\\"):
            assert await accounts.read(connection, text) is None
            assert await accounts.find_projects(connection, text, [text]) == frozenset()
        assert len(await accounts.list_page(connection, Page(10, ("' OR true --",)))) == 1


async def test_a_project_stays_with_its_account(database: Database) -> None:
    await put_account(database, "acme")
    await put_account(database, "other")
    made = await put_project(database, "acme", "p1", "One")
    renamed = await put_project(database, "acme", "p1", "Uno")
    moved = await put_project(database, "other", "p1", "Mine")

    assert made is not None
    assert renamed == Project("p1", "acme", "Uno", made.create_time)
    assert moved is None
    async with database.reading() as connection:
        assert await accounts.read_project(connection, "p1") == renamed


async def test_projects_are_listed_and_found_by_account(database: Database) -> None:
    for account_id in ("acme", "other"):
        await put_account(database, account_id)
    for project_id in ("p3", "p1", "p2"):
        await put_project(database, "acme", project_id)
    await put_project(database, "other", "p4")
    async with database.reading() as connection:
        first = await accounts.list_projects_page(connection, "acme", Page(2))
        rest = await accounts.list_projects_page(connection, "acme", Page(2, ("p2",)))
        found = await accounts.find_projects(connection, "acme", ["p1", "p4", "p9"])
    assert [project.project_id for project in first + rest] == ["p1", "p2", "p3"]
    assert found == {"p1"}


async def test_loads_come_with_the_position_also_of_what_is_not_there(database: Database) -> None:
    await put_account(database, "acme", plan="enterprise")
    await put_project(database, "acme", "p1")
    async with database.reading() as connection:
        end = await changes.read_end(connection)
        position = (end.epoch, end.number, end.nonce)
        account = await accounts.load(connection, "acme")
        nobody = await accounts.load(connection, "nobody")
        project = await accounts.load_project(connection, "p1")
        nothing = await accounts.load_project(connection, "nothing")
    assert account == accounts.LoadedAccount(*position, "enterprise", AccountState.ACTIVE)
    assert nobody == accounts.LoadedAccount(*position, None, None)
    assert project == accounts.LoadedProject(*position, "acme")
    assert nothing == accounts.LoadedProject(*position, None)
