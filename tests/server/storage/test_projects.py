"""A project goes, and with it its id out of every grant; whoever puts the id next comes after it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from doorward_server.model import AccountState, Grant
from doorward_server.storage import accounts, projects, tokens
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.projects import COUNT_REVOKED, DELETE, FORGET, Narrowed, Taken
from tests.support.database import change_of, event_of, issue_token, opened, put_account
from tests.support.issuing import put_project, revoke

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doorward_server.model import Token
    from doorward_server.storage.changes import Committed, Transaction
    from doorward_server.storage.pool import Database


async def delete(
    database: Database, account_id: str, project_id: str, pause: Pause | None = None
) -> Committed[Narrowed]:
    async def decide(tx: Transaction) -> Decided[Narrowed]:
        narrowed = await projects.delete(tx, account_id, project_id)
        if pause is not None:
            await pause.here()
        return Decided(narrowed, change_of(f"project:{project_id}", account_id), event_of(f"project:{project_id}"))

    return await commit(database, decide, accounts=[account_id])


class Pause:
    """Holds a transaction where it is until it is released."""

    def __init__(self) -> None:
        self.reached, self._released = asyncio.Event(), asyncio.Event()

    async def here(self) -> None:
        self.reached.set()
        await self._released.wait()

    def release(self) -> None:
        self._released.set()


async def token_of(database: Database, token_id: str) -> Token:
    async with database.reading() as connection:
        found = await tokens.read(connection, token_id)
    assert found is not None
    return found


async def an_account_with(database: Database, account_id: str, *project_ids: str) -> None:
    await put_account(database, account_id)
    for project_id in project_ids:
        await put_project(database, account_id, project_id)


async def test_the_id_leaves_every_grant_and_an_empty_grant_goes(database: Database) -> None:
    await an_account_with(database, "acme", "p1", "p2")
    held = {
        "both": (Grant("job_admin", ("p1", "p2")), Grant("member", ("p1",))),
        "every": (Grant("job_admin", None),),
        "first": (Grant("member", ("p1",)),),
        "second": (Grant("member", ("p2",)),),
    }
    for token_id, grants in held.items():
        await issue_token(database, token_id, "acme", grants=grants)

    deleted = await delete(database, "acme", "p1")

    assert deleted.value == Narrowed(Taken(grants_changed=3, grants_removed=2), ("both", "first"))
    left = {token_id: (await token_of(database, token_id)).grants for token_id in held}
    assert left == {
        "both": (Grant("job_admin", ("p2",)),),
        "every": (Grant("job_admin", None),),
        "first": (),
        "second": (Grant("member", ("p2",)),),
    }
    async with database.reading() as connection:
        assert await accounts.read_project(connection, "p1") is None


async def test_the_record_of_a_live_token_that_lost_a_grant_has_another_etag_and_time(database: Database) -> None:
    await an_account_with(database, "acme", "p1", "p2")
    for token_id in ("touched", "other"):
        await issue_token(
            database, token_id, "acme", grants=(Grant("member", None if token_id == "other" else ("p1", "p2")),)
        )
    states = [[await token_of(database, token_id) for token_id in ("touched", "other")]]

    ends = []
    for project_id in ("p1", "p2"):
        ends.append((await delete(database, "acme", project_id)).revision.number)
        states.append([await token_of(database, token_id) for token_id in ("touched", "other")])

    touched, others = zip(*states, strict=True)
    revisions = [token.revision for token in touched]
    assert revisions == sorted(set(revisions)), "each state has an etag of its own"
    assert all(revision <= end for revision, end in zip(revisions[1:], ends, strict=True)), "and no later one's"
    assert touched[0].update_time < touched[1].update_time < touched[2].update_time
    assert set(map(repr, others)) == {repr(others[0])}


async def test_revoked_tokens_forget_the_project_a_portion_at_a_time_and_their_rows_stay(database: Database) -> None:
    await an_account_with(database, "acme", "p1", "p2")
    for number in range(3):
        grants = (Grant("job_admin", ("p1", "p2")), Grant("member", ("p1",)))
        await issue_token(database, f"t{number}", "acme", grants=grants)
        await revoke(database, "acme", f"t{number}")
    before = await token_of(database, "t0")

    async def forget(limit: int | None) -> Taken:
        async def decide(tx: Transaction) -> Decided[Taken]:
            counted = await projects.count_revoked(tx, "acme", "p1", limit)
            taken = await projects.forget(tx, "acme", "p1", limit)
            assert taken.grants_changed == counted.grants_changed
            return Decided(taken, change_of("project:p1", "acme"), event_of("project:p1"))

        return (await commit(database, decide, accounts=["acme"])).value

    deleted = await delete(database, "acme", "p1")
    portion, rest = await forget(4), await forget(None)

    assert deleted.value == Narrowed(Taken(0, 0), ())
    assert (portion.grants_changed, rest.grants_changed) == (4, 2)
    assert portion + rest == Taken(6, 3)
    assert await token_of(database, "t0") == replace(before, grants=(Grant("job_admin", ("p2",)),))


async def test_what_nobody_was_granted_goes_alone(database: Database) -> None:
    await an_account_with(database, "acme", "p1")

    assert (await delete(database, "acme", "p1")).value == Narrowed(Taken(0, 0), ())


async def test_another_account_that_puts_the_id_meanwhile_waits_and_comes_later(database: Database) -> None:
    await an_account_with(database, "acme", "p1")
    await put_account(database, "other")
    pause = Pause()
    deleting = asyncio.ensure_future(delete(database, "acme", "p1", pause))
    await pause.reached.wait()

    putting = asyncio.ensure_future(put_project(database, "other", "p1"))
    async with database.reading() as connection:
        while not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            assert not putting.done()
    pause.release()

    assert (await deleting).revision.number < await putting
    async with database.reading() as connection:
        project = await accounts.read_project(connection, "p1")
    assert project is not None
    assert project.account_id == "other"


async def test_accounts_that_pass_ids_to_and_fro_never_wait_for_each_other_in_a_circle(database: Database) -> None:
    """Each deletes one id and puts the other, again and again, in opposite orders."""
    await an_account_with(database, "a", "p1")
    await an_account_with(database, "b", "p2")

    async def swap(account_id: str, mine: str, yours: str) -> None:
        for _ in range(8):
            await delete(database, account_id, mine)
            # Where the other one still has it, nothing is written.
            await put_project(database, account_id, yours)
            mine, yours = yours, mine

    await asyncio.gather(swap("a", "p1", "p2"), swap("b", "p2", "p1"))

    async with database.reading() as connection:
        deadlocks = await connection.fetchval(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
    assert deadlocks == 0


async def test_a_plan_from_when_there_was_next_to_nothing_is_not_kept(database: Database, database_url: str) -> None:
    """On one connection, six small deletions first: then PostgreSQL would keep their plan, which looks at every token."""
    await put_account(database, "acme")
    async with opened(database_url, pool_size=1) as one:
        for number in range(8):
            await put_project(database, "acme", f"p{number}")
            await delete(one, "acme", f"p{number}")
        await put_project(database, "acme", "big")
        async with database.reading() as connection:
            await connection.execute(
                "INSERT INTO tokens (token_id, account_id, display_name, description, labels, allow_self_rotation, disabled,"
                " create_time, update_time, created_by, ordinal, revision) SELECT 't' || n, 'acme', '', '', '{}', false,"
                " false, now(), now(), 'operator:x', n, 1 FROM generate_series(1, 9000) AS n"
            )
            await connection.execute(
                "INSERT INTO grants (token_id, account_id, permission_set, scope, ordinal)"
                " SELECT 't' || n, 'acme', 'member', 'big', n FROM generate_series(1, 9000) AS n"
            )

        deleted = await delete(one, "acme", "big")

    assert deleted.value.taken == Taken(9000, 9000)


async def test_an_account_gets_another_state_in_place(database: Database) -> None:
    await put_account(database, "acme")

    async def decide(tx: Transaction) -> Decided[AccountState]:
        account = await accounts.set_state(tx, "acme", AccountState.SUSPENDED)
        return Decided(account.state, change_of("account:acme", "acme"), event_of("account:acme"))

    committed = await commit(database, decide, accounts=["acme"])

    async with database.reading() as connection:
        account = await accounts.read(connection, "acme")
        loaded = await accounts.load(connection, "acme")
    assert account is not None
    assert (account.state, account.revision) == (AccountState.SUSPENDED, committed.revision.number)
    assert account.update_time > account.create_time
    assert loaded.state is AccountState.SUSPENDED


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [(DELETE, ("p1", "acme", datetime.now(UTC))), (FORGET, ("p1", "acme", 9)), (COUNT_REVOKED, ("p1", "acme", 9))],
    ids=["delete", "forget", "count"],
)
async def test_the_grants_of_a_project_are_found_by_its_index(
    database: Database, statement: str, arguments: tuple[object, ...]
) -> None:
    await an_account_with(database, "acme", "p1")
    async with database.reading() as connection:
        # Also without knowing the parameters, as a prepared statement may be planned.
        await connection.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
        prepared = await connection.prepare(statement)
        (plan,) = await prepared.explain(*arguments)
        await connection.execute("RESET ALL")
    assert "grants_by_project" in {node.get("Index Name") for node in nodes(plan["Plan"])}
