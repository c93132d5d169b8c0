"""ListTokensWithPermission over the wire: the tokens for which Check says yes, those and no others; who may ask."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from doorward.v1 import account_admin_pb2, token_admin_pb2
from doorward.v1.authorizer_pb2 import (
    BatchCheckItem,
    BatchCheckRequest,
    ListTokensWithPermissionRequest,
    ListTokensWithPermissionResponse,
)
from doorward.v1.types_pb2 import TOKEN_STATE_EXPIRED
from doorward_server.catalog.load import builtin_text, load_catalog
from tests.contract.test_access import operator_credential
from tests.support.oracle import NaiveGrant, NaiveToken, World, expected
from tests.support.server import bearer
from tests.support.wire import (
    OwnAccount,
    an_account,
    ask,
    check,
    code_of,
    eventually,
    fresh_id,
    on,
    on_all,
    refusal_of,
    refused,
)

if TYPE_CHECKING:
    from tests.support.frail import Frail
    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata, Refusal

CATALOG = load_catalog(builtin_text(), 1)
DOCUMENT = tomllib.loads(builtin_text())
WAITING = "SELECT 1 FROM pg_locks WHERE relation = 'projects'::regclass AND NOT granted"


def listed(stubs: Stubs, metadata: Metadata | None = None, **asked: Any) -> ListTokensWithPermissionResponse:
    return ask(
        stubs.authorizer.ListTokensWithPermission, ListTokensWithPermissionRequest(**asked), metadata or stubs.admin
    )


def ids(stubs: Stubs, metadata: Metadata | None = None, **asked: Any) -> list[str]:
    """The ids of all pages."""
    found: list[str] = []
    while True:
        page = listed(stubs, metadata, **asked)
        found += [token.token_id for token in page.tokens]
        if not page.next_page_token:
            return found
        asked["page_token"] = page.next_page_token


def refusal(stubs: Stubs, metadata: Metadata, **asked: Any) -> Refusal:
    return refused(stubs.authorizer.ListTokensWithPermission, ListTokensWithPermissionRequest(**asked), metadata)


def place_of(permission: str, account: OwnAccount, project_id: str) -> dict[str, Any]:
    is_on_project = CATALOG.permissions[permission].level.value == "project"
    return {"project_id": project_id} if is_on_project else {"account_id": account.account_id}


# ---- which tokens


@pytest.mark.parametrize("plan", ["team", "enterprise"])
def test_exactly_the_tokens_are_listed_for_which_check_says_yes(stubs: Stubs, plan: str) -> None:
    account, other = an_account(stubs), an_account(stubs)
    first, second = account.project_ids
    other.issue(on_all("account_admin"))
    issued = [account.issue(on_all(name)) for name in CATALOG.permission_sets]
    issued += [account.issue(on(name, first)) for name in ("job_admin", "member", "analyst", "read_only", "admin")]
    issued += [account.issue(on("job_viewer", second), on_all("metadata_only")), account.issue(on("member", second))]
    gone = account.issue(on_all("account_admin"))
    account.revoke(gone.token.token_id)
    disabled = account.issue(on_all("account_admin"))
    ask(stubs.tokens.DisableToken, token_admin_pb2.DisableTokenRequest(token_id=disabled.token.token_id), stubs.admin)
    expired = account.issue(on_all("account_admin"), ttl=Duration(nanos=1_000_000))
    eventually(lambda: account.token(expired.token.token_id).state == TOKEN_STATE_EXPIRED)
    issued += [gone, disabled, expired]
    account.set_plan(plan)

    newest_first = [(one.token.token_id, one.secret) for one in reversed(issued)]
    for permission in CATALOG.permissions:
        is_on_project = CATALOG.permissions[permission].level.value == "project"
        for project_id in account.project_ids if is_on_project else account.project_ids[:1]:
            place = place_of(permission, account, project_id)
            items = [BatchCheckItem(secret=secret, permission=permission, **place) for _, secret in newest_first]
            checked = ask(stubs.authorizer.BatchCheck, BatchCheckRequest(items=items), stubs.caller).results
            allowed = [token_id for (token_id, _), result in zip(newest_first, checked, strict=True) if result.allowed]
            assert ids(stubs, permission=permission, **place) == allowed, (permission, place)


def test_the_list_is_that_of_the_oracle(stubs: Stubs) -> None:
    """Every set on every scope, by the catalog's text alone."""
    account = an_account(stubs)
    first, second = account.project_ids
    made = {
        account.issue(on_all(name) if projects is None else on(name, *projects)).token.token_id: NaiveGrant(
            name, projects
        )
        for name in ("account_admin", "account_viewer", "job_admin", "git_admin", "read_only")
        for projects in (None, (first,), (first, second))
    }
    for plan in ("team", "enterprise"):
        account.set_plan(plan)
        world = World(DOCUMENT, {"acme": plan}, {"acme": "ACTIVE"}, dict.fromkeys(account.project_ids, "acme"))
        for permission in CATALOG.permissions:
            is_on_project = CATALOG.permissions[permission].level.value == "project"
            for project_id in account.project_ids if is_on_project else account.project_ids[:1]:
                place = place_of(permission, account, project_id)
                asked = ("acme", None) if "account_id" in place else (None, project_id)
                wanted = [
                    token_id
                    for token_id, grant in reversed(made.items())
                    if oracle_says(world, grant, permission, *asked) == "ALLOWED"
                ]
                assert ids(stubs, permission=permission, **place, page_size=10) == wanted, (plan, permission, place)


def oracle_says(
    world: World, grant: NaiveGrant, permission: str, account_id: str | None, project_id: str | None
) -> str:
    token = NaiveToken("A" * 16, "acme", False, False, None, (grant,))
    return expected(world, token, permission, account_id, project_id, 0)


def test_nobody_of_a_suspended_or_deleted_account_is_listed(stubs: Stubs, account: OwnAccount) -> None:
    token_id = account.issue(on_all("job_admin")).token.token_id
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}
    of_account: dict[str, Any] = {"permission": "connections:read", "account_id": account.account_id}
    named: dict[str, Any] = {"account_id": account.account_id}
    assert ids(stubs, **asked) == ids(stubs, **of_account) == [token_id]

    ask(stubs.accounts.SuspendAccount, account_admin_pb2.SuspendAccountRequest(**named), stubs.admin)
    suspended = ids(stubs, **asked), ids(stubs, **of_account)
    ask(stubs.accounts.ResumeAccount, account_admin_pb2.ResumeAccountRequest(**named), stubs.admin)
    resumed = ids(stubs, **asked), ids(stubs, **of_account)
    ask(stubs.accounts.DeleteAccount, account_admin_pb2.DeleteAccountRequest(**named), stubs.admin)
    deleted = ids(stubs, **of_account)

    assert (suspended, resumed, deleted) == (([], []), ([token_id], [token_id]), [])


def test_what_a_mutation_has_done_is_in_the_list_when_it_has_returned(stubs: Stubs, account: OwnAccount) -> None:
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}
    for _ in range(10):
        issued = account.issue(on_all("job_admin"))
        there = listed(stubs, **asked)
        revision = account.revoke(issued.token.token_id).propagation.revision
        gone = listed(stubs, **asked)

        assert [token.token_id for token in there.tokens] == [issued.token.token_id]
        assert (list(gone.tokens), gone.revision) == ([], revision)


def test_a_token_is_shown_as_get_token_shows_it(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on("job_admin", account.project_ids[0]), on_all("analyst"), labels={"team": "data"})
    account.set_plan("team")

    (shown,) = listed(stubs, permission="jobs:write", project_id=account.project_ids[0]).tokens

    assert shown == account.token(issued.token.token_id)
    assert issued.secret[22:] not in str(shown)


# ---- pages


@pytest.mark.parametrize("page_size", [0, 1, 2, 3, 5, 1000, 1001])
def test_pages_of_any_size_show_every_token_once_the_newest_first(stubs: Stubs, page_size: int) -> None:
    account = an_account(stubs)
    newest_first = [account.issue(on_all("job_admin")).token.token_id for _ in range(5)][::-1]
    account.issue(on_all("read_only"))

    assert ids(stubs, permission="jobs:read", project_id=account.project_ids[0], page_size=page_size) == newest_first


def test_a_change_between_two_pages_moves_no_other_token(stubs: Stubs, account: OwnAccount) -> None:
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0], "page_size": 2}
    newest_first = [account.issue(on_all("job_admin")).token.token_id for _ in range(5)][::-1]
    first = listed(stubs, **asked)

    account.issue(on_all("job_admin"))
    account.revoke(newest_first[0])
    account.revoke(newest_first[2])

    rest = ids(stubs, **asked, page_token=first.next_page_token)
    assert [token.token_id for token in first.tokens] == newest_first[:2]
    assert rest == newest_first[3:]


def test_a_page_token_belongs_to_its_question(stubs: Stubs, account: OwnAccount) -> None:
    for _ in range(2):
        account.issue(on_all("job_admin"))
    first, second = account.project_ids
    token = listed(stubs, permission="jobs:read", project_id=first, page_size=1).next_page_token

    told = [
        refusal(stubs, stubs.admin, permission="jobs:write", project_id=first, page_token=token),
        refusal(stubs, stubs.admin, permission="jobs:read", project_id=second, page_token=token),
        refusal(stubs, stubs.admin, permission="jobs:read", project_id=first, page_token="x"),
    ]

    assert {one.reason for one in told} == {"PAGE_TOKEN_INVALID"}


# ---- who may ask


def test_readers_may_ask_and_the_role_caller_may_not(stubs: Stubs, server: ServerProcess, account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}

    assert ids(stubs, bearer(operator_credential(server, "auditor")), **asked) == [issued.token.token_id]
    told = refusal(stubs, stubs.caller, **asked)
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")


def test_a_token_that_may_read_tokens_asks_about_its_own_account(stubs: Stubs, account: OwnAccount) -> None:
    issued, reader, other = (account.issue(on_all(name)) for name in ("job_admin", "security_admin", "member"))
    asked: dict[str, Any] = {"permission": "metadata:read", "project_id": account.project_ids[0]}
    of_account: dict[str, Any] = {"permission": "service_tokens:read", "account_id": account.account_id}

    assert ids(stubs, bearer(reader.secret), **asked) == [other.token.token_id, issued.token.token_id]
    assert ids(stubs, bearer(reader.secret), **of_account) == [reader.token.token_id]
    for secret in (issued.secret, other.secret):
        assert refusal(stubs, bearer(secret), **asked).reason == "CALLER_NOT_PERMITTED"
    account.revoke(reader.token.token_id)
    assert refusal(stubs, bearer(reader.secret), **asked).reason == "CREDENTIAL_UNRECOGNIZED"


def test_a_caller_that_is_revoked_while_the_page_is_read_gets_none(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    reader = account.issue(on_all("account_admin"))
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}
    assert ids(stubs, bearer(reader.secret), **asked) == [reader.token.token_id]
    call = stubs.authorizer.ListTokensWithPermission

    with rows.holding("LOCK TABLE projects"):
        pending = call.future(ListTokensWithPermissionRequest(**asked), metadata=bearer(reader.secret), timeout=30)
        eventually(lambda: rows.fetch(WAITING) != [])
        account.revoke(reader.token.token_id)

    with pytest.raises(grpc.RpcError) as caught:
        pending.result()
    assert refusal_of(caught.value).reason == "CREDENTIAL_UNRECOGNIZED"


def test_to_a_token_another_account_and_its_projects_do_not_exist(stubs: Stubs, account: OwnAccount) -> None:
    other = an_account(stubs)
    reader = bearer(account.issue(on_all("account_admin")).secret)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"account_id": other.account_id}, {"account_id": fresh_id("nobody")}),
        ({"project_id": other.project_ids[0]}, {"project_id": fresh_id("nothing")}),
    ]

    for foreign, unknown in pairs:
        permission = "billing:read" if "account_id" in foreign else "jobs:read"
        for more in ({}, {"page_size": 1}, {"page_size": -1}, {"page_token": "x"}, {"permission": "jobs:delete"}):
            told = [
                refusal(stubs, reader, **{"permission": permission, **place, **more}) for place in (foreign, unknown)
            ]
            (its_id,), (no_id,) = foreign.values(), unknown.values()
            assert told[0].text.replace(its_id, no_id) == told[1].text
            assert told[0].code == told[1].code


def test_an_unknown_account_or_project_is_told(stubs: Stubs) -> None:
    account = refusal(stubs, stubs.admin, permission="billing:read", account_id="nobody-at-all")
    project = refusal(stubs, stubs.admin, permission="jobs:read", project_id="nothing-at-all")

    assert (account.code, account.reason, account.metadata) == (
        "NOT_FOUND", "ACCOUNT_NOT_FOUND", {"account_id": "nobody-at-all"},
    )  # fmt: skip
    assert (project.code, project.reason, project.metadata) == (
        "NOT_FOUND", "PROJECT_NOT_FOUND", {"project_id": "nothing-at-all"},
    )  # fmt: skip


def test_every_bad_field_is_told_at_once(stubs: Stubs) -> None:
    told = [
        refusal(stubs, stubs.admin, page_size=-1).bad_fields,
        refusal(stubs, stubs.admin, permission="jobs:delete", project_id="a b").bad_fields,
        refusal(stubs, stubs.admin, permission="jobs:read", account_id="").bad_fields,
    ]

    assert told == [
        [("page_size", "FIELD_OUT_OF_RANGE"), ("permission", "FIELD_REQUIRED"), ("resource", "FIELD_REQUIRED")],
        [("permission", "PERMISSION_UNKNOWN"), ("project_id", "FIELD_MALFORMED")],
        [("account_id", "FIELD_REQUIRED"), ("account_id", "PERMISSION_LEVEL_MISMATCH")],
    ]


# ---- the lease


@pytest.mark.usefixtures("recovered")
def test_without_a_lease_nothing_is_listed(frail: Frail) -> None:
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": frail.account.project_ids[0]}
    assert not listed(frail.stubs, **asked).next_page_token

    with frail.rows.holding("LOCK TABLE replicas"):
        eventually(lambda: code_of(lambda: check(frail.stubs, "x", "jobs:read", project_id="p")) == "UNAVAILABLE")
        told = refusal(frail.stubs, frail.stubs.admin, **asked)

    assert (told.code, told.reason) == ("UNAVAILABLE", "NO_LEASE")


@pytest.mark.usefixtures("recovered")
def test_a_page_whose_lease_ends_while_it_is_read_is_not_shown(frail: Frail) -> None:
    """The read is held up until the lease is gone, then let through: what it found may be outdated by now."""
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": frail.account.project_ids[0]}
    frail.account.issue(on_all("job_admin"))
    listed(frail.stubs, **asked)
    call = frail.stubs.authorizer.ListTokensWithPermission
    with frail.rows.holding("LOCK TABLE replicas"), frail.rows.holding("LOCK TABLE projects"):
        pending = call.future(ListTokensWithPermissionRequest(**asked), metadata=frail.stubs.admin, timeout=30)
        eventually(lambda: code_of(lambda: check(frail.stubs, "x", "jobs:read", project_id="p")) == "UNAVAILABLE")

    with pytest.raises(grpc.RpcError) as caught:
        pending.result()
    assert refusal_of(caught.value).reason in {"NO_LEASE", "DATABASE_UNAVAILABLE"}
