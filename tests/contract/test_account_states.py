"""Suspending, resuming and deleting accounts over the wire: every check that begins after the return says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from doorward.v1 import types_pb2
from doorward.v1.account_admin_pb2 import (
    DeleteAccountRequest,
    GetAccountRequest,
    ListProjectsRequest,
    PutAccountRequest,
    PutProjectRequest,
    ResumeAccountRequest,
    SuspendAccountRequest,
)
from doorward.v1.authorizer_pb2 import IntrospectTokenRequest
from doorward.v1.token_admin_pb2 import (
    DescribeSelfRequest,
    DisableTokenRequest,
    ListTokensRequest,
)
from tests.support.server import bearer
from tests.support.wire import OwnAccount, an_account, ask, check, fresh_id, on, on_all, refused, verdict

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs

ACTIVE, SUSPENDED, DELETED = (
    types_pb2.ACCOUNT_STATE_ACTIVE,
    types_pb2.ACCOUNT_STATE_SUSPENDED,
    types_pb2.ACCOUNT_STATE_DELETED,
)


def suspend(account: OwnAccount, **fields: Any) -> Any:
    request = SuspendAccountRequest(account_id=account.account_id, **fields)
    return ask(account.stubs.accounts.SuspendAccount, request, account.stubs.admin)


def resume(account: OwnAccount, **fields: Any) -> Any:
    request = ResumeAccountRequest(account_id=account.account_id, **fields)
    return ask(account.stubs.accounts.ResumeAccount, request, account.stubs.admin)


def delete(account: OwnAccount, **fields: Any) -> Any:
    request = DeleteAccountRequest(account_id=account.account_id, **fields)
    return ask(account.stubs.accounts.DeleteAccount, request, account.stubs.admin)


def read(account: OwnAccount) -> types_pb2.Account:
    request = GetAccountRequest(account_id=account.account_id)
    return ask(account.stubs.accounts.GetAccount, request, account.stubs.admin).account


def asked(account: OwnAccount, secret: str) -> str:
    """The verdict of a check that would be allowed in an active account."""
    return verdict(check(account.stubs, secret, "jobs:write", project_id=account.project_ids[0]))


def listed(account: OwnAccount, state: types_pb2.TokenState.ValueType) -> list[str]:
    request = ListTokensRequest(account_id=account.account_id, state=state, page_size=1000)
    answer = ask(account.stubs.tokens.ListTokens, request, account.stubs.admin)
    assert {token.state for token in answer.tokens} <= {state}
    return [token.token_id for token in answer.tokens]


# ---- suspended and resumed


def test_a_suspended_account_denies_at_once_and_a_resumed_one_allows_at_once(account: OwnAccount) -> None:
    secret = account.issue(on_all("job_admin")).secret
    seen = [asked(account, secret), asked(account, secret)]

    for change in (suspend, resume, suspend, resume):
        change(account)
        seen += [asked(account, secret), asked(account, secret)]

    allowed, denied = ["ALLOWED"] * 2, ["ACCOUNT_SUSPENDED"] * 2
    assert seen == allowed + denied + allowed + denied + allowed


def test_the_account_is_answered_as_it_is_then(account: OwnAccount) -> None:
    states = [read(account)]

    for change in (suspend, resume):
        answer = change(account)
        assert answer.account == read(account)
        assert answer.propagation.replicas_confirmed == 1
        states.append(answer.account)

    assert [state.state for state in states] == [ACTIVE, SUSPENDED, ACTIVE]
    assert len({state.etag for state in states}) == 3
    times = [state.update_time.ToNanoseconds() for state in states]
    assert times == sorted(set(times))


def test_a_suspended_account_s_tokens_can_be_read_changed_and_revoked_but_none_issued(
    stubs: Stubs, account: OwnAccount
) -> None:
    kept, revoked = account.issue(on_all("job_admin")), account.issue(on_all("member"))
    suspend(account)

    not_issued = refused(stubs.tokens.IssueToken, account.wanted(on_all("member")), stubs.admin)
    disabled = ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=kept.token.token_id), stubs.admin)
    account.revoke(revoked.token.token_id)
    account.put_project(fresh_id("p"))

    assert (not_issued.code, not_issued.reason) == ("FAILED_PRECONDITION", "ACCOUNT_NOT_ACTIVE")
    assert disabled.token.state == types_pb2.TOKEN_STATE_DISABLED
    assert account.token(revoked.token.token_id).state == types_pb2.TOKEN_STATE_REVOKED
    assert listed(account, types_pb2.TOKEN_STATE_DISABLED) == [kept.token.token_id]


def test_a_token_that_was_revoked_meanwhile_does_not_come_back(account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    suspend(account)
    account.revoke(issued.token.token_id)
    resume(account)

    assert asked(account, issued.secret) == "TOKEN_REVOKED"


def test_the_plan_and_the_name_of_a_suspended_account_can_change_and_it_stays_suspended(account: OwnAccount) -> None:
    suspend(account)
    account.set_plan("team")

    assert (read(account).plan, read(account).state) == ("team", SUSPENDED)


def test_a_suspended_account_s_tokens_cannot_administer(stubs: Stubs, account: OwnAccount) -> None:
    minter = account.issue(on_all("account_admin"))
    ask(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(minter.secret))

    suspend(account)
    refusal = refused(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(minter.secret))
    resume(account)

    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    ask(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(minter.secret))


# ---- deleted


def test_a_deleted_account_denies_at_once_whatever_was_warm(account: OwnAccount) -> None:
    first = account.issue(on_all("job_admin")).secret
    second = account.issue(on("job_admin", account.project_ids[0])).secret
    before = [asked(account, first), asked(account, second)]

    delete(account)

    assert before == ["ALLOWED"] * 2
    assert [asked(account, first), asked(account, second)] == ["TOKEN_REVOKED"] * 2


def test_a_deleted_account_denies_though_it_was_suspended(account: OwnAccount) -> None:
    secret = account.issue(on_all("job_admin")).secret
    suspend(account)
    assert asked(account, secret) == "ACCOUNT_SUSPENDED"

    assert delete(account).account.state == DELETED

    assert asked(account, secret) == "TOKEN_REVOKED"


def test_a_deleted_account_s_tokens_are_readable_and_count_as_revoked(stubs: Stubs, account: OwnAccount) -> None:
    live, disabled, revoked = (account.issue(on_all("job_admin")) for _ in range(3))
    ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=disabled.token.token_id), stubs.admin)
    account.revoke(revoked.token.token_id)
    records = {made.token.token_id: account.token(made.token.token_id) for made in (live, disabled, revoked)}

    delete(account)

    for token_id, before in records.items():
        after = account.token(token_id)
        assert after.state == types_pb2.TOKEN_STATE_REVOKED
        # Nothing else of it has changed, for it was not written.
        after.state = before.state
        assert after == before
    assert listed(account, types_pb2.TOKEN_STATE_REVOKED) == list(records)[::-1]
    for state in (types_pb2.TOKEN_STATE_ACTIVE, types_pb2.TOKEN_STATE_DISABLED, types_pb2.TOKEN_STATE_EXPIRED):
        assert listed(account, state) == []
    assert account.token_ids() == list(records)[::-1]
    shown = ask(stubs.authorizer.IntrospectToken, IntrospectTokenRequest(secret=live.secret), stubs.caller)
    assert (shown.active, shown.state) == (False, types_pb2.TOKEN_STATE_REVOKED)
    assert not shown.HasField("expire_time")


def test_a_token_of_a_deleted_account_can_be_revoked_of_its_own(account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    delete(account)

    answer = account.revoke(issued.token.token_id, "tidied up")

    assert answer.token == account.token(issued.token.token_id)
    assert (answer.token.state, answer.token.revoke_reason) == (types_pb2.TOKEN_STATE_REVOKED, "tidied up")


def test_a_deleted_account_s_tokens_cannot_call(stubs: Stubs, account: OwnAccount) -> None:
    minter = account.issue(on_all("account_admin"))
    ask(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(minter.secret))

    delete(account)

    refusal = refused(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(minter.secret))
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")


def test_nothing_but_reading_revoking_and_deleting_projects_is_possible_in_a_deleted_account(
    stubs: Stubs, account: OwnAccount
) -> None:
    issued, (project_id, *_) = account.issue(on_all("job_admin")), account.project_ids
    delete(account)
    put = PutAccountRequest(account_id=account.account_id, display_name="Again", plan="team")
    project = PutProjectRequest(account_id=account.account_id, project_id=fresh_id("p"), display_name="P")
    own = account.account_id

    refusals = [
        refused(stubs.accounts.PutAccount, put, stubs.admin),
        refused(stubs.accounts.SuspendAccount, SuspendAccountRequest(account_id=own), stubs.admin),
        refused(stubs.accounts.ResumeAccount, ResumeAccountRequest(account_id=own), stubs.admin),
        refused(stubs.accounts.PutProject, project, stubs.admin),
        refused(stubs.tokens.IssueToken, account.wanted(on_all("member")), stubs.admin),
        refused(stubs.tokens.DisableToken, DisableTokenRequest(token_id=issued.token.token_id), stubs.admin),
    ]

    assert {(refusal.code, refusal.reason) for refusal in refusals} == {("FAILED_PRECONDITION", "ACCOUNT_DELETED")}
    assert [refusal.metadata for refusal in refusals] == [{"account_id": own}] * len(refusals)
    assert read(account).state == DELETED
    listed_projects = ask(stubs.accounts.ListProjects, ListProjectsRequest(account_id=own), stubs.admin).projects
    assert project_id in {found.project_id for found in listed_projects}


def test_a_deleted_account_s_project_ids_stay_taken(stubs: Stubs, account: OwnAccount) -> None:
    delete(account)
    other = an_account(stubs, projects=0)
    taken = PutProjectRequest(account_id=other.account_id, project_id=account.project_ids[0], display_name="Mine")

    assert refused(stubs.accounts.PutProject, taken, stubs.admin).reason == "PROJECT_ID_TAKEN"


# ---- repeats, refusals, checking only


def test_a_repeat_changes_nothing_waits_again_and_leaves_an_audit_event(account: OwnAccount, rows: Rows) -> None:
    for change in (resume, suspend, delete):
        first = change(account)
        (events,) = rows.fetch("SELECT count(*) FROM audit_events WHERE account_id = $1", account.account_id)
        again = change(account)

        assert again.account == first.account
        assert again.HasField("propagation")
        assert again.propagation.revision == first.propagation.revision
        repeated = rows.fetch("SELECT count(*) FROM audit_events WHERE account_id = $1", account.account_id)
        assert repeated == [(events[0] + 1,)]


def test_an_audit_event_tells_the_states(account: OwnAccount, rows: Rows) -> None:
    for change in (suspend, resume, delete):
        change(account)

    told = rows.fetch(
        "SELECT action, subject, before ->> 'state', after ->> 'state', tokens FROM audit_events"
        " WHERE account_id = $1 AND before ? 'state' ORDER BY event_id",
        account.account_id,
    )
    subject = f"account:{account.account_id}"
    assert told == [
        ("SuspendAccount", subject, "ACTIVE", "SUSPENDED", None),
        ("ResumeAccount", subject, "SUSPENDED", "ACTIVE", None),
        ("DeleteAccount", subject, "ACTIVE", "DELETED", None),
    ]


@pytest.mark.parametrize("name", ["SuspendAccount", "ResumeAccount", "DeleteAccount"])
def test_unknown_accounts_and_bad_ids_are_refused(stubs: Stubs, name: str, rows: Rows) -> None:
    rpc = getattr(stubs.accounts, name)
    request_type = {
        "SuspendAccount": SuspendAccountRequest,
        "ResumeAccount": ResumeAccountRequest,
        "DeleteAccount": DeleteAccountRequest,
    }[name]
    before = rows.footprint()

    nobody = fresh_id("nobody")
    unknown = [refused(rpc, request_type(account_id=nobody, validate_only=only), stubs.admin) for only in (False, True)]
    empty = refused(rpc, request_type(), stubs.admin)
    bad = refused(rpc, request_type(account_id="no account"), stubs.admin)

    assert unknown[0] == unknown[1]
    assert (unknown[0].code, unknown[0].reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")
    assert unknown[0].metadata == {"account_id": nobody}
    assert empty.bad_fields == [("account_id", "FIELD_REQUIRED")]
    assert bad.bad_fields == [("account_id", "FIELD_MALFORMED")]
    assert rows.footprint() == before


@pytest.mark.parametrize(
    ("change", "state"),
    [(suspend, SUSPENDED), (resume, ACTIVE), (delete, DELETED)],
    ids=["suspend", "resume", "delete"],
)
def test_a_change_that_is_only_validated_is_shown_and_not_made(
    account: OwnAccount, rows: Rows, change: Any, state: types_pb2.AccountState.ValueType
) -> None:
    secret = account.issue(on_all("job_admin")).secret
    if state == ACTIVE:
        suspend(account)
    before, as_it_was, asked_before = rows.footprint(), read(account), asked(account, secret)

    answer = change(account, validate_only=True)

    assert (answer.account.state, answer.HasField("propagation")) == (state, False)
    assert rows.footprint() == before
    assert (read(account), asked(account, secret)) == (as_it_was, asked_before)
