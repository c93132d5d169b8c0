"""A token acting on itself over the wire: what it is told of itself, and how it ends itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.duration_pb2 import Duration

from doorward.v1.token_admin_pb2 import (
    DescribeSelfRequest,
    DescribeSelfResponse,
    DisableTokenRequest,
    RevokeSelfRequest,
    RevokeSelfResponse,
    RotateTokenRequest,
    RotateTokenResponse,
)
from doorward.v1.types_pb2 import TokenState
from tests.support.server import bearer
from tests.support.wire import ask, check, on, on_all, refused, verdict

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs
    from tests.support.wire import OwnAccount, Refusal

UNRECOGNIZED = ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")


def describe(stubs: Stubs, secret: str) -> DescribeSelfResponse:
    return ask(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(secret))


def revoke(stubs: Stubs, secret: str, reason: str = "") -> RevokeSelfResponse:
    return ask(stubs.tokens.RevokeSelf, RevokeSelfRequest(reason=reason), bearer(secret))


def not_described(stubs: Stubs, secret: str) -> tuple[str, str]:
    refusal = refused(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(secret))
    return refusal.code, refusal.reason


def rotate(stubs: Stubs, token_id: str, overlap_s: int) -> RotateTokenResponse:
    request = RotateTokenRequest(token_id=token_id, overlap=Duration(seconds=overlap_s))
    return ask(stubs.tokens.RotateToken, request, stubs.admin)


def test_a_token_without_any_permission_of_tokens_describes_itself(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(
        on("metadata_only", account.project_ids[0]),
        description="why",
        labels={"team": "data"},
        ttl=Duration(seconds=60),
    )

    described = describe(stubs, issued.secret)

    assert described.token == issued.token == account.token(issued.token.token_id)
    assert not described.HasField("secret_expire_time")


def test_a_rotated_out_secret_is_told_when_it_stops_and_the_new_one_is_not(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))

    rotated = rotate(stubs, issued.token.token_id, overlap_s=3600)
    by_former, by_current = describe(stubs, issued.secret), describe(stubs, rotated.secret)

    assert by_former.secret_expire_time == rotated.former_secret_expire_time
    assert not by_current.HasField("secret_expire_time")
    assert by_former.token == by_current.token


def test_a_secret_that_has_stopped_describes_nothing(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))
    rotate(stubs, issued.token.token_id, overlap_s=0)

    assert not_described(stubs, issued.secret) == UNRECOGNIZED


def test_a_disabled_token_describes_nothing(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))
    ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=issued.token.token_id), stubs.admin)

    assert not_described(stubs, issued.secret) == UNRECOGNIZED


def test_a_token_revokes_itself_everywhere_before_it_is_answered(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    issued, project_id = account.issue(on_all("job_admin")), account.project_ids[0]
    assert verdict(check(stubs, issued.secret, "jobs:write", project_id=project_id)) == "ALLOWED"

    answer = revoke(stubs, issued.secret, "job finished")

    assert verdict(check(stubs, issued.secret, "jobs:write", project_id=project_id)) == "TOKEN_REVOKED"
    assert (answer.token.state, answer.token.revoke_reason) == (TokenState.TOKEN_STATE_REVOKED, "job finished")
    assert answer.propagation.replicas_confirmed == 1
    assert answer.token == account.token(issued.token.token_id)
    subject = f"token:{issued.token.token_id}"
    events = rows.fetch(
        "SELECT actor, action, account_id FROM audit_events WHERE subject = $1 ORDER BY event_id", subject
    )
    assert events[1:] == [(subject, "RevokeSelf", account.account_id)]


def test_a_repeat_cannot_call_any_more_and_another_credential_awaits(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))
    revoke(stubs, issued.secret)

    repeat = refused(stubs.tokens.RevokeSelf, RevokeSelfRequest(), bearer(issued.secret))

    assert (repeat.code, repeat.reason) == UNRECOGNIZED
    assert account.revoke(issued.token.token_id, "too late").token.revoke_reason == ""


def test_a_rotated_out_secret_still_ends_the_whole_token(stubs: Stubs, account: OwnAccount) -> None:
    """It is the token that acts, by whichever of its secrets; `ReportLeakedToken` ends a former secret alone."""
    issued = account.issue(on_all("member"))
    rotated = rotate(stubs, issued.token.token_id, overlap_s=3600)

    revoke(stubs, issued.secret)

    assert not_described(stubs, rotated.secret) == UNRECOGNIZED


@pytest.mark.parametrize(
    ("reason", "bad"),
    [("r" * 501, "FIELD_TOO_LONG"), ("a\x00b", "FIELD_MALFORMED"), ("the secret itself", "FIELD_CONTAINS_SECRET")],
)
def test_a_bad_reason_revokes_nothing(stubs: Stubs, account: OwnAccount, reason: str, bad: str) -> None:
    issued = account.issue(on_all("member"))
    given = issued.secret if bad == "FIELD_CONTAINS_SECRET" else reason

    refusal = refused(stubs.tokens.RevokeSelf, RevokeSelfRequest(reason=given), bearer(issued.secret))

    assert refusal.bad_fields == [("reason", bad)]
    assert issued.secret not in refusal.text
    assert describe(stubs, issued.secret).token.state == TokenState.TOKEN_STATE_ACTIVE


def test_operators_have_no_self(stubs: Stubs) -> None:
    refusals: list[Refusal] = [
        refused(stubs.tokens.DescribeSelf, DescribeSelfRequest(), stubs.admin),
        refused(stubs.tokens.RevokeSelf, RevokeSelfRequest(), stubs.admin),
    ]

    assert {(refusal.code, refusal.reason) for refusal in refusals} == {("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")}
