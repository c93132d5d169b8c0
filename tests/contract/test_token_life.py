"""A token from end to end over the wire: issued, checked, read, revoked, denied; and its expiry, etag and audit."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.core.revision import Revision
from doorward.core.secret import SecretKind, find_secret
from doorward.v1 import account_admin_pb2, authorizer_pb2, token_admin_pb2, types_pb2
from tests.support.wire import (
    OwnAccount,
    an_account,
    another_of,
    ask,
    check,
    eventually,
    fresh_id,
    on,
    on_all,
    refused,
    verdict,
)

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs


def introspect(stubs: Stubs, secret: str) -> authorizer_pb2.IntrospectTokenResponse:
    return ask(stubs.authorizer.IntrospectToken, authorizer_pb2.IntrospectTokenRequest(secret=secret), stubs.caller)


def test_a_token_is_allowed_until_it_is_revoked_and_denied_from_then_on(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id))
    before = check(stubs, issued.secret, "jobs:write", project_id=project_id)

    revoked = account.revoke(issued.token.token_id, "contractor left")
    after = check(stubs, issued.secret, "jobs:write", project_id=project_id)

    assert (before.allowed, before.token_id, before.account_id) == (True, issued.token.token_id, account.account_id)
    assert (verdict(after), after.token_id, after.account_id) == (
        "TOKEN_REVOKED",
        issued.token.token_id,
        account.account_id,
    )
    assert revoked.token.state == types_pb2.TOKEN_STATE_REVOKED
    assert revoked.token.revoke_reason == "contractor left"
    assert revoked.token.HasField("revoke_time")
    assert Revision.parse(before.revision) < Revision.parse(after.revision)


def test_every_check_after_one_of_many_revocations_is_denied(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = [account.issue(on("job_admin", project_id)) for _ in range(8)]
    assert [verdict(check(stubs, one.secret, "jobs:read", project_id=project_id)) for one in issued] == ["ALLOWED"] * 8

    answers = []
    for one in issued:
        account.revoke(one.token.token_id)
        answers.append([verdict(check(stubs, each.secret, "jobs:read", project_id=project_id)) for each in issued])

    assert answers == [["TOKEN_REVOKED"] * count + ["ALLOWED"] * (8 - count) for count in range(1, 9)]


def test_a_change_tells_its_propagation(account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))
    propagation = account.revoke(issued.token.token_id).propagation

    assert Revision.parse(issued.propagation.revision) < Revision.parse(propagation.revision)
    assert (propagation.replicas_confirmed, propagation.replicas_expired, propagation.watchers_confirmed) == (1, 0, 0)
    assert propagation.HasField("elapsed")


def test_a_repeated_revocation_succeeds_waits_and_changes_nothing(account: OwnAccount) -> None:
    token_id = account.issue(on_all("member")).token.token_id
    first = account.revoke(token_id, "the first reason")

    again = account.revoke(token_id, "another reason")

    assert again.token == first.token
    assert Revision.parse(first.propagation.revision) <= Revision.parse(again.propagation.revision)
    assert again.propagation.replicas_confirmed == 1


def test_a_secret_is_shown_by_the_issue_alone_and_names_its_token(account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))
    secret = find_secret(issued.secret, SecretKind.TOKEN)

    assert secret is not None
    assert secret.subject_id == issued.token.token_id
    assert issued.secret not in str(issued.token)
    assert issued.secret not in str(account.token(issued.token.token_id))


def test_the_record_is_what_was_asked_for(stubs: Stubs, account: OwnAccount) -> None:
    first, second = account.project_ids
    issued = account.issue(
        on("readonly", second, first),
        on_all("owner"),
        display_name="nightly jobs ✓",
        description="two\nlines",
        labels={"team": "data", "cost/center": ""},
        ttl=Duration(seconds=3600),
        allow_self_rotation=True,
    )
    token = issued.token

    assert account.token(token.token_id) == token
    assert (token.account_id, token.display_name, token.description) == (
        account.account_id,
        "nightly jobs ✓",
        "two\nlines",
    )
    assert dict(token.labels) == {"team": "data", "cost/center": ""}
    # Sets by name, not alias, and projects sorted.
    assert list(token.grants) == [on_all("account_admin"), on("read_only", *sorted(account.project_ids))]
    assert (token.state, token.allow_self_rotation) == (types_pb2.TOKEN_STATE_ACTIVE, True)
    assert token.expire_time.ToDatetime() - token.create_time.ToDatetime() == dt.timedelta(hours=1)
    assert token.create_time == token.update_time
    assert not token.HasField("revoke_time")
    assert not token.HasField("last_used_time")
    assert token.created_by.startswith("operator:")


def test_an_expiry_at_a_time_is_kept_as_given(account: OwnAccount) -> None:
    expire_time = Timestamp(seconds=4102444800, nanos=123456000)

    issued = account.issue(on_all("member"), expire_time=expire_time)

    assert issued.token.expire_time == expire_time


def test_a_token_stops_by_itself_when_it_expires(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id), ttl=Duration(seconds=2))
    token_id = issued.token.token_id
    before = check(stubs, issued.secret, "jobs:read", project_id=project_id)

    eventually(lambda: not check(stubs, issued.secret, "jobs:read", project_id=project_id).allowed)

    assert verdict(before) == "ALLOWED"
    assert verdict(check(stubs, issued.secret, "jobs:read", project_id=project_id)) == "TOKEN_EXPIRED"
    # A check expires at the latest that the database's clock can show; the record, when it does.
    eventually(lambda: account.token(token_id).state == types_pb2.TOKEN_STATE_EXPIRED)
    told = introspect(stubs, issued.secret)
    assert (told.active, told.reason, told.state) == (
        False,
        types_pb2.DENY_REASON_TOKEN_EXPIRED,
        types_pb2.TOKEN_STATE_EXPIRED,
    )
    account.revoke(token_id)
    assert verdict(check(stubs, issued.secret, "jobs:read", project_id=project_id)) == "TOKEN_REVOKED"


def test_an_etag_names_a_state_of_the_token(account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))
    token_id = issued.token.token_id
    read = [account.token(token_id).etag for _ in range(2)]

    revoked = account.revoke(token_id)

    assert issued.token.etag
    assert read == [issued.token.etag] * 2
    assert revoked.token.etag != issued.token.etag
    assert account.revoke(token_id).token.etag == revoked.token.etag == account.token(token_id).etag


def test_a_wrong_secret_of_a_known_token_is_unrecognized_and_tells_nothing(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))

    answer = check(stubs, another_of(issued.secret), "jobs:read", project_id=account.project_ids[0])

    assert (verdict(answer), answer.token_id, answer.account_id) == ("TOKEN_UNRECOGNIZED", "", "")
    assert check(stubs, issued.secret, "jobs:read", project_id=account.project_ids[0]).allowed


def test_a_token_never_passes_at_another_account(stubs: Stubs, account: OwnAccount) -> None:
    other = an_account(stubs)
    issued = account.issue(on_all("account_admin"))

    asked = [
        check(stubs, issued.secret, "billing:read", account_id=account.account_id),
        check(stubs, issued.secret, "billing:read", account_id=other.account_id),
        check(stubs, issued.secret, "jobs:read", project_id=other.project_ids[0]),
        check(stubs, issued.secret, "billing:read", account_id=fresh_id()),
        check(stubs, issued.secret, "jobs:read", project_id=fresh_id()),
    ]

    assert [verdict(answer) for answer in asked] == ["ALLOWED", *["RESOURCE_NOT_IN_ACCOUNT"] * 4]


def test_a_project_put_later_is_covered_by_a_grant_on_all_projects(stubs: Stubs, account: OwnAccount) -> None:
    everywhere, named = account.issue(on_all("job_admin")), account.issue(on("job_admin", account.project_ids[0]))
    project_id = fresh_id("later")
    before = [verdict(check(stubs, one.secret, "jobs:read", project_id=project_id)) for one in (everywhere, named)]

    account.put_project(project_id)

    after = [verdict(check(stubs, one.secret, "jobs:read", project_id=project_id)) for one in (everywhere, named)]
    assert before == ["RESOURCE_NOT_IN_ACCOUNT"] * 2
    assert after == ["ALLOWED", "PROJECT_NOT_GRANTED"]


def test_a_change_of_plan_suspends_a_grant_and_brings_it_back(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("job_runner"))
    verdicts, suspended = [], []

    for plan in ("team", "enterprise"):
        account.set_plan(plan)
        verdicts.append(verdict(check(stubs, issued.secret, "runs:write", project_id=account.project_ids[0])))
        suspended.append([grant.suspended for grant in account.token(issued.token.token_id).grants])

    assert verdicts == ["GRANT_SUSPENDED_BY_PLAN", "ALLOWED"]
    assert suspended == [[True], [False]]


def test_introspection_tells_what_a_token_is(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_runner", project_id), display_name="nightly", ttl=Duration(seconds=900))
    account.set_plan("team")

    active = introspect(stubs, issued.secret)
    account.revoke(issued.token.token_id)
    revoked = introspect(stubs, issued.secret)

    assert (active.active, active.reason, active.token_id, active.account_id, active.display_name) == (
        True,
        types_pb2.DENY_REASON_UNSPECIFIED,
        issued.token.token_id,
        account.account_id,
        "nightly",
    )
    assert list(active.grants) == [
        types_pb2.Grant(permission_set="job_runner", project_ids=[project_id], suspended=True)
    ]
    assert (active.create_time, active.expire_time) == (issued.token.create_time, issued.token.expire_time)
    assert not active.HasField("secret_expire_time")
    assert not active.HasField("last_used_time")
    assert (revoked.active, revoked.reason, revoked.state, revoked.display_name) == (
        False,
        types_pb2.DENY_REASON_TOKEN_REVOKED,
        types_pb2.TOKEN_STATE_REVOKED,
        "nightly",
    )
    assert Revision.parse(active.revision) < Revision.parse(revoked.revision)


@pytest.mark.parametrize("presented", ["nonsense", "dwst_", "ünïcode"])
def test_introspection_of_what_is_no_secret_tells_nothing(stubs: Stubs, presented: str) -> None:
    told = introspect(stubs, presented)

    assert told.revision
    told.ClearField("revision")
    assert told == authorizer_pb2.IntrospectTokenResponse(reason=types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED)


def test_every_change_and_every_repeat_has_its_audit_event(stubs: Stubs, rows: Rows) -> None:
    account = an_account(stubs, plan="team", projects=0)
    account.set_plan("enterprise")
    account.set_plan("enterprise")
    project_id = fresh_id("p")
    account.put_project(project_id)
    token_id = account.issue(on("job_admin", project_id)).token.token_id
    operator = account.token(token_id).created_by
    for reason in ("leaked", "again"):
        ask(
            stubs.tokens.RevokeToken,
            token_admin_pb2.RevokeTokenRequest(token_id=token_id, reason=reason),
            (*stubs.admin, ("on-behalf-of", "alice@example.com")),
        )

    events = rows.fetch(
        "SELECT action, subject, actor, on_behalf_of, before IS NULL, after, peer, revision FROM audit_events "
        "WHERE account_id = $1 ORDER BY event_id",
        account.account_id,
    )

    own, project, token = f"account:{account.account_id}", f"project:{project_id}", f"token:{token_id}"
    assert [event[:5] for event in events] == [
        ("PutAccount", own, operator, "", True),
        ("PutAccount", own, operator, "", False),
        ("PutAccount", own, operator, "", True),
        ("PutProject", project, operator, "", True),
        ("IssueToken", token, operator, "", True),
        ("RevokeToken", token, operator, "alice@example.com", False),
        ("RevokeToken", token, operator, "alice@example.com", True),
    ]
    assert json.loads(events[5][5]) == {"state": "revoked", "reason": "leaked"}
    assert [event[5] is None for event in events] == [False, False, True, False, False, False, True]
    assert all("127.0.0.1" in event[6] for event in events)
    assert [event[7] for event in events] == sorted(event[7] for event in events)


def test_putting_an_account_again_changes_its_name_and_plan_only(stubs: Stubs, account: OwnAccount) -> None:
    def put(display_name: str, plan: str) -> account_admin_pb2.PutAccountResponse:
        request = account_admin_pb2.PutAccountRequest(
            account_id=account.account_id, display_name=display_name, plan=plan
        )
        return ask(stubs.accounts.PutAccount, request, stubs.admin)

    token_id = account.issue(on_all("member")).token.token_id
    first = put("Renamed", "team")
    repeat = put("Renamed", "team")
    read = ask(
        stubs.accounts.GetAccount, account_admin_pb2.GetAccountRequest(account_id=account.account_id), stubs.admin
    )

    assert first.account == repeat.account == read.account
    assert (read.account.display_name, read.account.plan) == ("Renamed", "team")
    assert read.account.state == types_pb2.ACCOUNT_STATE_ACTIVE
    assert read.account.create_time.ToDatetime() < read.account.update_time.ToDatetime()
    assert repeat.propagation.replicas_confirmed == 1
    assert put("Renamed again", "team").account.etag != read.account.etag
    assert account.token_ids() == [token_id]


def test_putting_a_project_again_changes_its_name_only(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    first = account.put_project(project_id, "First name")
    renamed = account.put_project(project_id, "Second name")
    repeat = account.put_project(project_id, "Second name")

    assert renamed.project == repeat.project
    assert (renamed.project.display_name, renamed.project.account_id) == ("Second name", account.account_id)
    assert renamed.project.create_time == first.project.create_time
    assert Revision.parse(renamed.propagation.revision) <= Revision.parse(repeat.propagation.revision)


def test_a_project_never_moves(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    other = an_account(stubs, projects=0)
    before = rows.footprint()

    refusal = refused(
        stubs.accounts.PutProject,
        account_admin_pb2.PutProjectRequest(
            account_id=other.account_id, project_id=account.project_ids[0], display_name="Mine"
        ),
        stubs.admin,
    )

    assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "PROJECT_ID_TAKEN")
    assert refusal.metadata == {"project_id": account.project_ids[0]}
    assert account.account_id not in refusal.text.replace(account.project_ids[0], "")
    assert rows.footprint() == before
