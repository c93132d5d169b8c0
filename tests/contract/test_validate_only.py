"""`validate_only` checks everything and leaves nothing behind (AIP-163): no row, no revision, no audit event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from doorward.v1 import types_pb2
from doorward.v1.account_admin_pb2 import GetAccountRequest, ListProjectsRequest, PutAccountRequest, PutProjectRequest
from tests.support.wire import OwnAccount, ask, fresh_id, on, on_all, refused

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs


def test_a_token_that_is_only_validated_is_shown_and_not_issued(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    before = rows.footprint()

    answer = account.issue(
        on("readonly", account.project_ids[0]),
        labels={"team": "data"},
        ttl=Duration(seconds=60),
        validate_only=True,
    )

    assert (answer.secret, answer.HasField("propagation")) == ("", False)
    assert (answer.token.token_id, answer.token.etag) == ("", "")
    assert list(answer.token.grants) == [on("read_only", account.project_ids[0])]
    assert (answer.token.state, answer.token.account_id) == (types_pb2.TOKEN_STATE_ACTIVE, account.account_id)
    assert answer.token.HasField("expire_time")
    assert rows.footprint() == before
    assert account.token_ids() == []


def test_an_account_that_is_only_validated_is_shown_and_not_put(stubs: Stubs, rows: Rows) -> None:
    account_id = fresh_id("only")
    before = rows.footprint()

    answer = ask(
        stubs.accounts.PutAccount,
        PutAccountRequest(account_id=account_id, display_name="Only", plan="team", validate_only=True),
        stubs.admin,
    )

    assert (answer.account.account_id, answer.account.plan) == (account_id, "team")
    assert not answer.HasField("propagation")
    assert rows.footprint() == before
    assert refused(stubs.accounts.GetAccount, GetAccountRequest(account_id=account_id), stubs.admin).code == "NOT_FOUND"


def test_a_change_of_an_account_that_is_only_validated_is_not_made(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    before = rows.footprint()
    as_it_was = ask(stubs.accounts.GetAccount, GetAccountRequest(account_id=account.account_id), stubs.admin)

    answer = ask(
        stubs.accounts.PutAccount,
        PutAccountRequest(account_id=account.account_id, display_name="Other", plan="team", validate_only=True),
        stubs.admin,
    )

    assert (answer.account.display_name, answer.account.plan) == ("Other", "team")
    assert rows.footprint() == before
    assert ask(stubs.accounts.GetAccount, GetAccountRequest(account_id=account.account_id), stubs.admin) == as_it_was


def test_a_repeat_that_is_only_validated_leaves_no_audit_event(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    before = rows.footprint()
    as_it_is = ask(stubs.accounts.GetAccount, GetAccountRequest(account_id=account.account_id), stubs.admin).account

    answer = ask(
        stubs.accounts.PutAccount,
        PutAccountRequest(
            account_id=as_it_is.account_id,
            display_name=as_it_is.display_name,
            plan=as_it_is.plan,
            validate_only=True,
        ),
        stubs.admin,
    )

    assert (answer.account, answer.HasField("propagation")) == (as_it_is, False)
    assert rows.footprint() == before


def test_a_project_that_is_only_validated_is_shown_and_not_put(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    project_id = fresh_id("only")
    before = rows.footprint()

    answer = ask(
        stubs.accounts.PutProject,
        PutProjectRequest(
            account_id=account.account_id, project_id=project_id, display_name="Only", validate_only=True
        ),
        stubs.admin,
    )

    listed = ask(stubs.accounts.ListProjects, ListProjectsRequest(account_id=account.account_id), stubs.admin)
    assert (answer.project.project_id, answer.HasField("propagation")) == (project_id, False)
    assert rows.footprint() == before
    assert [project.project_id for project in listed.projects] == sorted(account.project_ids)


def test_what_is_only_validated_is_refused_as_it_would_be(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    account.set_plan("team")
    before = rows.footprint()

    pairs = [
        [
            refused(stubs.tokens.IssueToken, account.wanted(*grants, validate_only=only), stubs.admin)
            for only in (True, False)
        ]
        for grants in ([on_all("job_runner")], [on("no_such_set", "no_such_project")], [])
    ]

    assert [validated == refused_for_good for validated, refused_for_good in pairs] == [True] * 3
    assert [validated.reason for validated, _ in pairs] == [
        "PERMISSION_SET_NOT_IN_PLAN",
        "INVALID_FIELDS",
        "INVALID_FIELDS",
    ]
    assert rows.footprint() == before
