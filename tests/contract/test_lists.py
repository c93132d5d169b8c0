"""Every list over the wire: pages of any size, a stable order, filters, and page tokens that are none (AIP-158)."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from doorward.v1 import account_admin_pb2, system_admin_pb2, token_admin_pb2, types_pb2
from doorward.v1.account_admin_pb2 import ListAccountsRequest, ListProjectsRequest
from doorward.v1.system_admin_pb2 import ListReplicasRequest
from doorward.v1.token_admin_pb2 import ListPermissionSetsRequest, ListTokensRequest
from doorward_server.api.token_filters import spelled
from tests.support.wire import OwnAccount, an_account, ask, code_of, eventually, fresh_id, on_all, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Stubs


@pytest.fixture(scope="module")
def five(stubs: Stubs) -> tuple[OwnAccount, list[str]]:
    """An account with five tokens, and their ids, the newest first; the second newest is revoked."""
    account = an_account(stubs, projects=0)
    newest_first = [account.issue(on_all("member")).token.token_id for _ in range(5)][::-1]
    account.revoke(newest_first[1])
    return account, newest_first


def pages(stubs: Stubs, account_id: str, page_size: int, **filters: Any) -> list[list[str]]:
    """Every page of the account's tokens."""
    found: list[list[str]] = []
    page_token = ""
    while not found or page_token:
        request = ListTokensRequest(account_id=account_id, page_size=page_size, page_token=page_token, **filters)
        page = ask(stubs.tokens.ListTokens, request, stubs.admin)
        found.append([token.token_id for token in page.tokens])
        page_token = page.next_page_token
    return found


@pytest.mark.parametrize("page_size", [0, 1, 2, 3, 4, 5, 6, 1000, 1001, 2**31 - 1])
def test_pages_of_any_size_show_every_token_once_the_newest_first(
    stubs: Stubs, five: tuple[OwnAccount, list[str]], page_size: int
) -> None:
    account, newest_first = five

    found = pages(stubs, account.account_id, page_size)

    assert [token_id for page in found for token_id in page] == newest_first
    if page_size:
        assert all(len(page) <= page_size for page in found)
        # A page that is full cannot know that it is the last one.
        assert len(found) == 5 // page_size + 1


def test_a_token_issued_between_two_pages_neither_repeats_nor_skips_another(stubs: Stubs) -> None:
    account = an_account(stubs, projects=0)
    newest_first = [account.issue(on_all("member")).token.token_id for _ in range(3)][::-1]
    first = ask(stubs.tokens.ListTokens, ListTokensRequest(account_id=account.account_id, page_size=2), stubs.admin)

    account.issue(on_all("member"))
    account.revoke(newest_first[2])

    second = ask(
        stubs.tokens.ListTokens,
        ListTokensRequest(account_id=account.account_id, page_size=2, page_token=first.next_page_token),
        stubs.admin,
    )
    assert [token.token_id for token in (*first.tokens, *second.tokens)] == newest_first


def test_tokens_are_listed_by_state(stubs: Stubs) -> None:
    account = an_account(stubs, projects=0)
    active, revoked = (account.issue(on_all("member")).token.token_id for _ in range(2))
    expiring = account.issue(on_all("member"), ttl=Duration(nanos=300_000_000)).token.token_id
    account.revoke(revoked)
    eventually(lambda: account.token(expiring).state == types_pb2.TOKEN_STATE_EXPIRED)

    found = {
        state: pages(stubs, account.account_id, 1, state=state)
        for state in types_pb2.TokenState.values()
        if state != types_pb2.TOKEN_STATE_UNSPECIFIED
    }

    assert found == {
        types_pb2.TOKEN_STATE_ACTIVE: [[active], []],
        types_pb2.TOKEN_STATE_DISABLED: [[]],
        types_pb2.TOKEN_STATE_EXPIRED: [[expiring], []],
        types_pb2.TOKEN_STATE_REVOKED: [[revoked], []],
    }


def test_the_records_in_a_list_are_those_that_get_answers(stubs: Stubs, five: tuple[OwnAccount, list[str]]) -> None:
    account, newest_first = five

    listed = ask(stubs.tokens.ListTokens, ListTokensRequest(account_id=account.account_id), stubs.admin)

    assert list(listed.tokens) == [account.token(token_id) for token_id in newest_first]


def test_an_account_without_tokens_has_an_empty_page(stubs: Stubs) -> None:
    assert pages(stubs, an_account(stubs, projects=0).account_id, 10) == [[]]


@pytest.mark.parametrize("page_size", [7, 1000])
def test_accounts_are_listed_in_the_order_of_their_ids(stubs: Stubs, page_size: int) -> None:
    own = {an_account(stubs, projects=0).account_id for _ in range(2)}
    found: list[str] = []
    page_token, more = "", True

    while more:
        request = ListAccountsRequest(page_size=page_size, page_token=page_token)
        page = ask(stubs.accounts.ListAccounts, request, stubs.admin)
        found += [account.account_id for account in page.accounts]
        page_token, more = page.next_page_token, bool(page.next_page_token)

    assert found == sorted(set(found))
    assert own <= set(found)


@pytest.mark.parametrize("page_size", [1, 2, 3, 4])
def test_projects_are_listed_in_the_order_of_their_ids(stubs: Stubs, page_size: int) -> None:
    account = an_account(stubs, projects=3)
    found: list[types_pb2.Project] = []
    page_token, more = "", True

    while more:
        request = ListProjectsRequest(account_id=account.account_id, page_size=page_size, page_token=page_token)
        page = ask(stubs.accounts.ListProjects, request, stubs.admin)
        found += page.projects
        page_token, more = page.next_page_token, bool(page.next_page_token)

    assert [project.project_id for project in found] == sorted(account.project_ids)
    assert {project.account_id for project in found} == {account.account_id}


def test_permission_sets_come_in_pages(stubs: Stubs, account: OwnAccount) -> None:
    def page(size: int, page_token: str) -> token_admin_pb2.ListPermissionSetsResponse:
        request = ListPermissionSetsRequest(account_id=account.account_id, page_size=size, page_token=page_token)
        return ask(stubs.tokens.ListPermissionSets, request, stubs.admin)

    whole = page(0, "")
    found: list[token_admin_pb2.PermissionSet] = []
    part = page(8, "")
    while part.permission_sets:
        found += part.permission_sets
        part = page(8, part.next_page_token) if part.next_page_token else token_admin_pb2.ListPermissionSetsResponse()

    assert not whole.next_page_token
    assert found == list(whole.permission_sets)


def test_replicas_come_in_pages(stubs: Stubs) -> None:
    first = ask(stubs.system.ListReplicas, ListReplicasRequest(page_size=1), stubs.admin)
    second = ask(
        stubs.system.ListReplicas, ListReplicasRequest(page_size=1, page_token=first.next_page_token), stubs.admin
    )

    assert (len(first.replicas), len(second.replicas), second.next_page_token) == (1, 0, "")


# ---- page tokens that are none


def made_up(*values: object) -> str:
    """A page token as anyone can make one."""
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def bound_to(*parts: str) -> str:
    """What a page token of this list and these filters begins with."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def no_filter(account_id: str) -> tuple[str, ...]:
    """What a page token of ListTokens without filters is bound to."""
    return ("/doorward.v1.TokenAdmin/ListTokens", account_id, *spelled(ListTokensRequest(account_id=account_id)))


@pytest.fixture(params=["accounts", "projects", "tokens", "permission sets", "replicas"])
def listing(request: pytest.FixtureRequest, stubs: Stubs, five: tuple[OwnAccount, list[str]]) -> Any:
    """One list, as a call with a page token, the refusal that it then gives, and what its tokens begin with."""
    account_id = five[0].account_id
    lists: dict[str, tuple[Any, Callable[[str], Any], tuple[str, ...]]] = {
        "accounts": (
            stubs.accounts.ListAccounts,
            lambda page_token: ListAccountsRequest(page_token=page_token),
            ("/doorward.v1.AccountAdmin/ListAccounts",),
        ),
        "projects": (
            stubs.accounts.ListProjects,
            lambda page_token: ListProjectsRequest(account_id=account_id, page_token=page_token),
            ("/doorward.v1.AccountAdmin/ListProjects", account_id),
        ),
        "tokens": (
            stubs.tokens.ListTokens,
            lambda page_token: ListTokensRequest(account_id=account_id, page_token=page_token),
            no_filter(account_id),
        ),
        "permission sets": (
            stubs.tokens.ListPermissionSets,
            lambda page_token: ListPermissionSetsRequest(account_id=account_id, page_token=page_token),
            ("/doorward.v1.TokenAdmin/ListPermissionSets", account_id),
        ),
        "replicas": (
            stubs.system.ListReplicas,
            lambda page_token: ListReplicasRequest(page_token=page_token),
            ("/doorward.v1.SystemAdmin/ListReplicas",),
        ),
    }
    return lists[request.param]


NO_PAGE_TOKENS = {
    "a word": "next",
    "no base64": "!!!!",
    "half a character": "A",
    "not ASCII": "nächste",
    "no JSON": base64.urlsafe_b64encode(b"\xff\xfe{").decode(),
    "an empty list": made_up(),
    "an object": base64.urlsafe_b64encode(b'{"a": "b"}').decode(),
    "numbers": made_up(1, 2),
    "another list's": made_up("0" * 16, "acme"),
    "no key": made_up("0" * 16),
    "too long": "A" * 1025,
    "deep": base64.urlsafe_b64encode(b"[" * 700).decode(),
}


@pytest.mark.parametrize("page_token", NO_PAGE_TOKENS.values(), ids=NO_PAGE_TOKENS.keys())
def test_a_text_that_is_no_page_token_is_refused(stubs: Stubs, listing: Any, page_token: str) -> None:
    rpc, request_with, _ = listing

    refusal = refused(rpc, request_with(page_token), stubs.admin)

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
    assert refusal.bad_fields == [("page_token", "PAGE_TOKEN_INVALID")]


UNUSABLE_KEYS = {
    "NUL": ("\0",),
    "half a surrogate pair": ("\ud800",),
    "empty": ("",),
    "too long": ("a" * 65,),
    "not ASCII": ("é",),
    "a space": ("a b",),
}


@pytest.mark.parametrize("key", UNUSABLE_KEYS.values(), ids=UNUSABLE_KEYS.keys())
def test_a_made_up_page_token_with_a_key_that_no_row_has_is_refused(
    stubs: Stubs, listing: Any, key: tuple[str, ...]
) -> None:
    rpc, request_with, begins = listing

    refusal = refused(rpc, request_with(made_up(bound_to(*begins), *key)), stubs.admin)

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


@pytest.mark.parametrize("key", ["-1", "1.5", "x", str(2**63), "9" * 60, "\u00b2", "0x1"])
def test_a_page_token_of_tokens_whose_key_is_no_number_is_refused(
    stubs: Stubs, five: tuple[OwnAccount, list[str]], key: str
) -> None:
    account_id = five[0].account_id
    page_token = made_up(bound_to(*no_filter(account_id)), key)

    refusal = refused(
        stubs.tokens.ListTokens, ListTokensRequest(account_id=account_id, page_token=page_token), stubs.admin
    )

    assert refusal.reason == "PAGE_TOKEN_INVALID"


def test_a_page_token_belongs_to_its_list_its_account_and_its_filters(
    stubs: Stubs, five: tuple[OwnAccount, list[str]], account: OwnAccount
) -> None:
    account_id = five[0].account_id
    given = ask(stubs.tokens.ListTokens, ListTokensRequest(account_id=account_id, page_size=1), stubs.admin)
    foreign = given.next_page_token

    refusals = [
        refused(
            stubs.tokens.ListTokens, ListTokensRequest(account_id=account.account_id, page_token=foreign), stubs.admin
        ),
        refused(
            stubs.tokens.ListTokens,
            ListTokensRequest(account_id=account_id, page_token=foreign, state=types_pb2.TOKEN_STATE_ACTIVE),
            stubs.admin,
        ),
        refused(
            stubs.accounts.ListProjects, ListProjectsRequest(account_id=account_id, page_token=foreign), stubs.admin
        ),
        refused(stubs.accounts.ListAccounts, ListAccountsRequest(page_token=foreign), stubs.admin),
        refused(stubs.system.ListReplicas, ListReplicasRequest(page_token=foreign), stubs.admin),
    ]

    assert {refusal.reason for refusal in refusals} == {"PAGE_TOKEN_INVALID"}


def test_an_altered_page_token_is_refused_or_names_another_place_of_the_same_list(
    stubs: Stubs, five: tuple[OwnAccount, list[str]]
) -> None:
    account, _ = five
    request = ListTokensRequest(account_id=account.account_id, page_size=1)
    page_token = ask(stubs.tokens.ListTokens, request, stubs.admin).next_page_token
    codes = []

    for place in range(len(page_token)):
        letter = "A" if page_token[place] != "A" else "B"
        request.page_token = page_token[:place] + letter + page_token[place + 1 :]
        codes.append(code_of(lambda: ask(stubs.tokens.ListTokens, request, stubs.admin)))

    assert set(codes) <= {"OK", "INVALID_ARGUMENT"}
    assert codes.count("INVALID_ARGUMENT") > len(codes) / 2


@pytest.mark.parametrize("page_size", [-1, -(2**31)])
def test_a_negative_page_size_is_refused(stubs: Stubs, account: OwnAccount, page_size: int) -> None:
    account_id = account.account_id

    refusals = [
        refused(stubs.accounts.ListAccounts, ListAccountsRequest(page_size=page_size), stubs.admin),
        refused(
            stubs.accounts.ListProjects, ListProjectsRequest(account_id=account_id, page_size=page_size), stubs.admin
        ),
        refused(stubs.tokens.ListTokens, ListTokensRequest(account_id=account_id, page_size=page_size), stubs.admin),
        refused(
            stubs.tokens.ListPermissionSets,
            ListPermissionSetsRequest(account_id=account_id, page_size=page_size),
            stubs.admin,
        ),
        refused(stubs.system.ListReplicas, ListReplicasRequest(page_size=page_size), stubs.admin),
    ]

    assert [refusal.bad_fields for refusal in refusals] == [[("page_size", "FIELD_OUT_OF_RANGE")]] * 5


def test_lists_of_an_unknown_account_say_so(stubs: Stubs) -> None:
    account_id = fresh_id("nobody")

    refusals = [
        refused(stubs.accounts.ListProjects, ListProjectsRequest(account_id=account_id), stubs.admin),
        refused(stubs.tokens.ListTokens, ListTokensRequest(account_id=account_id), stubs.admin),
        refused(stubs.tokens.ListPermissionSets, ListPermissionSetsRequest(account_id=account_id), stubs.admin),
        refused(stubs.accounts.GetAccount, account_admin_pb2.GetAccountRequest(account_id=account_id), stubs.admin),
    ]

    assert [(refusal.code, refusal.reason) for refusal in refusals] == [("NOT_FOUND", "ACCOUNT_NOT_FOUND")] * 4
    assert all(refusal.metadata == {"account_id": account_id} for refusal in refusals)


def test_a_list_of_replicas_tells_where_the_log_ends(stubs: Stubs, account: OwnAccount) -> None:
    revision = account.put_project(fresh_id("p")).propagation.revision

    listed: system_admin_pb2.ListReplicasResponse = ask(stubs.system.ListReplicas, ListReplicasRequest(), stubs.admin)

    assert listed.revision == revision
