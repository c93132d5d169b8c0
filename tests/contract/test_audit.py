"""ListAuditEvents over the wire: what each kind tells, by whom it may be asked, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format, timestamp_pb2

from doorward.v1 import token_admin_pb2 as pb
from tests.support.server import bearer
from tests.support.wire import (
    OwnAccount,
    an_account,
    ask,
    fresh_id,
    on,
    on_all,
    refused,
)

if TYPE_CHECKING:
    from tests.support.server import Stubs
    from tests.support.wire import Metadata

CHANGE, REFUSAL = pb.AUDIT_EVENT_KIND_CHANGE, pb.AUDIT_EVENT_KIND_REFUSAL


def listed(stubs: Stubs, caller: Metadata | None = None, **fields: Any) -> list[pb.AuditEvent]:
    """Every page."""
    found: list[pb.AuditEvent] = []
    request = pb.ListAuditEventsRequest(**fields)
    while True:
        answer = ask(stubs.tokens.ListAuditEvents, request, caller or stubs.admin)
        found += answer.audit_events
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


def in_short(event: pb.AuditEvent) -> tuple[str, str]:
    return event.action, event.subject


@pytest.fixture
def reader(account: OwnAccount) -> Metadata:
    """A service token of the account that may read tokens."""
    return bearer(account.issue(on_all("account_admin")).secret)


# ---- changes


def test_an_event_tells_who_did_what_to_what_and_when(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on("job_admin", account.project_ids[0]))
    token_id = issued.token.token_id
    answer = ask(
        stubs.tokens.RevokeToken,
        pb.RevokeTokenRequest(token_id=token_id, reason="contractor left"),
        (*stubs.admin, ("on-behalf-of", "alice@example.com")),
    )
    newest, issuing = listed(stubs, token_id=token_id)
    assert in_short(newest) == ("RevokeToken", f"token:{token_id}")
    assert in_short(issuing) == ("IssueToken", f"token:{token_id}")
    assert newest.kind == issuing.kind == CHANGE
    assert newest.event_id > issuing.event_id
    assert newest.event_time.ToNanoseconds() > issuing.event_time.ToNanoseconds()
    assert newest.revision == answer.propagation.revision
    assert newest.account_id == account.account_id
    assert newest.actor == issuing.actor
    assert newest.actor.startswith("operator:")
    assert (newest.on_behalf_of, newest.peer) == ("alice@example.com", "127.0.0.1")
    assert json_format.MessageToDict(newest.before) == {"state": "live"}
    assert json_format.MessageToDict(newest.after) == {"state": "revoked", "reason": "contractor left"}
    assert not issuing.HasField("before")
    assert (newest.refusal_reason, newest.suppressed) == ("", 0)


def test_a_repeat_that_found_nothing_to_change_is_an_event_too(stubs: Stubs, account: OwnAccount) -> None:
    token_id = account.issue(on_all("job_admin")).token.token_id
    first = account.revoke(token_id)
    again = account.revoke(token_id)
    newest, former, _ = listed(stubs, token_id=token_id)
    assert in_short(newest) == in_short(former)
    assert not newest.HasField("before")
    assert not newest.HasField("after")
    assert [former.revision, newest.revision] == [first.propagation.revision, again.propagation.revision]


def test_an_event_about_several_tokens_is_found_by_each(stubs: Stubs, account: OwnAccount) -> None:
    one, two, other = (account.issue(on_all("job_admin")).token.token_id for _ in range(3))
    request = pb.BatchRevokeTokensRequest(account_id=account.account_id, token_ids=[one, two], reason="cleaning up")
    ask(stubs.tokens.BatchRevokeTokens, request, stubs.admin)
    for token_id in (one, two):
        newest, issuing = listed(stubs, token_id=token_id)
        assert (newest.action, issuing.action) == ("BatchRevokeTokens", "IssueToken")
        assert listed(stubs, token_id=token_id, page_size=1) == [newest, issuing]
    assert [event.action for event in listed(stubs, token_id=other)] == ["IssueToken"]


def test_each_filter_narrows_and_all_of_them_together(stubs: Stubs, account: OwnAccount) -> None:
    one, two = (account.issue(on_all("job_admin")).token.token_id for _ in range(2))
    account.revoke(one)
    of_account = listed(stubs, account_id=account.account_id)
    assert [in_short(event) for event in of_account] == [
        ("RevokeToken", f"token:{one}"),
        ("IssueToken", f"token:{two}"),
        ("IssueToken", f"token:{one}"),
        *(("PutProject", f"project:{project_id}") for project_id in reversed(account.project_ids)),
        ("PutAccount", f"account:{account.account_id}"),
    ]
    actor = of_account[0].actor
    issues = listed(stubs, account_id=account.account_id, action="IssueToken")
    assert issues == of_account[1:3]
    assert listed(stubs, account_id=account.account_id, actor=actor) == of_account
    assert listed(stubs, account_id=account.account_id, actor=f"operator:{fresh_id()}") == []
    assert listed(stubs, token_id=one, action="RevokeToken", actor=actor, account_id=account.account_id) == [
        of_account[0]
    ]
    assert listed(stubs, token_id=one, account_id=an_account(stubs).account_id) == []


def test_a_span_has_its_start_and_not_its_end(stubs: Stubs, account: OwnAccount) -> None:
    events = listed(stubs, account_id=account.account_id)
    span = listed(stubs, account_id=account.account_id, start_time=events[2].event_time, end_time=events[0].event_time)
    assert span == events[1:3]
    later = timestamp_pb2.Timestamp()
    later.FromNanoseconds(events[0].event_time.ToNanoseconds() + 1)
    assert listed(stubs, account_id=account.account_id, start_time=later) == []
    assert listed(stubs, account_id=account.account_id, end_time=later) == events


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_pages_of_any_size_make_up_the_whole_list(stubs: Stubs, account: OwnAccount, size: int) -> None:
    whole = listed(stubs, account_id=account.account_id)
    assert len(whole) == 3
    assert listed(stubs, account_id=account.account_id, page_size=size) == whole


def test_without_an_account_an_operator_is_told_of_everything(stubs: Stubs, account: OwnAccount) -> None:
    newest = ask(stubs.tokens.ListAuditEvents, pb.ListAuditEventsRequest(page_size=3), stubs.admin).audit_events
    assert [event.account_id for event in newest] == [account.account_id] * 3
    direct = listed(stubs, actor="direct")
    assert ("CreateOperator", "") in {(event.action, event.account_id) for event in direct}


def test_an_auditor_may_ask_and_a_caller_may_not(stubs: Stubs) -> None:
    assert refused(stubs.tokens.ListAuditEvents, pb.ListAuditEventsRequest(), stubs.caller).code == "PERMISSION_DENIED"


# ---- a service token


def test_a_token_is_told_of_its_own_account_alone(stubs: Stubs, account: OwnAccount, reader: Metadata) -> None:
    account.issue(on_all("job_admin"))
    assert listed(stubs, reader, account_id=account.account_id) == listed(stubs, account_id=account.account_id)


def test_a_token_must_name_its_account(stubs: Stubs, account: OwnAccount, reader: Metadata) -> None:
    refusal = refused(stubs.tokens.ListAuditEvents, pb.ListAuditEventsRequest(), reader)
    assert (refusal.reason, refusal.bad_fields) == ("INVALID_FIELDS", [("account_id", "FIELD_REQUIRED")])


@pytest.mark.parametrize("kind", [CHANGE, REFUSAL])
def test_to_a_token_another_account_is_as_unknown_as_none(
    stubs: Stubs, account: OwnAccount, reader: Metadata, kind: pb.AuditEventKind.ValueType
) -> None:
    other = an_account(stubs).account_id
    unknown = fresh_id("acc")
    answers = []
    for account_id in (other, unknown):
        request = pb.ListAuditEventsRequest(account_id=account_id, kind=kind)
        refusal = refused(stubs.tokens.ListAuditEvents, request, reader)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")
        answers.append(refusal.text.replace(account_id, "?"))
    assert answers[0] == answers[1]


def test_to_a_token_a_foreign_token_has_no_events(stubs: Stubs, account: OwnAccount, reader: Metadata) -> None:
    foreign = an_account(stubs).issue(on_all("job_admin")).token.token_id
    assert listed(stubs, reader, account_id=account.account_id, token_id=foreign) == []


def test_an_unknown_account_is_not_found(stubs: Stubs) -> None:
    request = pb.ListAuditEventsRequest(account_id=fresh_id("acc"))
    assert refused(stubs.tokens.ListAuditEvents, request, stubs.admin).reason == "ACCOUNT_NOT_FOUND"


# ---- bad requests


def test_every_bad_field_is_named(stubs: Stubs) -> None:
    request = pb.ListAuditEventsRequest(
        account_id="no id",
        token_id="x" * 65,
        actor="nobody:x",
        action="no rpc",
        start_time=timestamp_pb2.Timestamp(seconds=2**40),
        kind=7,  # type: ignore[arg-type]
        page_size=-1,
    )
    refusal = refused(stubs.tokens.ListAuditEvents, request, stubs.admin)
    assert refusal.bad_fields == [
        ("account_id", "FIELD_MALFORMED"),
        ("action", "FIELD_MALFORMED"),
        ("actor", "FIELD_MALFORMED"),
        ("kind", "FIELD_OUT_OF_RANGE"),
        ("page_size", "FIELD_OUT_OF_RANGE"),
        ("start_time", "FIELD_OUT_OF_RANGE"),
        ("token_id", "FIELD_TOO_LONG"),
    ]


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"action": "x" * 65}, ("action", "FIELD_TOO_LONG")),
        ({"actor": "operator:" + "x" * 65}, ("actor", "FIELD_TOO_LONG")),
        ({"actor": "operator:"}, ("actor", "FIELD_REQUIRED")),
        ({"end_time": timestamp_pb2.Timestamp(seconds=-62135596801)}, ("end_time", "FIELD_OUT_OF_RANGE")),
        (
            {"start_time": timestamp_pb2.Timestamp(seconds=5), "end_time": timestamp_pb2.Timestamp(seconds=5)},
            ("end_time", "FIELD_OUT_OF_RANGE"),
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_filter_is_said(stubs: Stubs, fields: dict[str, Any], bad: tuple[str, str]) -> None:
    refusal = refused(stubs.tokens.ListAuditEvents, pb.ListAuditEventsRequest(**fields), stubs.admin)
    assert refusal.bad_fields == [bad]


def test_a_page_token_goes_with_its_filters(stubs: Stubs, account: OwnAccount) -> None:
    request = pb.ListAuditEventsRequest(account_id=account.account_id, page_size=1)
    token = ask(stubs.tokens.ListAuditEvents, request, stubs.admin).next_page_token
    for other in (
        pb.ListAuditEventsRequest(page_token=token),
        pb.ListAuditEventsRequest(account_id=account.account_id, kind=REFUSAL, page_token=token),
        pb.ListAuditEventsRequest(account_id=account.account_id, action="PutAccount", page_token=token),
        pb.ListAuditEventsRequest(account_id=account.account_id, page_token=token[:-4]),
    ):
        assert refused(stubs.tokens.ListAuditEvents, other, stubs.admin).reason == "PAGE_TOKEN_INVALID"
    request.page_token, request.kind = token, CHANGE
    assert ask(stubs.tokens.ListAuditEvents, request, stubs.admin).audit_events
