"""`request_id` over the wire: a repeat within ten minutes gets the same token and secret, and nobody else gets anything."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.core.revision import Revision
from doorward.v1.account_admin_pb2 import DeleteAccountRequest, SuspendAccountRequest
from doorward.v1.token_admin_pb2 import (
    IssueTokenRequest,
    IssueTokenResponse,
    RotateSelfRequest,
    RotateTokenRequest,
    UpdateTokenRequest,
)
from doorward.v1.types_pb2 import TOKEN_STATE_EXPIRED, ServiceToken
from doorward_server.api.fields import Fields
from doorward_server.api.request_ids import request_id_of
from doorward_server.credentials import pepper
from doorward_server.credentials.sealing import Binding, CannotOpen, open_sealed
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import OwnAccount, an_account, ask, check, eventually, on, on_all, refusal_of, refused, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.frail import Frail
    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata

HOUR = Duration(seconds=3600)
ISSUE = "/doorward.v1.TokenAdmin/IssueToken"


def an_id() -> str:
    return str(uuid.uuid4())


def issue(stubs: Stubs, request: IssueTokenRequest, metadata: Metadata | None = None) -> IssueTokenResponse:
    return ask(stubs.tokens.IssueToken, request, metadata or stubs.admin)


def update(stubs: Stubs, token_id: str, path: str, **fields: Any) -> None:
    request = UpdateTokenRequest(token=ServiceToken(token_id=token_id, **fields))
    request.update_mask.paths.append(path)
    ask(stubs.tokens.UpdateToken, request, stubs.admin)


def a_minting_token(account: OwnAccount, **fields: Any) -> tuple[str, Metadata]:
    """A token that may issue: its id, and the metadata to call with."""
    issued = account.issue(on_all("account_admin"), **fields)
    return issued.token.token_id, bearer(issued.secret)


# ---- repeats


def test_a_repeated_issue_gets_the_same_token_and_secret_and_waits_again(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    request = account.wanted(on_all("member"), labels={"a": "1", "b": "2"}, request_id=an_id())
    first = issue(stubs, request)

    again = [issue(stubs, request) for _ in range(2)]

    assert first.secret.startswith(f"dwst_{first.token.token_id}_")
    assert [(one.token, one.secret) for one in again] == [(first.token, first.secret)] * 2
    assert account.token_ids() == [first.token.token_id]
    for one in again:
        assert Revision.parse(first.propagation.revision) <= Revision.parse(one.propagation.revision)
        assert one.propagation.replicas_confirmed == 1
    events = rows.fetch(
        "SELECT action, after IS NULL FROM audit_events WHERE subject = $1 ORDER BY event_id",
        f"token:{first.token.token_id}",
    )
    assert events == [("IssueToken", False), ("IssueToken", True), ("IssueToken", True)]


def test_a_repeated_rotation_gets_the_same_secret(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    issued = account.issue(on_all("member"), allow_self_rotation=True)
    token_id = issued.token.token_id
    by_admin = RotateTokenRequest(token_id=token_id, overlap=HOUR, request_id=an_id())
    by_itself = RotateSelfRequest(overlap=HOUR, request_id=an_id())

    one = [ask(stubs.tokens.RotateToken, by_admin, stubs.admin) for _ in range(3)]
    other = [ask(stubs.tokens.RotateSelf, by_itself, bearer(issued.secret)) for _ in range(3)]

    for answers in (one, other):
        assert len({answer.secret for answer in answers}) == 1
        assert len({answer.token.etag for answer in answers}) == 1
        assert len({str(answer.former_secret_expire_time) for answer in answers}) == 1
        assert answers[0].HasField("former_secret_expire_time")
    assert one[0].secret != other[0].secret
    assert rows.fetch("SELECT max(version) FROM token_secrets WHERE token_id = $1", token_id) == [(3,)]
    assert verdict(check(stubs, other[0].secret, "jobs:read", project_id=account.project_ids[0])) == "ALLOWED"


def test_a_call_whose_answer_was_lost_is_answered_by_its_repeat(frail: Frail) -> None:
    """The change was committed and nobody had waited for it: what the client sees of a replica that died."""
    stubs, account = frail.stubs, an_account(frail.stubs)
    request = account.wanted(on_all("member"), request_id=an_id())
    with frail.a_silent_replica():
        lost = refused(stubs.tokens.IssueToken, request, stubs.admin, timeout_s=3)
    frail.recover()

    answer = issue(stubs, request)

    assert lost.reason == "PROPAGATION_NOT_AWAITED"
    assert account.token_ids() == [answer.token.token_id]
    assert verdict(check(stubs, answer.secret, "jobs:read", project_id=account.project_ids[0])) == "ALLOWED"


def test_a_repeat_is_answered_though_the_account_is_full(frail: Frail) -> None:
    account = an_account(frail.stubs, projects=0)
    request = account.wanted(on_all("member"), request_id=an_id())
    first = issue(frail.stubs, request)
    account.issue(on_all("member"))

    assert refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin).reason == (
        "TOO_MANY_LIVE_TOKENS"
    )
    assert issue(frail.stubs, request).secret == first.secret
    frail.recover()


def test_an_id_is_the_same_in_upper_case(stubs: Stubs, account: OwnAccount) -> None:
    request_id = an_id()

    answers = [
        issue(stubs, account.wanted(on_all("member"), request_id=text)) for text in (request_id, request_id.upper())
    ]

    assert answers[0].secret == answers[1].secret


def test_without_an_id_and_with_another_one_every_call_issues(stubs: Stubs, account: OwnAccount) -> None:
    ids = ["", "", an_id(), an_id()]

    secrets = {issue(stubs, account.wanted(on_all("member"), request_id=text)).secret for text in ids}

    assert len(secrets) == 4


def test_calls_with_one_id_at_once_issue_one_token(stubs: Stubs, account: OwnAccount) -> None:
    request = account.wanted(on_all("member"), request_id=an_id())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: issue(stubs, request), range(8)))

    assert len({answer.secret for answer in answers}) == 1
    assert account.token_ids() == [answers[0].token.token_id]


def test_rotations_with_one_id_at_once_rotate_once(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    token_id = account.issue(on_all("member")).token.token_id
    request = RotateTokenRequest(token_id=token_id, overlap=Duration(), request_id=an_id())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(stubs.tokens.RotateToken, request, stubs.admin), range(8)))

    assert len({answer.secret for answer in answers}) == 1
    assert rows.fetch("SELECT max(version) FROM token_secrets WHERE token_id = $1", token_id) == [(2,)]


def test_an_id_that_was_used_ten_minutes_ago_is_a_fresh_one(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    request = account.wanted(on_all("member"), request_id=an_id())
    first = issue(stubs, request)
    rows.fetch("UPDATE idempotent_responses SET expires = expires - interval '10 minutes'")

    second, third = issue(stubs, request), issue(stubs, request)

    assert second.secret == third.secret != first.secret
    assert account.token_ids() == [second.token.token_id, first.token.token_id]


# ---- the same id for something else


@pytest.mark.parametrize(
    "other",
    [
        {"display_name": "another"},
        {"description": "more"},
        {"labels": {"a": "2"}},
        {"grants": [on_all("read_only")]},
        {"ttl": HOUR},
        {"expire_time": Timestamp(seconds=4102444800)},
        {"allow_self_rotation": True},
    ],
    ids=lambda other: next(iter(other)),
)
def test_an_id_that_comes_with_another_request_is_refused(
    stubs: Stubs, account: OwnAccount, rows: Rows, other: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {
        "account_id": account.account_id,
        "display_name": "a token",
        "labels": {"a": "1"},
        "grants": [on_all("member")],
        "request_id": an_id(),
    }
    first = issue(stubs, IssueTokenRequest(**fields))
    before = rows.footprint()

    told = refused(stubs.tokens.IssueToken, IssueTokenRequest(**{**fields, **other}), stubs.admin)

    assert (told.code, told.reason, told.metadata) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", {})
    assert first.token.token_id not in told.text
    assert rows.footprint() == before


def test_an_id_that_comes_with_another_rpc_or_for_another_account_is_refused(stubs: Stubs, account: OwnAccount) -> None:
    token_id, request_id = account.issue(on_all("member")).token.token_id, an_id()
    issue(stubs, account.wanted(on_all("member"), request_id=request_id))
    rotation = RotateTokenRequest(token_id=token_id, overlap=HOUR, request_id=request_id)
    elsewhere = an_account(stubs, projects=0).wanted(on_all("member"), request_id=request_id)

    assert refused(stubs.tokens.RotateToken, rotation, stubs.admin).reason == "REQUEST_ID_REUSED"
    assert refused(stubs.tokens.IssueToken, elsewhere, stubs.admin).reason == "REQUEST_ID_REUSED"


def test_of_several_accounts_at_once_one_gets_the_id(stubs: Stubs, rows: Rows) -> None:
    """No common lock orders them; the id's own row does. All of them look before any of them writes."""
    accounts, request_id = [an_account(stubs, projects=0) for _ in range(3)], an_id()
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'idempotent_responses'::regclass AND NOT granted"

    def outcome(account: OwnAccount) -> str:
        try:
            issue(stubs, account.wanted(on_all("member"), request_id=request_id))
        except grpc.RpcError as error:
            return refusal_of(error).reason
        return "OK"

    with ThreadPoolExecutor(3) as pool:
        with rows.holding("LOCK TABLE idempotent_responses IN SHARE ROW EXCLUSIVE MODE"):
            calls = [pool.submit(outcome, account) for account in accounts]
            eventually(lambda: rows.fetch(waiting) == [(3,)])
        outcomes = [call.result() for call in calls]

    assert sorted(outcomes) == ["OK", *["REQUEST_ID_REUSED"] * 2]
    assert sum(len(account.token_ids()) for account in accounts) == 1


@pytest.mark.parametrize("text", ["x", "8b7c1f0e4a574c7e9d1a0c4f5b6e7a21", "{8b7c1f0e-4a57-4c7e-9d1a-0c4f5b6e7a21}",
                                  "8b7c1f0e-4a57-4c7e-9d1a-0c4f5b6e7a2g", "00000000-0000-0000-0000-000000000000",
                                  "8b7c1f0e-4a57-4c7e-9d1a-0c4f5b6e7a21\n"])  # fmt: skip
def test_what_is_no_uuid_is_refused_and_not_repeated(stubs: Stubs, account: OwnAccount, rows: Rows, text: str) -> None:
    issued = account.issue(on_all("member"), allow_self_rotation=True)
    before = rows.footprint()

    told = [
        refused(stubs.tokens.IssueToken, account.wanted(on_all("member"), request_id=text), stubs.admin),
        refused(
            stubs.tokens.RotateToken,
            RotateTokenRequest(token_id=issued.token.token_id, overlap=HOUR, request_id=text),
            stubs.admin,
        ),
        refused(stubs.tokens.RotateSelf, RotateSelfRequest(overlap=HOUR, request_id=text), bearer(issued.secret)),
    ]

    assert [one.bad_fields for one in told] == [[("request_id", "FIELD_MALFORMED")]] * 3
    assert text == "x" or not any(text.strip("{}\n") in one.message.replace("9d1a-0c4f5b6e7a21", "") for one in told)
    assert rows.footprint() == before


# ---- who gets an answer


def test_to_another_caller_the_id_is_a_fresh_one(stubs: Stubs, account: OwnAccount) -> None:
    """Neither token nor secret, nor that anybody had used the id: the answer is what a fresh id gets."""
    request = account.wanted(on_all("member"), request_id=an_id())
    first = issue(stubs, request)
    _, another = a_minting_token(account)

    told = issue(stubs, request, another)
    also_told = issue(stubs, account.wanted(on_all("read_only"), request_id=an_id()), another)

    assert told.token.token_id != first.token.token_id
    assert told.secret != first.secret
    assert issue(stubs, request, another).secret == told.secret
    assert issue(stubs, request).secret == first.secret
    assert also_told.secret


def test_a_caller_that_was_revoked_gets_nothing(stubs: Stubs, account: OwnAccount) -> None:
    token_id, caller = a_minting_token(account)
    request = account.wanted(on_all("member"), request_id=an_id())
    issue(stubs, request, caller)

    account.revoke(token_id)

    assert refused(stubs.tokens.IssueToken, request, caller).reason == "CREDENTIAL_UNRECOGNIZED"


def test_a_caller_that_may_no_longer_issue_gets_nothing(stubs: Stubs, account: OwnAccount) -> None:
    token_id, caller = a_minting_token(account)
    request = account.wanted(on_all("member"), request_id=an_id())
    issue(stubs, request, caller)

    update(stubs, token_id, "grants", grants=[on_all("member")])

    assert refused(stubs.tokens.IssueToken, request, caller).reason == "CALLER_NOT_PERMITTED"


@pytest.mark.parametrize("rpc", ["IssueToken", "RotateToken"])
def test_a_caller_that_no_longer_holds_as_much_gets_nothing(stubs: Stubs, account: OwnAccount, rpc: str) -> None:
    caller_id, caller = a_minting_token(account)
    request: Any = account.wanted(on_all("member"), request_id=an_id())
    if rpc == "RotateToken":
        token_id = account.issue(on_all("member")).token.token_id
        request = RotateTokenRequest(token_id=token_id, overlap=HOUR, request_id=an_id())
    method = getattr(stubs.tokens, rpc)
    first = ask(method, request, caller)

    update(stubs, caller_id, "expire_time", expire_time=Timestamp(seconds=4102444800))

    told = refused(method, request, caller)
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "EXCEEDS_CALLER")
    update(stubs, caller_id, "expire_time")
    assert ask(method, request, caller).secret == first.secret


def test_a_token_that_was_widened_in_between_is_out_of_its_issuers_reach(stubs: Stubs, account: OwnAccount) -> None:
    _, caller = a_minting_token(account, ttl=Duration(seconds=7200))
    request = account.wanted(on_all("member"), ttl=HOUR, request_id=an_id())
    token_id = issue(stubs, request, caller).token.token_id

    update(stubs, token_id, "expire_time")

    assert refused(stubs.tokens.IssueToken, request, caller).reason == "EXCEEDS_CALLER"


def test_a_token_that_may_no_longer_rotate_itself_gets_nothing(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"), allow_self_rotation=True)
    request = RotateSelfRequest(overlap=HOUR, request_id=an_id())
    ask(stubs.tokens.RotateSelf, request, bearer(issued.secret))

    update(stubs, issued.token.token_id, "allow_self_rotation")

    assert refused(stubs.tokens.RotateSelf, request, bearer(issued.secret)).reason == "CALLER_NOT_PERMITTED"


# ---- what has happened in between


def test_the_secret_of_a_token_that_was_revoked_is_not_told_again(stubs: Stubs, account: OwnAccount) -> None:
    request = account.wanted(on_all("member"), request_id=an_id())
    token_id = issue(stubs, request).token.token_id
    rotation = RotateTokenRequest(token_id=token_id, overlap=HOUR, request_id=an_id())
    ask(stubs.tokens.RotateToken, rotation, stubs.admin)
    account.revoke(token_id)

    told = [
        refused(stubs.tokens.IssueToken, request, stubs.admin),
        refused(stubs.tokens.RotateToken, rotation, stubs.admin),
    ]

    assert [(one.code, one.reason, one.metadata) for one in told] == [
        ("FAILED_PRECONDITION", "TOKEN_IS_REVOKED", {"token_id": token_id})
    ] * 2
    assert account.token_ids() == [token_id]


def test_of_a_deleted_account_nothing_is_told_again(stubs: Stubs) -> None:
    account = an_account(stubs, projects=0)
    request = account.wanted(on_all("member"), request_id=an_id())
    issue(stubs, request)
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)

    assert refused(stubs.tokens.IssueToken, request, stubs.admin).reason == "ACCOUNT_DELETED"


def test_a_token_that_has_changed_is_told_as_it_is_now_with_the_same_secret(stubs: Stubs, account: OwnAccount) -> None:
    request = account.wanted(on("job_admin", account.project_ids[0]), request_id=an_id())
    first = issue(stubs, request)
    update(stubs, first.token.token_id, "grants", grants=[on_all("member")])
    rotation = RotateTokenRequest(token_id=first.token.token_id, overlap=Duration())
    ask(stubs.tokens.RotateToken, rotation, stubs.admin)
    ask(stubs.accounts.SuspendAccount, SuspendAccountRequest(account_id=account.account_id), stubs.admin)

    again = issue(stubs, request)

    assert again.secret == first.secret
    assert again.token == account.token(first.token.token_id)


def test_what_was_valid_then_is_not_judged_again(stubs: Stubs, account: OwnAccount) -> None:
    """The expiry that was asked for has passed, the plan no longer covers the set: the token was issued all the same."""
    soon = Timestamp()
    soon.FromDatetime(dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(seconds=4))
    request = account.wanted(on_all("job_runner"), expire_time=soon, request_id=an_id())
    first = issue(stubs, request)
    account.set_plan("team")
    eventually(lambda: account.token(first.token.token_id).state == TOKEN_STATE_EXPIRED)

    again = issue(stubs, request)

    assert (again.secret, again.token.state) == (first.secret, TOKEN_STATE_EXPIRED)


# ---- only validating


def test_only_validating_takes_no_id(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    request_id = an_id()
    before = rows.footprint(), rows.fetch("SELECT count(*) FROM idempotent_responses")

    for _ in range(2):
        tried = issue(stubs, account.wanted(on_all("member"), request_id=request_id, validate_only=True))
        assert (tried.token.token_id, tried.secret) == ("", "")

    assert before == (rows.footprint(), rows.fetch("SELECT count(*) FROM idempotent_responses"))
    assert issue(stubs, account.wanted(on_all("read_only"), request_id=request_id)).secret


def test_only_validating_tells_whether_the_id_is_taken_and_no_secret(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    wanted = {"display_name": "a token", "request_id": an_id()}
    issued = issue(stubs, account.wanted(on_all("member"), **wanted))
    rotation = RotateTokenRequest(token_id=issued.token.token_id, overlap=HOUR, request_id=an_id())
    ask(stubs.tokens.RotateToken, rotation, stubs.admin)
    before = rows.footprint()

    same = issue(stubs, account.wanted(on_all("member"), validate_only=True, **wanted))
    other = refused(
        stubs.tokens.IssueToken, account.wanted(on_all("read_only"), validate_only=True, **wanted), stubs.admin
    )
    rotation.validate_only = True
    rotated = ask(stubs.tokens.RotateToken, rotation, stubs.admin)

    assert (same.token.token_id, same.secret, same.HasField("propagation")) == ("", "", False)
    assert other.reason == "REQUEST_ID_REUSED"
    assert (rotated.secret, rotated.HasField("propagation")) == ("", False)
    assert rows.footprint() == before


# ---- what lies in the database


def test_what_lies_in_the_database_does_not_open_with_the_pepper_file_and_opens_with_the_id(
    stubs: Stubs, server: ServerProcess, account: OwnAccount, rows: Rows
) -> None:
    """The whole of what a thief of the database and of the key file has, on the very bytes of the table."""
    request_id = an_id()
    request = account.wanted(on_all("member"), request_id=request_id)
    issued = issue(stubs, request)
    parsed = request_id_of(Fields(), request, ISSUE)
    assert parsed is not None
    ((key_hash, caller, sealed),) = rows.fetch(
        "SELECT key_hash, caller, sealed FROM idempotent_responses WHERE request_hash = $1", parsed.request_hash
    )
    ring = pepper.load(server.data_dir / "pepper.keys")
    value = uuid.UUID(request_id).bytes

    opened = open_sealed(ring, Binding(value, caller, parsed.request_hash), sealed)

    assert caller == issued.token.created_by
    assert issued.secret.encode() in opened
    guesses = (b"", bytes(16), key_hash, key_hash[:16], parsed.request_hash, uuid.uuid4().bytes, value[::-1])
    for guess in guesses:
        with pytest.raises(CannotOpen):
            open_sealed(ring, Binding(guess, caller, parsed.request_hash), sealed)


def test_neither_an_id_nor_a_secret_stands_in_the_database(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    value = uuid.uuid4()
    secret = issue(stubs, account.wanted(on_all("member"), request_id=str(value))).secret
    hidden = [str(value), value.hex, base64.b64encode(value.bytes).decode()]
    hidden += [secret, secret.rpartition("_")[2], secret.encode().hex(), base64.b64encode(secret.encode()).decode()]

    dumped = rows.dump()

    assert "idempotent_responses: " in dumped
    assert [text for text in hidden if text in dumped] == []


def test_neither_log_nor_output_has_an_id_or_a_secret_of_a_repeat(
    stubs: Stubs, server: ServerProcess, account: OwnAccount
) -> None:
    request_id = an_id()
    request = account.wanted(on_all("member"), request_id=request_id)
    secret = [issue(stubs, request).secret for _ in range(2)][1]
    refused(stubs.tokens.IssueToken, account.wanted(on_all("read_only"), request_id=request_id), stubs.admin)

    written = server.log.read_text() + server.output.read_text()

    assert request_id not in written
    assert request_id.replace("-", "") not in written
    assert secret.rpartition("_")[2] not in written


def test_an_answer_is_repeated_after_a_restart_under_another_current_pepper_key(tmp_path: Path) -> None:
    data_dir, scratch = tmp_path / "data", tmp_path / "scratch"
    first = start_server(data_dir, scratch)
    try:
        with grpc.insecure_channel(first.address) as channel:
            account = an_account(stubs_on(channel, first), projects=0)
            request = account.wanted(on_all("member"), request_id=an_id())
            issued = issue(account.stubs, request)
    finally:
        first.stop()
    pepper.activate(data_dir / "pepper.keys", pepper.add(data_dir / "pepper.keys"))

    second = start_server(data_dir, scratch)
    try:
        with grpc.insecure_channel(second.address) as channel:
            again = issue(stubs_on(channel, second), request)
    finally:
        second.stop()

    assert (again.token.token_id, again.secret) == (issued.token.token_id, issued.secret)
