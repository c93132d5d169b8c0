"""ReportLeakedToken: whoever holds a secret ends it, and learns nothing about any other. No credential is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import types_pb2
from doorward.v1.account_admin_pb2 import DeleteAccountRequest
from doorward.v1.token_admin_pb2 import (
    DisableTokenRequest,
    EnableTokenRequest,
    ListAuditEventsRequest,
    ReportLeakedTokenRequest,
    ReportLeakedTokenResponse,
    RotateTokenRequest,
)
from doorward_server.service.report_leaked import REPORT_EVERY_NS
from tests.support import troubles
from tests.support.server import bearer
from tests.support.wire import (
    NOBODY,
    OwnAccount,
    another_of,
    ask,
    check,
    eventually,
    mistyped,
    on_all,
    refused,
    verdict,
)

if TYPE_CHECKING:
    from doorward.v1.token_admin_pb2 import AuditEvent
    from tests.support.frail import Frail
    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs

NOTHING = ReportLeakedTokenResponse()
REFUSALS = """
SELECT reason, subject, account_id, peer FROM refusals WHERE action = 'ReportLeakedToken' AND subject = $1
"""


def report(stubs: Stubs, secret: str) -> ReportLeakedTokenResponse:
    return ask(stubs.tokens.ReportLeakedToken, ReportLeakedTokenRequest(secret=secret), NOBODY)


def rotate(stubs: Stubs, token_id: str, overlap_s: int) -> str:
    request = RotateTokenRequest(token_id=token_id, overlap=Duration(seconds=overlap_s))
    return ask(stubs.tokens.RotateToken, request, stubs.admin).secret


def may(stubs: Stubs, account: OwnAccount, secret: str) -> str:
    return verdict(check(stubs, secret, "public_models:read", account_id=account.account_id))


def events_of(stubs: Stubs, token_id: str) -> list[AuditEvent]:
    request = ListAuditEventsRequest(token_id=token_id, action="ReportLeakedToken")
    return list(ask(stubs.tokens.ListAuditEvents, request, stubs.admin).audit_events)


def test_the_current_secret_revokes_its_token_before_the_answer(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("metadata_only"))
    assert may(stubs, account, issued.secret) == "ALLOWED"

    assert report(stubs, issued.secret) == NOTHING

    assert may(stubs, account, issued.secret) == "TOKEN_REVOKED"
    token = account.token(issued.token.token_id)
    assert (token.state, token.revoke_reason) == (types_pb2.TOKEN_STATE_REVOKED, "reported as leaked")
    (event,) = events_of(stubs, token.token_id)
    assert (event.actor, event.subject, event.account_id) == (
        "anonymous",
        f"token:{token.token_id}",
        account.account_id,
    )
    assert (MessageToDict(event.before), MessageToDict(event.after)) == (
        {"state": "live"},
        {"state": "revoked", "reason": "reported as leaked"},
    )
    assert event.peer == "127.0.0.1"
    assert issued.secret not in str(event)


def test_a_secret_that_was_rotated_out_ends_itself_alone(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("metadata_only"))
    current = rotate(stubs, issued.token.token_id, 3600)
    assert [may(stubs, account, secret) for secret in (issued.secret, current)] == ["ALLOWED"] * 2

    assert report(stubs, issued.secret) == NOTHING

    assert [may(stubs, account, secret) for secret in (issued.secret, current)] == ["TOKEN_UNRECOGNIZED", "ALLOWED"]
    assert account.token(issued.token.token_id).state == types_pb2.TOKEN_STATE_ACTIVE
    (event,) = events_of(stubs, issued.token.token_id)
    assert list(MessageToDict(event.before)["former_secrets_end"]) == ["1"]
    assert (
        MessageToDict(event.after)["former_secrets_end"]["1"] < MessageToDict(event.before)["former_secrets_end"]["1"]
    )
    assert report(stubs, current) == NOTHING
    assert may(stubs, account, current) == "TOKEN_REVOKED"


@pytest.mark.parametrize("what", ["a repeat", "revoked before", "ended before", "of a deleted account"])
def test_what_has_stopped_before_is_answered_alike_and_not_written_again(
    stubs: Stubs, account: OwnAccount, rows: Rows, what: str
) -> None:
    issued = account.issue(on_all("metadata_only"))
    if what == "a repeat":
        report(stubs, issued.secret)
    elif what == "revoked before":
        account.revoke(issued.token.token_id, "before")
    elif what == "ended before":
        rotate(stubs, issued.token.token_id, 0)
    else:
        ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)
    before, token = rows.footprint(), account.token(issued.token.token_id)

    assert report(stubs, issued.secret) == NOTHING

    assert rows.footprint() == before
    assert account.token(issued.token.token_id) == token


def test_a_disabled_or_expired_tokens_secret_revokes_it_since_it_could_come_back(
    stubs: Stubs, account: OwnAccount
) -> None:
    disabled = account.issue(on_all("metadata_only"))
    expired = account.issue(on_all("metadata_only"), ttl=Duration(nanos=200_000_000))
    ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=disabled.token.token_id), stubs.admin)
    eventually(lambda: account.token(expired.token.token_id).state == types_pb2.TOKEN_STATE_EXPIRED)

    for issued in (disabled, expired):
        assert report(stubs, issued.secret) == NOTHING
        assert account.token(issued.token.token_id).state == types_pb2.TOKEN_STATE_REVOKED
    refusal = refused(stubs.tokens.EnableToken, EnableTokenRequest(token_id=disabled.token.token_id), stubs.admin)
    assert refusal.reason == "TOKEN_IS_REVOKED"


def test_what_is_no_secret_or_nobodys_is_answered_alike_and_leaves_a_record_alone(
    stubs: Stubs, account: OwnAccount, rows: Rows, server: ServerProcess
) -> None:
    issued = account.issue(on_all("metadata_only"))
    unknown = generate(SecretKind.TOKEN, new_id()).reveal()
    before = rows.footprint()
    presented = {
        "unknown": unknown,
        "wrong": another_of(issued.secret),
        "mistyped": mistyped(issued.secret),
        "cut off": issued.secret[:-1],
        "an operator's": server.caller_credential,
        "no secret": "x",
        "blank": " ",
        "as long as allowed": "é" * 64,
    }

    answers = {what: report(stubs, secret) for what, secret in presented.items()}

    assert answers == dict.fromkeys(presented, NOTHING)
    assert rows.footprint() == before
    assert may(stubs, account, issued.secret) == "ALLOWED"
    known, nobodys = f"token:{issued.token.token_id}", f"token:{unknown.split('_')[1]}"
    eventually(lambda: bool(rows.fetch(REFUSALS, known)) and bool(rows.fetch(REFUSALS, "")))
    assert rows.fetch(REFUSALS, known) == [("CREDENTIAL_UNRECOGNIZED", known, account.account_id, "127.0.0.1")]
    assert rows.fetch(REFUSALS, nobodys) == [("CREDENTIAL_UNRECOGNIZED", nobodys, None, "127.0.0.1")]
    # The operator is left alone: it works.
    assert may(stubs, account, "x") == "TOKEN_UNRECOGNIZED"


@pytest.mark.parametrize(("secret", "reason"), [("", "FIELD_REQUIRED"), ("é" * 64 + "x", "FIELD_TOO_LONG")])
def test_only_what_is_missing_or_too_long_is_refused(stubs: Stubs, secret: str, reason: str) -> None:
    refusal = refused(stubs.tokens.ReportLeakedToken, ReportLeakedTokenRequest(secret=secret), NOBODY)
    assert (refusal.code, refusal.bad_fields) == ("INVALID_ARGUMENT", [("secret", reason)])


def test_a_credential_that_comes_with_it_does_not_matter(stubs: Stubs, account: OwnAccount) -> None:
    first, second = (account.issue(on_all("metadata_only")) for _ in range(2))
    for issued, metadata in ((first, bearer("dwop_wrong")), (second, bearer(second.secret))):
        request = ReportLeakedTokenRequest(secret=issued.secret)
        assert ask(stubs.tokens.ReportLeakedToken, request, metadata) == NOTHING
        assert may(stubs, account, issued.secret) == "TOKEN_REVOKED"


def test_the_secret_is_in_no_log_and_in_no_row(
    stubs: Stubs, account: OwnAccount, rows: Rows, server: ServerProcess
) -> None:
    issued = account.issue(on_all("metadata_only"))
    wrong = another_of(issued.secret)
    report(stubs, wrong)
    report(stubs, issued.secret)
    eventually(lambda: bool(rows.fetch(REFUSALS, f"token:{issued.token.token_id}")))
    everything = server.log.read_text() + server.output.read_text() + rows.dump()
    for secret in (issued.secret, wrong):
        assert secret not in everything
        assert secret[22:54] not in everything


def test_a_peer_that_reports_too_much_is_told_when_to_go_on(frail: Frail, recovered: None) -> None:
    refusal = troubles.too_many_requests(frail)
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
    assert refusal.retry_after_s is not None
    assert 0 < refusal.retry_after_s <= REPORT_EVERY_NS / 1e9
    assert frail.account.issue(on_all("metadata_only")).secret, "other calls are not in its way"
