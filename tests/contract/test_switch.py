"""DisableToken and EnableToken over the wire: reversible, and true everywhere when they return."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.duration_pb2 import Duration

from doorward.core.revision import Revision
from doorward.v1 import account_admin_pb2, types_pb2
from doorward.v1.token_admin_pb2 import (
    DisableTokenRequest,
    DisableTokenResponse,
    EnableTokenRequest,
    EnableTokenResponse,
)
from tests.support.server import bearer
from tests.support.wire import OwnAccount, an_account, ask, check, eventually, fresh_id, on, on_all, refused, verdict

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs
    from tests.support.wire import Metadata


def disable(stubs: Stubs, token_id: str, metadata: Metadata | None = None) -> DisableTokenResponse:
    return ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=token_id), metadata or stubs.admin)


def enable(stubs: Stubs, token_id: str, metadata: Metadata | None = None) -> EnableTokenResponse:
    return ask(stubs.tokens.EnableToken, EnableTokenRequest(token_id=token_id), metadata or stubs.admin)


def test_a_disabled_token_is_denied_at_once_and_an_enabled_one_works_again(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id))
    verdicts, states, etags = [], [], [issued.token.etag]

    for switch in (disable, enable, disable):
        answer = switch(stubs, issued.token.token_id)
        verdicts.append(verdict(check(stubs, issued.secret, "jobs:write", project_id=project_id)))
        states.append(types_pb2.TokenState.Name(answer.token.state).removeprefix("TOKEN_STATE_"))
        etags.append(answer.token.etag)
        assert answer.token == account.token(issued.token.token_id)
        assert answer.propagation.replicas_confirmed == 1

    assert verdicts == ["TOKEN_DISABLED", "ALLOWED", "TOKEN_DISABLED"]
    assert states == ["DISABLED", "ACTIVE", "DISABLED"]
    assert len(set(etags)) == 4


def test_switching_leaves_all_else_as_it_was(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on("job_admin", account.project_ids[0]), labels={"team": "data"}, ttl=Duration(seconds=3600))

    disable(stubs, issued.token.token_id)
    after = enable(stubs, issued.token.token_id).token

    assert after.update_time.ToDatetime() > issued.token.update_time.ToDatetime()
    after.update_time.CopyFrom(issued.token.update_time)
    after.etag = issued.token.etag
    assert after == issued.token


def test_a_repeat_changes_nothing_and_waits_again(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    token_id = account.issue(on_all("member")).token.token_id
    for switch in (enable, disable):
        first = switch(stubs, token_id)
        again = switch(stubs, token_id)

        assert again.token == first.token
        assert Revision.parse(first.propagation.revision) <= Revision.parse(again.propagation.revision)
        assert again.propagation.replicas_confirmed == 1

    events = rows.fetch(
        "SELECT action, before::text, after::text FROM audit_events WHERE subject = $1 ORDER BY event_id",
        f"token:{token_id}",
    )
    assert events[1:] == [
        ("EnableToken", None, None),
        ("EnableToken", None, None),
        ("DisableToken", '{"disabled": false}', '{"disabled": true}'),
        ("DisableToken", None, None),
    ]


def test_an_expired_token_can_be_disabled_and_enabled_and_stays_expired(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"), ttl=Duration(seconds=1))
    token_id = issued.token.token_id
    eventually(lambda: account.token(token_id).state == types_pb2.TOKEN_STATE_EXPIRED)

    states = [disable(stubs, token_id).token.state, enable(stubs, token_id).token.state]

    assert states == [types_pb2.TOKEN_STATE_EXPIRED] * 2


@pytest.mark.parametrize("rpc", ["DisableToken", "EnableToken"])
def test_what_cannot_be_switched_is_refused(stubs: Stubs, account: OwnAccount, rpc: str) -> None:
    method = getattr(stubs.tokens, rpc)
    request = DisableTokenRequest if rpc == "DisableToken" else EnableTokenRequest
    revoked = account.issue(on_all("member")).token.token_id
    account.revoke(revoked)
    unknown = fresh_id()

    told = refused(method, request(token_id=revoked), stubs.admin)
    assert (told.code, told.reason, told.metadata) == (
        "FAILED_PRECONDITION",
        "TOKEN_IS_REVOKED",
        {"token_id": revoked},
    )
    told = refused(method, request(token_id=unknown), stubs.admin)
    assert (told.code, told.reason, told.metadata) == ("NOT_FOUND", "TOKEN_NOT_FOUND", {"token_id": unknown})
    assert refused(method, request(), stubs.admin).bad_fields == [("token_id", "FIELD_REQUIRED")]
    assert refused(method, request(token_id="a b"), stubs.admin).bad_fields == [("token_id", "FIELD_MALFORMED")]


def test_a_token_may_disable_what_exceeds_it_but_not_enable_it(stubs: Stubs, account: OwnAccount) -> None:
    """Stopping needs no more than the permission; starting hands out what the other one holds."""
    wide = account.issue(on_all("account_admin")).token.token_id
    passing = account.issue(on_all("account_admin"), ttl=Duration(seconds=3600))
    caller = bearer(passing.secret)

    assert disable(stubs, wide, caller).token.state == types_pb2.TOKEN_STATE_DISABLED
    told = refused(stubs.tokens.EnableToken, EnableTokenRequest(token_id=wide), caller)

    assert (told.code, told.reason) == ("PERMISSION_DENIED", "EXCEEDS_CALLER")
    assert told.metadata["excess"].startswith("a life beyond ")
    assert account.token(wide).state == types_pb2.TOKEN_STATE_DISABLED


@pytest.mark.parametrize("rpc", ["DisableToken", "EnableToken"])
def test_to_a_token_anothers_token_is_an_unknown_one(stubs: Stubs, account: OwnAccount, rpc: str) -> None:
    foreign = an_account(stubs, projects=0).issue(on_all("member")).token.token_id
    caller = bearer(account.issue(on_all("account_admin")).secret)
    request = DisableTokenRequest if rpc == "DisableToken" else EnableTokenRequest
    unknown = foreign[::-1]

    told = [refused(getattr(stubs.tokens, rpc), request(token_id=each), caller) for each in (foreign, unknown)]

    assert told[0].text.replace(foreign, "") == told[1].text.replace(unknown, "")
    assert [(one.code, one.reason) for one in told] == [("NOT_FOUND", "TOKEN_NOT_FOUND")] * 2


def test_nothing_is_switched_in_a_suspended_account_s_way(stubs: Stubs, account: OwnAccount) -> None:
    """Suspension is the account's: its tokens are switched all the same, by operators."""
    token_id = account.issue(on_all("member")).token.token_id
    request = account_admin_pb2.SuspendAccountRequest(account_id=account.account_id)
    ask(stubs.accounts.SuspendAccount, request, stubs.admin)

    assert disable(stubs, token_id).token.state == types_pb2.TOKEN_STATE_DISABLED
