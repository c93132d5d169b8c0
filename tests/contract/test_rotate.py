"""RotateToken and RotateSelf over the wire: which of a token's secrets work, and until when."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doorward.core.secret import SecretKind, find_secret
from doorward.v1 import types_pb2
from doorward.v1.token_admin_pb2 import (
    DescribeSelfRequest,
    DisableTokenRequest,
    RotateSelfRequest,
    RotateSelfResponse,
    RotateTokenRequest,
    RotateTokenResponse,
    UpdateTokenRequest,
)
from doorward.v1.types_pb2 import ServiceToken
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
    refused,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.rows import Rows
    from tests.support.server import Stubs
    from tests.support.wire import Metadata

HOUR, DAY = 3600, 86_400
WORKS, GONE = "ALLOWED", "TOKEN_UNRECOGNIZED"


def rotate(
    stubs: Stubs, token_id: str, overlap_s: int, metadata: Metadata | None = None, **fields: Any
) -> RotateTokenResponse:
    request = RotateTokenRequest(token_id=token_id, overlap=Duration(seconds=overlap_s), **fields)
    return ask(stubs.tokens.RotateToken, request, metadata or stubs.admin)


def rotate_self(stubs: Stubs, secret: str, overlap_s: int) -> RotateSelfResponse:
    request = RotateSelfRequest(overlap=Duration(seconds=overlap_s))
    return ask(stubs.tokens.RotateSelf, request, bearer(secret))


def verdicts(stubs: Stubs, account: OwnAccount, secrets: Sequence[str]) -> list[str]:
    """What a check says to each secret."""
    return [verdict(check(stubs, secret, "jobs:read", project_id=account.project_ids[0])) for secret in secrets]


def a_token(account: OwnAccount, **fields: Any) -> tuple[str, str]:
    """A token that may rotate itself: its id and its secret."""
    issued = account.issue(on_all("job_admin"), allow_self_rotation=True, **fields)
    return issued.token.token_id, issued.secret


def ends_after(answer: RotateTokenResponse | RotateSelfResponse) -> float | None:
    """How long after the rotation the former secret stops, in seconds; None: it has."""
    if not answer.HasField("former_secret_expire_time"):
        return None
    span = answer.former_secret_expire_time.ToDatetime() - answer.token.update_time.ToDatetime()
    return span.total_seconds()


# ---- secrets and their ends


def test_within_the_overlap_both_secrets_work_and_the_answer_tells_until_when(
    stubs: Stubs, account: OwnAccount
) -> None:
    token_id, first = a_token(account)

    answer = rotate(stubs, token_id, HOUR)

    known = find_secret(answer.secret, SecretKind.TOKEN)
    assert known is not None
    assert known.subject_id == token_id
    assert answer.secret != first
    assert verdicts(stubs, account, [first, answer.secret]) == [WORKS, WORKS]
    assert ends_after(answer) == HOUR
    assert answer.propagation.replicas_confirmed == 1


def test_an_overlap_of_0_stops_the_former_secret_at_once(stubs: Stubs, account: OwnAccount) -> None:
    token_id, first = a_token(account)
    assert verdicts(stubs, account, [first]) == [WORKS]

    answer = rotate(stubs, token_id, 0)

    assert verdicts(stubs, account, [first, answer.secret]) == [GONE, WORKS]
    assert ends_after(answer) is None


def test_the_former_secret_stops_by_itself_when_the_overlap_ends(stubs: Stubs, account: OwnAccount) -> None:
    token_id, first = a_token(account)

    second = rotate(stubs, token_id, 4).secret
    during = verdicts(stubs, account, [first, second])

    eventually(lambda: verdicts(stubs, account, [first]) == [GONE])
    assert during == [WORKS, WORKS]
    assert verdicts(stubs, account, [second]) == [WORKS]
    # A check counts with the latest that the database's clock can show; administration asks that clock.
    eventually(
        lambda: (
            code_of(lambda: ask(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(first))) == "UNAUTHENTICATED"
        )
    )


def test_rotating_within_an_overlap_drops_the_middle_one_and_the_oldest_keeps_its_own_end(
    stubs: Stubs, account: OwnAccount
) -> None:
    token_id, first = a_token(account)
    one = rotate(stubs, token_id, HOUR)
    assert verdicts(stubs, account, [first, one.secret]) == [WORKS, WORKS]

    two = rotate(stubs, token_id, 10 * DAY)
    three = rotate(stubs, token_id, 0)

    assert verdicts(stubs, account, [first, one.secret, two.secret, three.secret]) == [WORKS, GONE, GONE, WORKS]
    ends = [answer.former_secret_expire_time for answer in (one, two, three)]
    assert ends[0] == ends[1] == ends[2]


def test_a_rotation_leaves_all_else_as_it_was(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on("job_admin", account.project_ids[0]), labels={"team": "data"}, ttl=Duration(seconds=HOUR))

    after = rotate(stubs, issued.token.token_id, 0).token

    assert after == account.token(issued.token.token_id)
    assert after.etag != issued.token.etag
    assert after.update_time.ToDatetime() > issued.token.update_time.ToDatetime()
    after.update_time.CopyFrom(issued.token.update_time)
    after.etag = issued.token.etag
    assert after == issued.token


def test_an_overlap_never_prolongs_the_tokens_own_life(stubs: Stubs, account: OwnAccount) -> None:
    token_id, first = a_token(account, ttl=Duration(seconds=5))
    answer = rotate(stubs, token_id, 30 * DAY)

    assert answer.former_secret_expire_time == answer.token.expire_time
    eventually(lambda: verdicts(stubs, account, [first, answer.secret]) == ["TOKEN_EXPIRED"] * 2)


def test_a_disabled_token_is_rotated_and_stays_disabled(stubs: Stubs, account: OwnAccount) -> None:
    token_id, first = a_token(account)
    ask(stubs.tokens.DisableToken, DisableTokenRequest(token_id=token_id), stubs.admin)

    answer = rotate(stubs, token_id, HOUR)

    assert answer.token.state == types_pb2.TOKEN_STATE_DISABLED
    assert verdicts(stubs, account, [first, answer.secret]) == ["TOKEN_DISABLED"] * 2


def test_the_audit_tells_versions_and_ends_and_no_secret(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    token_id, first = a_token(account)
    second = rotate(stubs, token_id, HOUR).secret
    third = rotate_self(stubs, second, HOUR).secret

    events = rows.fetch(
        "SELECT action, actor, before::text, after::text FROM audit_events WHERE subject = $1 AND action LIKE 'Rotate%' "
        "ORDER BY event_id",
        f"token:{token_id}",
    )
    told = [json.loads(after) for _, _, _, after in events]

    assert [(action, json.loads(before)) for action, _, before, _ in events] == [
        ("RotateToken", {"secret_version": 1}),
        ("RotateSelf", {"secret_version": 2}),
    ]
    assert events[1][1] == f"token:{token_id}"
    assert [one["secret_version"] for one in told] == [2, 3]
    assert [sorted(one["former_secrets_end"]) for one in told] == [["1"], ["1", "2"]]
    assert not any(secret.rpartition("_")[2] in str(events) for secret in (first, second, third))


def test_who_receives_a_secret_is_on_record(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    """For `obtained_by`: the receiver is who called."""
    admin = account.issue(on_all("account_admin"), allow_self_rotation=True)
    token_id, first = a_token(account)
    rotate(stubs, token_id, HOUR, bearer(admin.secret))
    rotate_self(stubs, first, HOUR)

    received = rows.fetch("SELECT version, issued_to FROM token_secrets WHERE token_id = $1 ORDER BY version", token_id)

    assert received == [
        (1, account.token(admin.token.token_id).created_by),
        (2, f"token:{admin.token.token_id}"),
        (3, f"token:{token_id}"),
    ]


# ---- a token that rotates itself


def test_a_token_rotates_itself_and_learns_when_the_secret_of_its_call_stops(stubs: Stubs, account: OwnAccount) -> None:
    token_id, first = a_token(account)

    answer = rotate_self(stubs, first, HOUR)

    assert answer.token == account.token(token_id)
    assert verdicts(stubs, account, [first, answer.secret]) == [WORKS, WORKS]
    assert ends_after(answer) == HOUR
    told = ask(stubs.tokens.DescribeSelf, DescribeSelfRequest(), bearer(first))
    assert told.secret_expire_time == answer.former_secret_expire_time


def test_a_token_that_rotates_itself_with_its_old_secret_drops_the_current_one_and_gains_no_time(
    stubs: Stubs, account: OwnAccount
) -> None:
    """So a lost answer is harmless: the secret that nobody received is the one that goes."""
    _, first = a_token(account)
    lost = rotate_self(stubs, first, HOUR)

    again = rotate_self(stubs, first, 10 * DAY)

    assert verdicts(stubs, account, [first, lost.secret, again.secret]) == [WORKS, GONE, WORKS]
    assert again.former_secret_expire_time == lost.former_secret_expire_time


def test_a_token_that_rotates_itself_with_the_middle_secret_learns_that_this_one_has_stopped(
    stubs: Stubs, account: OwnAccount
) -> None:
    token_id, first = a_token(account)
    second = rotate(stubs, token_id, HOUR).secret

    answer = rotate_self(stubs, second, HOUR)

    assert ends_after(answer) is None
    assert verdicts(stubs, account, [first, second, answer.secret]) == [WORKS, GONE, WORKS]


def test_without_allow_self_rotation_a_token_does_not_rotate_itself(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    secret = account.issue(on_all("account_admin")).secret
    before = rows.footprint()

    told = refused(stubs.tokens.RotateSelf, RotateSelfRequest(overlap=Duration(seconds=HOUR)), bearer(secret))

    assert (told.code, told.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")
    assert told.metadata == {"method": "/doorward.v1.TokenAdmin/RotateSelf"}
    assert rows.footprint() == before


def test_an_operator_has_no_self_to_rotate(stubs: Stubs) -> None:
    told = refused(stubs.tokens.RotateSelf, RotateSelfRequest(overlap=Duration()), stubs.admin)

    assert (told.code, told.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")


def test_a_suspended_grant_of_its_own_is_no_obstacle_to_a_token_that_rotates_itself(
    stubs: Stubs, account: OwnAccount
) -> None:
    secret = account.issue(on_all("job_runner"), allow_self_rotation=True).secret
    account.set_plan("team")

    assert rotate_self(stubs, secret, 0).secret


# ---- refusals


@pytest.mark.parametrize(
    ("overlap", "reason"),
    [
        (None, "FIELD_REQUIRED"),
        (Duration(seconds=-1), "FIELD_OUT_OF_RANGE"),
        (Duration(nanos=-1), "FIELD_OUT_OF_RANGE"),
        (Duration(seconds=30 * DAY + 1), "FIELD_OUT_OF_RANGE"),
        (Duration(seconds=30 * DAY, nanos=1), "FIELD_OUT_OF_RANGE"),
        (Duration(seconds=1, nanos=-1), "FIELD_OUT_OF_RANGE"),
        (Duration(seconds=2**62), "FIELD_OUT_OF_RANGE"),
    ],
)
def test_an_overlap_outside_its_bounds_is_refused(
    stubs: Stubs, account: OwnAccount, rows: Rows, overlap: Duration | None, reason: str
) -> None:
    token_id, secret = a_token(account)
    before = rows.footprint()

    told = [
        refused(stubs.tokens.RotateToken, RotateTokenRequest(token_id=token_id, overlap=overlap), stubs.admin),
        refused(stubs.tokens.RotateSelf, RotateSelfRequest(overlap=overlap), bearer(secret)),
    ]

    assert [(one.code, one.bad_fields) for one in told] == [("INVALID_ARGUMENT", [("overlap", reason)])] * 2
    assert rows.footprint() == before


def test_the_longest_overlap_is_30_days(stubs: Stubs, account: OwnAccount) -> None:
    assert ends_after(rotate(stubs, a_token(account)[0], 30 * DAY)) == 30 * DAY


def test_what_cannot_be_rotated_is_refused(stubs: Stubs, account: OwnAccount) -> None:
    (revoked, _), (expired, _), unknown = a_token(account), a_token(account, ttl=Duration(seconds=1)), fresh_id()
    account.revoke(revoked)
    eventually(lambda: account.token(expired).state == types_pb2.TOKEN_STATE_EXPIRED)

    told = [
        refused(stubs.tokens.RotateToken, RotateTokenRequest(token_id=token_id, overlap=Duration()), stubs.admin)
        for token_id in (revoked, expired, unknown)
    ]

    assert [(one.code, one.reason, one.metadata) for one in told] == [
        ("FAILED_PRECONDITION", "TOKEN_IS_REVOKED", {"token_id": revoked}),
        ("FAILED_PRECONDITION", "TOKEN_IS_EXPIRED", {"token_id": expired}),
        ("NOT_FOUND", "TOKEN_NOT_FOUND", {"token_id": unknown}),
    ]


def test_an_expired_token_that_is_given_more_time_can_be_rotated(stubs: Stubs, account: OwnAccount) -> None:
    token_id, _ = a_token(account, ttl=Duration(seconds=1))
    eventually(lambda: account.token(token_id).state == types_pb2.TOKEN_STATE_EXPIRED)
    request = UpdateTokenRequest(token=ServiceToken(token_id=token_id))
    request.update_mask.paths.append("expire_time")
    ask(stubs.tokens.UpdateToken, request, stubs.admin)

    assert verdicts(stubs, account, [rotate(stubs, token_id, 0).secret]) == [WORKS]


def test_only_validating_rotates_nothing(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    token_id, secret = a_token(account)
    before, footprint = account.token(token_id), rows.footprint()

    answer = rotate(stubs, token_id, HOUR, validate_only=True)

    assert answer == RotateTokenResponse(token=before)
    assert rows.footprint() == footprint
    assert verdicts(stubs, account, [secret]) == [WORKS]


def test_a_token_rotates_only_what_it_holds(stubs: Stubs, account: OwnAccount) -> None:
    """Whoever rotates receives a secret of the other one."""
    passing = bearer(account.issue(on_all("account_admin"), ttl=Duration(seconds=HOUR)).secret)
    lasting = account.issue(on_all("member"))
    short = account.issue(on_all("member"), ttl=Duration(seconds=600)).token.token_id

    told = refused(
        stubs.tokens.RotateToken, RotateTokenRequest(token_id=lasting.token.token_id, overlap=Duration()), passing
    )

    assert (told.code, told.reason) == ("PERMISSION_DENIED", "EXCEEDS_CALLER")
    assert account.token(lasting.token.token_id) == lasting.token
    assert rotate(stubs, short, 0, passing).secret


def test_to_a_token_anothers_token_is_an_unknown_one(stubs: Stubs, account: OwnAccount) -> None:
    foreign = an_account(stubs, projects=0).issue(on_all("member")).token.token_id
    caller = bearer(account.issue(on_all("account_admin")).secret)

    told = [
        refused(stubs.tokens.RotateToken, RotateTokenRequest(token_id=token_id, overlap=Duration()), caller)
        for token_id in (foreign, foreign[::-1])
    ]

    assert told[0].text.replace(foreign, "") == told[1].text.replace(foreign[::-1], "")
    assert {(one.code, one.reason) for one in told} == {("NOT_FOUND", "TOKEN_NOT_FOUND")}


# ---- any sequence of rotations, against a model that is told as the contract tells it


@dataclass
class Model:
    """The secrets that a token ever had, each with its end: seconds from the start, None for the current one."""

    secrets: list[str]
    ends: list[float | None] = field(default_factory=lambda: [None])
    now: float = 0

    def is_live(self, place: int) -> bool:
        end = self.ends[place]
        return end is None or end > self.now

    def live(self) -> list[int]:
        return [place for place in range(len(self.secrets)) if self.is_live(place)]

    def rotated(self, secret: str, overlap: float) -> None:
        is_within_an_overlap = len(self.live()) == 2
        current = len(self.secrets) - 1
        self.ends[current] = self.now if is_within_an_overlap else self.now + overlap
        self.secrets.append(secret)
        self.ends.append(None)


STEPS = st.one_of(
    st.tuples(st.just("rotate"), st.sampled_from([0, HOUR, DAY, 30 * DAY]), st.just(0)),
    st.tuples(st.just("rotate self"), st.sampled_from([0, HOUR, DAY]), st.integers(0, 1)),
    st.tuples(st.just("wait"), st.sampled_from([HOUR - 60, HOUR + 60, DAY, 31 * DAY]), st.just(0)),
)
AGE = "UPDATE token_secrets SET not_after = not_after - $2::interval WHERE token_id = $1"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=2, max_size=6))
def test_whatever_the_sequence_of_rotations_the_right_secrets_work(
    stubs: Stubs, still: OwnAccount, rows: Rows, steps: list[tuple[str, int, int]]
) -> None:
    token_id, first = a_token(still)
    model = Model([first])

    for step, seconds, place in steps:
        if step == "wait":
            # Time that passes is the ends coming closer; any change of the token lets replicas read them again.
            rows.fetch(AGE, token_id, dt.timedelta(seconds=seconds))
            ask(stubs.tokens.UpdateToken, _renamed(token_id), stubs.admin)
            model.now += seconds
        elif step == "rotate":
            model.rotated(rotate(stubs, token_id, seconds).secret, seconds)
        else:
            live = model.live()
            presented = live[min(place, len(live) - 1)]
            model.rotated(rotate_self(stubs, model.secrets[presented], seconds).secret, seconds)
        expected = [WORKS if model.is_live(place) else GONE for place in range(len(model.secrets))]
        assert verdicts(stubs, still, model.secrets) == expected, (step, seconds)
        assert 1 <= len(model.live()) <= 2


def _renamed(token_id: str) -> UpdateTokenRequest:
    return UpdateTokenRequest(token=ServiceToken(token_id=token_id, display_name=fresh_id("name")))
