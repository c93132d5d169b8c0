"""The filters of ListTokens over the wire: each alone and together, their orders, their pages, and what is refused.

Over random populations and every pair of filters: tests/server/storage/test_token_lists.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.v1 import types_pb2
from doorward.v1.account_admin_pb2 import DeleteAccountRequest
from doorward.v1.token_admin_pb2 import DisableTokenRequest, ListTokensRequest, UpdateTokenRequest
from doorward_server.api.paging import page_token_of
from doorward_server.api.token_filters import spelled
from tests.support.server import bearer
from tests.support.wire import OwnAccount, an_account, ask, fresh_id, on, on_all, refused

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs

BACKDATE = """
UPDATE token_activity SET last_used_time = now() - $2::interval, idle_since = now() - $2::interval WHERE token_id = $1
RETURNING token_id
"""


@dataclass(frozen=True)
class Tokens:
    """An account with tokens of different kinds, by what they are called here; the oldest first."""

    account: OwnAccount
    ids: dict[str, str]
    minter_secret: str

    def listed(self, stubs: Stubs, *, page_size: int = 1000, **filters: Any) -> list[str]:
        """What a list shows, by what it is called here."""
        names = {token_id: name for name, token_id in self.ids.items()}
        return [names[token_id] for token_id in list_of(stubs, self.account.account_id, page_size, **filters)]


def list_of(stubs: Stubs, account_id: str, page_size: int = 1000, **filters: Any) -> list[str]:
    """Every page of a list, put together."""
    found: list[str] = []
    page_token, more = "", True
    while more:
        request = ListTokensRequest(account_id=account_id, page_size=page_size, page_token=page_token, **filters)
        page = ask(stubs.tokens.ListTokens, request, stubs.admin)
        found += [token.token_id for token in page.tokens]
        page_token, more = page.next_page_token, bool(page.next_page_token)
    return found


def ago(**span: float) -> Timestamp:
    """So long before now."""
    time = Timestamp()
    time.GetCurrentTime()
    time.FromDatetime(time.ToDatetime() - timedelta(**span))
    return time


def ahead(**span: float) -> Timestamp:
    """So long after now."""
    return ago(**{unit: -number for unit, number in span.items()})


@pytest.fixture(scope="module")
def tokens(stubs: Stubs, rows: Rows) -> Tokens:
    account = an_account(stubs)
    first, second = account.project_ids
    minter = account.issue(on_all("account_admin"), display_name="minter")
    by_minter = bearer(minter.secret)
    issued = {
        "minter": minter,
        "nightly": account.issue(on("job_admin", first), display_name="nightly", labels={"team": "data", "env": "prod"}),
        "nightly too": account.issue(on("job_admin", second), display_name="nightly too", labels={"team": "data"}),
        "Nightly": account.issue(on("read_only", first, second), display_name="Nightly", ttl=Duration(seconds=86400)),
        "disabled": account.issue(on_all("job_admin"), display_name="x", labels={"team": "web"}),
        "soon": account.issue(on_all("member"), display_name="nightly", ttl=Duration(seconds=3600)),
        "minted": ask(
            stubs.tokens.IssueToken, account.wanted(on("member", second), display_name="minted"), by_minter
        ),
        "revoked": account.issue(on("job_admin", first), display_name="nightly", labels={"team": "data"}),
    }  # fmt: skip
    ids = {name: answer.token.token_id for name, answer in issued.items()}
    account.revoke(ids["revoked"])
    ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=ids["disabled"]), stubs.admin)
    for days, name in enumerate(("disabled", "nightly", "soon"), start=10):
        assert rows.fetch(BACKDATE, ids[name], timedelta(days=days))
    return Tokens(account, ids, minter.secret)


def test_tokens_are_found_by_permission_set_and_by_its_alias(stubs: Stubs, tokens: Tokens) -> None:
    assert tokens.listed(stubs, permission_set="job_admin") == ["revoked", "disabled", "nightly too", "nightly"]
    assert (
        tokens.listed(stubs, permission_set="readonly")
        == ["Nightly"]
        == tokens.listed(stubs, permission_set="read_only")
    )
    assert tokens.listed(stubs, permission_set="billing_admin") == []


def test_tokens_are_found_by_a_project_that_they_reach_by_name_or_by_all(stubs: Stubs, tokens: Tokens) -> None:
    first, _ = tokens.account.project_ids
    on_every = ["soon", "disabled", "minter"]
    assert tokens.listed(stubs, project_id=first) == ["revoked", "soon", "disabled", "Nightly", "nightly", "minter"]
    assert tokens.listed(stubs, project_id="no-such-project") == on_every


def test_tokens_are_found_by_all_of_several_labels(stubs: Stubs, tokens: Tokens) -> None:
    assert tokens.listed(stubs, labels={"team": "data"}) == ["revoked", "nightly too", "nightly"]
    assert tokens.listed(stubs, labels={"team": "data", "env": "prod"}) == ["nightly"]
    assert tokens.listed(stubs, labels={"team": ""}) == []


def test_tokens_are_found_by_who_issued_them(stubs: Stubs, tokens: Tokens) -> None:
    minter = f"token:{tokens.ids['minter']}"
    operator = tokens.account.token(tokens.ids["nightly"]).created_by
    assert tokens.listed(stubs, created_by=minter) == ["minted"]
    assert tokens.listed(stubs, created_by=operator) == [name for name in reversed(tokens.ids) if name != "minted"]
    assert tokens.listed(stubs, created_by="operator:nobody") == []


def test_unused_tokens_come_the_longest_unused_first(stubs: Stubs, tokens: Tokens) -> None:
    assert tokens.listed(stubs, unused_since=ago(days=1)) == ["soon", "nightly", "disabled"]
    assert tokens.listed(stubs, unused_since=ago(days=10, hours=12)) == ["soon", "nightly"]
    assert tokens.listed(stubs, unused_since=ago(days=1), page_size=1) == ["soon", "nightly", "disabled"]


def test_expiring_tokens_come_the_soonest_first_whatever_else_is_asked(stubs: Stubs, tokens: Tokens) -> None:
    assert tokens.listed(stubs, expires_before=ahead(days=2)) == ["soon", "Nightly"]
    assert tokens.listed(stubs, expires_before=ahead(hours=2)) == ["soon"]
    assert tokens.listed(stubs, expires_before=ahead(days=2), page_size=1) == ["soon", "Nightly"]
    assert tokens.listed(stubs, expires_before=ahead(days=2), unused_since=ago(days=1)) == ["soon"]


def test_tokens_are_found_by_how_their_names_begin_in_the_same_case(stubs: Stubs, tokens: Tokens) -> None:
    assert tokens.listed(stubs, display_name_prefix="nightly") == ["revoked", "soon", "nightly too", "nightly"]
    assert tokens.listed(stubs, display_name_prefix="nightly ") == ["nightly too"]
    assert tokens.listed(stubs, display_name_prefix="N") == ["Nightly"]
    assert tokens.listed(stubs, display_name_prefix="%") == []


def test_every_filter_that_is_set_must_match(stubs: Stubs, tokens: Tokens) -> None:
    first, _ = tokens.account.project_ids
    active = types_pb2.TOKEN_STATE_ACTIVE
    both: dict[str, Any] = {"permission_set": "job_admin", "project_id": first}
    assert tokens.listed(stubs, **both) == ["revoked", "disabled", "nightly"]
    assert tokens.listed(stubs, **both, state=active) == ["nightly"]
    assert tokens.listed(stubs, **both, labels={"team": "web"}) == ["disabled"]
    assert tokens.listed(stubs, display_name_prefix="nightly", labels={"env": "prod"}, unused_since=ago(days=1)) == [
        "nightly"
    ]
    assert tokens.listed(stubs, state=types_pb2.TOKEN_STATE_REVOKED, unused_since=ago(seconds=0.001)) == []


def test_pages_go_on_within_their_filters(stubs: Stubs, tokens: Tokens) -> None:
    for filters in ({"permission_set": "job_admin"}, {"labels": {"team": "data"}}, {"display_name_prefix": "n"}):
        whole = tokens.listed(stubs, **filters)
        assert len(whole) > 2
        assert tokens.listed(stubs, **filters, page_size=1) == whole
        assert tokens.listed(stubs, **filters, page_size=2) == whole


def test_what_an_update_changes_is_found_by_what_it_is_now(stubs: Stubs) -> None:
    account = an_account(stubs)
    newest, oldest = (account.issue(on_all("member"), labels={"v": "1"}).token.token_id for _ in range(2))
    token = types_pb2.ServiceToken(
        token_id=newest, display_name="renamed", labels={"v": "2"}, grants=[on("job_admin", account.project_ids[0])]
    )
    ask(stubs.tokens.UpdateToken, UpdateTokenRequest(token=token), stubs.admin)

    found = {
        "renamed": list_of(stubs, account.account_id, display_name_prefix="renamed"),
        "new label": list_of(stubs, account.account_id, labels={"v": "2"}),
        "old label": list_of(stubs, account.account_id, labels={"v": "1"}),
        "new set": list_of(stubs, account.account_id, permission_set="job_admin"),
        "old set": list_of(stubs, account.account_id, permission_set="member"),
        "project": list_of(stubs, account.account_id, project_id=account.project_ids[0]),
    }
    assert found == {
        "renamed": [newest],
        "new label": [newest],
        "old label": [oldest],
        "new set": [newest],
        "old set": [oldest],
        "project": [oldest, newest],
    }


def test_a_deleted_accounts_tokens_are_all_revoked(stubs: Stubs) -> None:
    account = an_account(stubs, projects=0)
    issued = [account.issue(on_all("member"), ttl=Duration(seconds=3600)).token.token_id for _ in range(2)][::-1]
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)

    of_state = {
        state: list_of(stubs, account.account_id, state=state)
        for state in (types_pb2.TOKEN_STATE_ACTIVE, types_pb2.TOKEN_STATE_REVOKED, types_pb2.TOKEN_STATE_UNSPECIFIED)
    }
    listed = ask(stubs.tokens.ListTokens, ListTokensRequest(account_id=account.account_id), stubs.admin)

    assert list(of_state.values()) == [[], issued, issued]
    assert {token.state for token in listed.tokens} == {types_pb2.TOKEN_STATE_REVOKED}
    assert list_of(stubs, account.account_id, expires_before=ahead(days=1)) == []


def test_a_token_lists_its_own_account_and_sees_no_other(stubs: Stubs, tokens: Tokens, account: OwnAccount) -> None:
    itself = bearer(tokens.minter_secret)
    own = ask(
        stubs.tokens.ListTokens,
        ListTokensRequest(account_id=tokens.account.account_id, labels={"env": "prod"}),
        itself,
    )
    foreign, unknown = (
        refused(
            stubs.tokens.ListTokens,
            ListTokensRequest(account_id=account_id, permission_set="no_such_set", unused_since=ahead(days=1)),
            itself,
        )
        for account_id in (account.account_id, fresh_id())
    )
    assert [token.token_id for token in own.tokens] == [tokens.ids["nightly"]]
    assert (foreign.code, foreign.reason) == (unknown.code, unknown.reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")
    assert foreign.text.replace(account.account_id, "?") == unknown.text.replace(unknown.metadata["account_id"], "?")


def test_everything_that_is_wrong_with_a_filter_is_told_at_once(stubs: Stubs, account: OwnAccount) -> None:
    request = ListTokensRequest(
        account_id=account.account_id,
        state=types_pb2.TokenState.ValueType(9),
        permission_set="no_such_set",
        project_id="no project",
        labels={"": "x", "k": "v" * 256},
        created_by="alice",
        unused_since=ahead(days=1),
        expires_before=Timestamp(seconds=253402300800),
        display_name_prefix="n" * 201,
        page_size=-1,
    )
    refusal = refused(stubs.tokens.ListTokens, request, stubs.admin)

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert refusal.bad_fields == [
        ("created_by", "FIELD_MALFORMED"),
        ("display_name_prefix", "FIELD_TOO_LONG"),
        ("expires_before", "FIELD_OUT_OF_RANGE"),
        ("labels['']", "FIELD_MALFORMED"),
        ("labels['k']", "FIELD_TOO_LONG"),
        ("page_size", "FIELD_OUT_OF_RANGE"),
        ("permission_set", "PERMISSION_SET_UNKNOWN"),
        ("project_id", "FIELD_MALFORMED"),
        ("state", "FIELD_OUT_OF_RANGE"),
        ("unused_since", "FIELD_OUT_OF_RANGE"),
    ]


@pytest.mark.parametrize(
    ("filters", "bad"),
    [
        ({"permission_set": "no_such_set"}, ("permission_set", "PERMISSION_SET_UNKNOWN")),
        ({"permission_set": "No Set"}, ("permission_set", "FIELD_MALFORMED")),
        ({"permission_set": "s" * 64}, ("permission_set", "FIELD_TOO_LONG")),
        ({"project_id": "p" * 65}, ("project_id", "FIELD_TOO_LONG")),
        ({"labels": {f"k{number}": "v" for number in range(33)}}, ("labels", "TOO_MANY_ITEMS")),
        ({"created_by": "operator:"}, ("created_by", "FIELD_MALFORMED")),
        ({"created_by": "someone:x"}, ("created_by", "FIELD_MALFORMED")),
        ({"created_by": "token:" + "x" * 100}, ("created_by", "FIELD_TOO_LONG")),
        ({"created_by": "token:a\nb"}, ("created_by", "FIELD_MALFORMED")),
        ({"unused_since": Timestamp(seconds=4102444800)}, ("unused_since", "FIELD_OUT_OF_RANGE")),
        ({"unused_since": Timestamp(nanos=-1)}, ("unused_since", "FIELD_OUT_OF_RANGE")),
        ({"display_name_prefix": "a\0b"}, ("display_name_prefix", "FIELD_MALFORMED")),
    ],
)
def test_a_filter_that_is_wrong_is_named(
    stubs: Stubs, still: OwnAccount, filters: dict[str, Any], bad: tuple[str, str]
) -> None:
    refusal = refused(stubs.tokens.ListTokens, ListTokensRequest(account_id=still.account_id, **filters), stubs.admin)
    assert refusal.bad_fields == [bad]


CHANGED: list[dict[str, Any]] = [
    {"state": types_pb2.TOKEN_STATE_ACTIVE},
    {"permission_set": "member"},
    {"project_id": "p"},
    {"labels": {"team": "data"}},
    {"created_by": "operator:x"},
    {"unused_since": Timestamp(seconds=1)},
    {"expires_before": Timestamp(seconds=1)},
    {"display_name_prefix": "n"},
]


@pytest.mark.parametrize("changed", CHANGED, ids=lambda changed: next(iter(changed)))
def test_a_page_token_belongs_to_its_filters(stubs: Stubs, tokens: Tokens, changed: dict[str, Any]) -> None:
    account_id = tokens.account.account_id
    given = ask(stubs.tokens.ListTokens, ListTokensRequest(account_id=account_id, page_size=1), stubs.admin)
    request = ListTokensRequest(account_id=account_id, page_token=given.next_page_token, **changed)
    assert refused(stubs.tokens.ListTokens, request, stubs.admin).reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize(
    "key",
    [("1",), ("x", "1"), ("-1", "1"), (str(10**18), "1"), ("1", "2", "3"), ("1.5", "1"), ("1", "T"), ("1", str(2**63))],
)
def test_a_made_up_page_token_of_a_list_by_time_is_refused(stubs: Stubs, tokens: Tokens, key: tuple[str, ...]) -> None:
    request = ListTokensRequest(account_id=tokens.account.account_id, expires_before=Timestamp(seconds=4102444800))
    request.page_token = page_token_of(
        key, ("/doorward.v1.TokenAdmin/ListTokens", request.account_id, *spelled(request))
    )
    assert refused(stubs.tokens.ListTokens, request, stubs.admin).reason == "PAGE_TOKEN_INVALID"
