"""PreviewPlanChange over the wire: it tells what PutAccount then does, and does nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from doorward.v1.account_admin_pb2 import (
    DeleteAccountRequest,
    PlanChangeEffect,
    PreviewPlanChangeRequest,
    PreviewPlanChangeResponse,
)
from doorward.v1.token_admin_pb2 import DisableTokenRequest
from doorward.v1.types_pb2 import Grant
from tests.support.wire import OwnAccount, ask, fresh_id, on, on_all, refused

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs

# Of the built-in catalog: sets that only `enterprise` covers, and some that `team` does too.
ENTERPRISE_ONLY, ON_BOTH = ("job_runner", "job_viewer"), ("account_admin", "member", "read_only")


def request_of(account: OwnAccount, plan: str, **fields: Any) -> PreviewPlanChangeRequest:
    return PreviewPlanChangeRequest(account_id=account.account_id, plan=plan, **fields)


def preview(account: OwnAccount, plan: str, **fields: Any) -> PreviewPlanChangeResponse:
    return ask(account.stubs.accounts.PreviewPlanChange, request_of(account, plan, **fields), account.stubs.admin)


def suspended(grant: Grant) -> Grant:
    return Grant(
        permission_set=grant.permission_set,
        project_ids=grant.project_ids,
        all_projects=grant.all_projects,
        suspended=True,
    )


def totals(answer: PreviewPlanChangeResponse) -> tuple[int, int, int]:
    return (answer.tokens_affected, answer.grants_suspended, answer.grants_restored)


def test_the_catalog_is_as_this_test_takes_it(account: OwnAccount) -> None:
    account.issue(*(on_all(name) for name in (*ENTERPRISE_ONLY, *ON_BOTH)))
    (effect,) = preview(account, "team").effects
    assert {grant.permission_set for grant in effect.suspended} == set(ENTERPRISE_ONLY)


def test_it_names_what_would_be_suspended_newest_token_first(account: OwnAccount) -> None:
    first, second = account.project_ids
    mixed = account.issue(on("job_runner", first), on_all("member"), display_name="mixed").token
    account.issue(on_all("read_only"), display_name="untouched")
    twice = account.issue(on_all("job_runner"), on("job_viewer", first, second), display_name="twice").token

    answer = preview(account, "team")

    assert list(answer.effects) == [
        PlanChangeEffect(
            token_id=twice.token_id,
            display_name="twice",
            suspended=[on_all("job_runner"), on("job_viewer", first, second)],
        ),
        PlanChangeEffect(token_id=mixed.token_id, display_name="mixed", suspended=[on("job_runner", first)]),
    ]
    assert totals(answer) == (2, 3, 0)
    assert (answer.current_plan, answer.next_page_token) == ("enterprise", "")


def test_it_names_what_would_come_back(account: OwnAccount) -> None:
    issued = account.issue(on_all("job_runner"), on_all("member")).token
    account.set_plan("team")

    answer = preview(account, "enterprise")

    (effect,) = answer.effects
    assert (effect.token_id, list(effect.suspended)) == (issued.token_id, [])
    assert list(effect.restored) == [suspended(on_all("job_runner"))]
    assert (totals(answer), answer.current_plan) == ((1, 0, 1), "team")


def test_the_change_then_does_what_was_told(account: OwnAccount) -> None:
    for names in (("job_runner", "member"), ("read_only",), ("job_viewer",), ("job_runner", "job_viewer")):
        account.issue(*(on_all(name) for name in names))

    for plan in ("team", "enterprise", "team"):
        told = preview(account, plan)
        before = {token_id: account.token(token_id).grants for token_id in account.token_ids()}
        account.set_plan(plan)
        changed = {
            token_id: [
                (grant.permission_set, grant.suspended)
                for grant, former in zip(account.token(token_id).grants, grants, strict=True)
                if grant.suspended != former.suspended
            ]
            for token_id, grants in before.items()
        }
        expected = {
            effect.token_id: sorted(
                [*((grant.permission_set, True) for grant in effect.suspended),
                 *((grant.permission_set, False) for grant in effect.restored)]
            )
            for effect in told.effects
        }  # fmt: skip
        assert {token_id: sorted(grants) for token_id, grants in changed.items() if grants} == expected
        assert told.tokens_affected == len(expected)
        assert preview(account, plan).effects == []


def test_the_present_plan_changes_nothing(account: OwnAccount) -> None:
    account.issue(on_all("job_runner"))

    answer = preview(account, "enterprise")

    assert (list(answer.effects), totals(answer), answer.current_plan) == ([], (0, 0, 0), "enterprise")


def test_revoked_tokens_are_left_out_and_disabled_and_expired_ones_are_not(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    revoked, disabled, expired = (account.issue(on_all("job_runner")).token.token_id for _ in range(3))
    account.revoke(revoked)
    ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=disabled), stubs.admin)
    rows.fetch("UPDATE tokens SET expire_time = now() WHERE token_id = $1", expired)

    answer = preview(account, "team")

    assert [effect.token_id for effect in answer.effects] == [expired, disabled]
    assert totals(answer) == (2, 2, 0)


def test_other_accounts_tokens_are_left_out(stubs: Stubs, account: OwnAccount, still: OwnAccount) -> None:
    still.issue(on_all("job_runner"))

    assert totals(preview(account, "team")) == (0, 0, 0)


def test_pages_follow_each_other_and_each_has_the_totals(account: OwnAccount) -> None:
    tokens = [account.issue(on_all("job_runner")).token.token_id for _ in range(5)]
    account.issue(on_all("member"))
    pages = [preview(account, "team", page_size=2)]
    while pages[-1].next_page_token:
        pages.append(preview(account, "team", page_size=2, page_token=pages[-1].next_page_token))
        # What is issued meanwhile is not on a later page.
        account.issue(on_all("job_runner"))

    assert [effect.token_id for page in pages for effect in page.effects] == tokens[::-1]
    assert [len(page.effects) for page in pages] == [2, 2, 1]
    assert [page.tokens_affected for page in pages] == [5, 5, 6]


def test_it_changes_nothing(account: OwnAccount, rows: Rows) -> None:
    account.issue(on_all("job_runner"))
    before = rows.footprint()

    preview(account, "team")

    assert rows.footprint() == before


def test_what_cannot_be_previewed_is_refused(stubs: Stubs, account: OwnAccount) -> None:
    rpc = stubs.accounts.PreviewPlanChange
    for _ in range(2):
        account.issue(on_all("job_runner"))
    token = preview(account, "team", page_size=1).next_page_token
    bad = PreviewPlanChangeRequest(account_id="no account", plan="free", page_size=-1)
    nobody = fresh_id("nobody")

    unknown_plan = refused(rpc, request_of(account, "free"), stubs.admin)
    other_plan = refused(rpc, request_of(account, "enterprise", page_token=token), stubs.admin)
    unknown = refused(rpc, PreviewPlanChangeRequest(account_id=nobody, plan="team"), stubs.admin)
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)
    deleted = refused(rpc, request_of(account, "team"), stubs.admin)

    assert refused(rpc, bad, stubs.admin).bad_fields == [
        ("account_id", "FIELD_MALFORMED"),
        ("page_size", "FIELD_OUT_OF_RANGE"),
        ("plan", "PLAN_UNKNOWN"),
    ]
    assert unknown_plan.bad_fields == [("plan", "PLAN_UNKNOWN")]
    assert "enterprise, team" in unknown_plan.message
    assert (other_plan.code, other_plan.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
    assert (unknown.reason, unknown.metadata) == ("ACCOUNT_NOT_FOUND", {"account_id": nobody})
    assert (deleted.code, deleted.reason) == ("FAILED_PRECONDITION", "ACCOUNT_DELETED")
