"""Live tokens with their grants, for previews: counted, paged in one account, walked over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward_server.model import AccountState, Grant, Page
from doorward_server.storage import accounts, previews
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.previews import AccountSize, GrantCounts, HeldToken
from tests.support.database import change_of, event_of, issue_token, put_account
from tests.support.issuing import revoke

if TYPE_CHECKING:
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

ADMIN, MEMBER, RUNNER = Grant("job_admin", None), Grant("member", ("p1", "p2")), Grant("job_runner", None)


async def delete_account(database: Database, account_id: str) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        await accounts.set_state(tx, account_id, AccountState.DELETED)
        return Decided(None, change_of(f"account:{account_id}"), event_of(f"account:{account_id}"))

    await commit(database, decide, accounts=[account_id])


@pytest.fixture
async def peopled(database: Database) -> Database:
    """`acme` with t1 to t4, of which t4 is revoked; `other` with o1; `empty` without a token; `gone`, deleted, with g1."""
    for account_id in ("acme", "other", "empty", "gone"):
        await put_account(database, account_id)
    held = {"t1": (ADMIN, MEMBER), "t2": (MEMBER,), "t3": (RUNNER, MEMBER), "t4": (ADMIN, RUNNER)}
    for token_id, grants in held.items():
        await issue_token(database, token_id, "acme", grants=grants, display_name=token_id.upper())
    await revoke(database, "acme", "t4")
    await issue_token(database, "o1", "other", grants=(ADMIN,))
    await issue_token(database, "g1", "gone", grants=(ADMIN,))
    await delete_account(database, "gone")
    return database


async def test_grants_are_counted_by_group_and_tokens_once(peopled: Database) -> None:
    async with peopled.reading() as connection:
        counts = await previews.count_grants(connection, "acme", ["member"], ["job_admin", "job_runner"])
        nothing = await previews.count_grants(connection, "acme", [], [])
    assert counts == GrantCounts(tokens=3, first=3, second=2)
    assert nothing == GrantCounts(0, 0, 0)


async def test_an_account_s_tokens_are_paged_newest_first_with_the_grants_asked_for(peopled: Database) -> None:
    wanted = ["job_admin", "member"]
    async with peopled.reading() as connection:
        first = await previews.list_account_page(connection, "acme", wanted, Page(2))
        rest = await previews.list_account_page(connection, "acme", wanted, Page(2, (str(first[-1].ordinal),)))
        admins = await previews.list_account_page(connection, "acme", ["job_admin"], Page(10))
    assert [(token.token_id, token.grants) for token in first + rest] == [
        ("t3", (MEMBER,)),
        ("t2", (MEMBER,)),
        ("t1", (ADMIN, MEMBER)),
    ]
    assert [(token.token_id, token.display_name) for token in admins] == [("t1", "T1")]


async def test_accounts_with_live_tokens_are_walked_by_id(peopled: Database) -> None:
    async with peopled.reading() as connection:
        every = await previews.list_accounts(connection, "", 10, inclusive=False)
        behind = await previews.list_accounts(connection, "acme", 10, inclusive=False)
        from_it_on = await previews.list_accounts(connection, "acme", 1, inclusive=True)
    assert every == [AccountSize("acme", "team", 3), AccountSize("other", "team", 1)]
    assert (behind, from_it_on) == (every[1:], every[:1])


async def test_tokens_of_several_accounts_are_walked_by_account_and_id_with_all_their_grants(peopled: Database) -> None:
    both = ["acme", "other"]
    async with peopled.reading() as connection:
        first = await previews.list_of(connection, both, ["job_admin", "job_runner"], ("", ""), 2)
        rest = await previews.list_of(connection, both, ["job_admin", "job_runner"], ("acme", "t3"), 2)
    assert first == [
        HeldToken("acme", "t1", "T1", 1, (ADMIN, MEMBER)),
        HeldToken("acme", "t3", "T3", 3, (RUNNER, MEMBER)),
    ]
    assert [(token.account_id, token.token_id) for token in rest] == [("other", "o1")]


async def test_tokens_are_counted_by_shape_and_those_with_several_grants_on_named_projects_are_named(
    peopled: Database,
) -> None:
    await issue_token(peopled, "t5", "acme", grants=(Grant("member", ("p9",)),))
    await issue_token(peopled, "t6", "acme", grants=(Grant("job_admin", ("p1",)), Grant("member", ("p1", "p2"))))
    await put_account(peopled, "other", plan="enterprise")
    sets = ["job_admin", "member"]
    async with peopled.reading() as connection:
        shapes, entangled = await previews.count_shapes(connection, ["acme", "other"], sets)
        tokens = await previews.list_by_id(connection, entangled)
        runners, _ = await previews.count_shapes(connection, ["acme"], ["job_runner"])

    counted = {(shape.plan, tuple((name, ids is None) for name, ids in shape.grants)): shape.tokens for shape in shapes}
    assert counted == {
        ("team", (("job_admin", True), ("member", False))): 1,
        ("team", (("member", False),)): 2,
        ("team", (("job_runner", True), ("member", False))): 1,
        ("enterprise", (("job_admin", True),)): 1,
    }
    assert entangled == ["t6"]
    assert tokens == [
        HeldToken("acme", "t6", "A token", 6, (Grant("job_admin", ("p1",)), Grant("member", ("p1", "p2"))))
    ]
    assert [shape.tokens for shape in runners] == [1]
