"""UpdateToken over the wire: what the mask names and nothing else, in place, true everywhere when it returns."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.core.revision import Revision
from doorward.v1 import account_admin_pb2, types_pb2
from doorward.v1.token_admin_pb2 import ListTokensRequest, UpdateTokenRequest, UpdateTokenResponse
from doorward.v1.types_pb2 import ServiceToken
from tests.support.server import bearer
from tests.support.wire import OwnAccount, an_account, ask, check, eventually, fresh_id, on, on_all, refused, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.rows import Rows
    from tests.support.server import Stubs
    from tests.support.wire import Metadata

FAR = Timestamp(seconds=4102444800)
EVERY_PATH = ("display_name", "description", "labels", "grants", "expire_time", "allow_self_rotation")


def wanted(
    token_id: str, paths: Sequence[str] | None = None, *, validate_only: bool = False, **fields: Any
) -> UpdateTokenRequest:
    mask = None if paths is None else FieldMask(paths=paths)
    return UpdateTokenRequest(
        token=ServiceToken(token_id=token_id, **fields), update_mask=mask, validate_only=validate_only
    )


def update(
    stubs: Stubs, token_id: str, paths: Sequence[str] | None = None, metadata: Metadata | None = None, **fields: Any
) -> UpdateTokenResponse:
    return ask(stubs.tokens.UpdateToken, wanted(token_id, paths, **fields), metadata or stubs.admin)


def but(token: ServiceToken, *aside: str) -> ServiceToken:
    """The token without these fields."""
    rest = ServiceToken()
    rest.CopyFrom(token)
    for name in (*aside, "update_time", "etag"):
        rest.ClearField(name)  # type: ignore[arg-type]
    return rest


def a_full_token(account: OwnAccount) -> ServiceToken:
    project_id, _ = account.project_ids
    return account.issue(
        on("job_admin", project_id),
        display_name="before",
        description="as it was",
        labels={"team": "data", "env": "prod"},
        ttl=Duration(seconds=3600),
        allow_self_rotation=True,
    ).token


NEW: dict[str, Any] = {
    "display_name": "after ✓",
    "description": "as it\nis",
    "labels": {"team": "ops"},
    "grants": [on_all("member")],
    "expire_time": FAR,
    "allow_self_rotation": False,
}


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_mask_of_one_field_changes_that_field_alone(stubs: Stubs, account: OwnAccount, path: str) -> None:
    before = a_full_token(account)

    answer = update(stubs, before.token_id, [path], **NEW)

    assert getattr(answer.token, path) == getattr(ServiceToken(**NEW), path)
    assert getattr(answer.token, path) != getattr(before, path)
    assert but(answer.token, path) == but(before, path)
    assert answer.token == account.token(before.token_id)
    assert answer.token.update_time.ToDatetime() > before.update_time.ToDatetime()
    assert answer.token.etag != before.etag
    assert answer.propagation.replicas_confirmed == 1


def test_a_star_names_every_field_and_clears_what_is_empty(stubs: Stubs, account: OwnAccount) -> None:
    before = a_full_token(account)

    after = update(stubs, before.token_id, ["*"], display_name="all new", grants=[on_all("member")]).token

    assert (after.display_name, after.description, dict(after.labels)) == ("all new", "", {})
    assert (after.HasField("expire_time"), after.allow_self_rotation) == (False, False)
    assert but(after, *EVERY_PATH) == but(before, *EVERY_PATH)


@pytest.mark.parametrize("paths", [None, []], ids=["absent", "empty"])
def test_without_a_mask_what_is_not_empty_is_updated(
    stubs: Stubs, account: OwnAccount, paths: list[str] | None
) -> None:
    before = a_full_token(account)

    after = update(stubs, before.token_id, paths, description="new", allow_self_rotation=False).token

    assert after.description == "new"
    assert but(after, "description") == but(before, "description")


def test_without_a_mask_and_without_a_value_nothing_is_updated(stubs: Stubs, account: OwnAccount) -> None:
    before = a_full_token(account)

    assert update(stubs, before.token_id).token == before


def test_what_the_mask_does_not_name_is_not_looked_at(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))
    wrong: dict[str, Any] = {
        "display_name": issued.secret,
        "labels": {"": "x"},
        "grants": [on_all("no_such_set")],
        "expire_time": Timestamp(seconds=1),
        "account_id": "another",
        "state": types_pb2.TOKEN_STATE_REVOKED,
    }

    after = update(stubs, issued.token.token_id, ["description"], description="new", **wrong).token

    assert after.description == "new"
    assert but(after, "description") == but(issued.token, "description")


def test_a_narrowed_token_is_denied_at_once_and_keeps_its_secret(stubs: Stubs, account: OwnAccount) -> None:
    first, second = account.project_ids
    issued = account.issue(on("job_admin", first, second))

    def verdicts() -> list[str]:
        return [verdict(check(stubs, issued.secret, "jobs:write", project_id=each)) for each in (first, second)]

    before = verdicts()
    update(stubs, issued.token.token_id, ["grants"], grants=[on("job_admin", first)])
    narrowed = verdicts()
    update(stubs, issued.token.token_id, ["grants"], grants=[on_all("read_only"), on("job_admin", second)])

    assert (before, narrowed) == (["ALLOWED"] * 2, ["ALLOWED", "PROJECT_NOT_GRANTED"])
    assert verdicts() == ["PROJECT_NOT_GRANTED", "ALLOWED"]


def test_an_expiry_that_is_moved_back_brings_the_token_back(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id), ttl=Duration(seconds=1))
    token_id = issued.token.token_id
    eventually(lambda: account.token(token_id).state == types_pb2.TOKEN_STATE_EXPIRED)

    after = update(stubs, token_id, ["expire_time"], expire_time=FAR).token

    assert after.state == types_pb2.TOKEN_STATE_ACTIVE
    assert verdict(check(stubs, issued.secret, "jobs:write", project_id=project_id)) == "ALLOWED"


def test_an_expiry_close_by_stops_the_token(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id))
    soon = Timestamp()
    soon.FromDatetime(issued.token.create_time.ToDatetime() + dt.timedelta(seconds=2))

    update(stubs, issued.token.token_id, ["expire_time"], expire_time=soon)

    eventually(lambda: verdict(check(stubs, issued.secret, "jobs:write", project_id=project_id)) == "TOKEN_EXPIRED")


def test_a_repeat_changes_nothing_and_waits_and_with_an_etag_it_is_refused(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    before = a_full_token(account)
    first = update(stubs, before.token_id, ["*"], etag=before.etag, **NEW)

    again = update(stubs, before.token_id, ["*"], **NEW)
    stale = refused(stubs.tokens.UpdateToken, wanted(before.token_id, ["*"], etag=before.etag, **NEW), stubs.admin)
    fresh = update(stubs, before.token_id, ["*"], etag=first.token.etag, **NEW)

    assert again.token == fresh.token == first.token
    assert Revision.parse(first.propagation.revision) <= Revision.parse(again.propagation.revision)
    assert (stale.code, stale.reason, stale.metadata) == ("ABORTED", "ETAG_MISMATCH", {"etag": first.token.etag})
    changes = rows.fetch(
        "SELECT count(*) FROM changes WHERE subjects = $1::text[] AND kind = 'UpdateToken'",
        [f"token:{before.token_id}"],
    )
    assert changes == [(1,)]


def test_the_audit_tells_what_has_changed_and_no_more(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    before = a_full_token(account)
    update(stubs, before.token_id, ["*"], **{**NEW, "description": before.description})
    update(stubs, before.token_id, ["description"], description=before.description)

    events = rows.fetch(
        "SELECT before::text, after::text FROM audit_events WHERE subject = $1 AND action = 'UpdateToken' "
        "ORDER BY event_id",
        f"token:{before.token_id}",
    )

    was, is_now = json.loads(events[0][0]), json.loads(events[0][1])
    assert set(was) == set(is_now) == {"display_name", "labels", "grants", "expire_time", "allow_self_rotation"}
    assert (was["display_name"], is_now["display_name"]) == ("before", "after ✓")
    assert was["grants"] == [{"permission_set": "job_admin", "project_ids": [account.project_ids[0]]}]
    assert is_now["grants"] == [{"permission_set": "member", "project_ids": None}]
    assert events[1] == (None, None)


def test_lists_follow_an_update(stubs: Stubs, account: OwnAccount) -> None:
    """Tokens that get a label or a grant are found by it at once, in the order of issue."""
    ids = [account.issue(on_all("member"), labels={"team": "ops"}).token.token_id for _ in range(3)]
    for token_id in (ids[2], ids[0]):
        update(stubs, token_id, ["labels", "grants"], labels={"team": "data"}, grants=[on_all("job_admin")])

    def found(**filters: Any) -> list[str]:
        request = ListTokensRequest(account_id=account.account_id, **filters)
        return [token.token_id for token in ask(stubs.tokens.ListTokens, request, stubs.admin).tokens]

    assert found(labels={"team": "data"}) == found(permission_set="job_admin") == [ids[2], ids[0]]
    assert found(labels={"team": "ops"}) == found(permission_set="member") == [ids[1]]


# ---- suspended grants


def test_a_suspended_grant_may_stay_as_it_is(stubs: Stubs, account: OwnAccount) -> None:
    first, second = account.project_ids
    token_id = account.issue(on("job_runner", first, second), on("job_admin", first)).token.token_id
    account.set_plan("team")
    kept = on("job_runner", second, first)

    after = update(stubs, token_id, ["grants"], grants=[on_all("readonly"), kept]).token

    assert [(grant.permission_set, grant.suspended) for grant in after.grants] == [
        ("job_runner", True),
        ("read_only", False),
    ]


@pytest.mark.parametrize("change", ["narrower", "wider", "new"])
def test_a_suspended_grant_that_is_changed_or_new_is_refused(stubs: Stubs, account: OwnAccount, change: str) -> None:
    first, second = account.project_ids
    token_id = account.issue(on("job_runner", first, second), on("job_admin", first)).token.token_id
    account.set_plan("team")
    grant = {"narrower": on("job_runner", first), "wider": on_all("job_runner"), "new": on_all("billing_admin")}[change]

    told = refused(stubs.tokens.UpdateToken, wanted(token_id, ["grants"], grants=[grant]), stubs.admin)

    assert (told.code, told.reason) == ("FAILED_PRECONDITION", "PERMISSION_SET_NOT_IN_PLAN")
    assert told.metadata == {
        "account_id": account.account_id,
        "plan": "team",
        "permission_set": grant.permission_set,
    }
    assert [violation.field for violation in told.violations] == ["token.grants[0].permission_set"]


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "paths", "expected"),
    [
        ({}, ["display_name"], [("token.display_name", "FIELD_REQUIRED")]),
        ({}, ["grants"], [("token.grants", "FIELD_REQUIRED")]),
        ({}, ["*"], [("token.display_name", "FIELD_REQUIRED"), ("token.grants", "FIELD_REQUIRED")]),
        ({"display_name": "x" * 201}, ["display_name"], [("token.display_name", "FIELD_TOO_LONG")]),
        ({"description": "x" * 2001}, None, [("token.description", "FIELD_TOO_LONG")]),
        ({"labels": {"k": "x" * 256}}, ["labels"], [("token.labels['k']", "FIELD_TOO_LONG")]),
        ({"expire_time": Timestamp(seconds=1)}, None, [("token.expire_time", "FIELD_OUT_OF_RANGE")]),
        ({"grants": [on_all("no_such")]}, None, [("token.grants[0].permission_set", "PERMISSION_SET_UNKNOWN")]),
        (
            {"grants": [on("job_admin", "nowhere")]},
            None,
            [("token.grants[0].project_ids[0]", "PROJECT_NOT_IN_ACCOUNT")],
        ),
        (
            {"grants": [on_all("owner"), on_all("account_admin")]},
            None,
            [("token.grants[1].permission_set", "FIELD_DUPLICATE")],
        ),
        ({}, ["token_id"], [("update_mask.paths[0]", "FIELD_MALFORMED")]),
        (
            {"display_name": "n"},
            ["display_name", "state", "etag", "labels.team", "*", "nothing"],
            [(f"update_mask.paths[{place}]", "FIELD_MALFORMED") for place in range(1, 6)],
        ),
    ],
)
def test_every_wrong_field_is_told(
    stubs: Stubs,
    account: OwnAccount,
    rows: Rows,
    fields: dict[str, Any],
    paths: list[str] | None,
    expected: list[tuple[str, str]],
) -> None:
    token_id = account.issue(on_all("member")).token.token_id
    before = rows.footprint()

    told = refused(stubs.tokens.UpdateToken, wanted(token_id, paths, **fields), stubs.admin)

    assert (told.code, told.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert told.bad_fields == sorted(expected)
    assert rows.footprint() == before


def test_what_only_the_account_can_tell_is_told_beside_what_is_wrong_in_itself(
    stubs: Stubs, account: OwnAccount
) -> None:
    token_id = account.issue(on_all("member")).token.token_id
    request = wanted(
        token_id,
        ["description", "expire_time", "grants"],
        description="x" * 2001,
        expire_time=Timestamp(seconds=1),
        grants=[on("job_admin", "nowhere")],
    )

    assert refused(stubs.tokens.UpdateToken, request, stubs.admin).bad_fields == [
        ("token.description", "FIELD_TOO_LONG"),
        ("token.expire_time", "FIELD_OUT_OF_RANGE"),
        ("token.grants[0].project_ids[0]", "PROJECT_NOT_IN_ACCOUNT"),
    ]


def test_a_token_that_cannot_be_updated(stubs: Stubs, account: OwnAccount) -> None:
    revoked = account.issue(on_all("member")).token.token_id
    account.revoke(revoked)
    unknown = fresh_id()
    gone = an_account(stubs, projects=0)
    of_gone = gone.issue(on_all("member")).token.token_id
    ask(
        stubs.accounts.DeleteAccount,
        account_admin_pb2.DeleteAccountRequest(account_id=gone.account_id),
        stubs.admin,
    )

    told = [
        refused(stubs.tokens.UpdateToken, wanted(token_id, display_name="n"), stubs.admin)
        for token_id in (revoked, unknown, of_gone)
    ]

    assert [(one.code, one.reason, one.metadata) for one in told] == [
        ("FAILED_PRECONDITION", "TOKEN_IS_REVOKED", {"token_id": revoked}),
        ("NOT_FOUND", "TOKEN_NOT_FOUND", {"token_id": unknown}),
        ("FAILED_PRECONDITION", "ACCOUNT_DELETED", {"account_id": gone.account_id}),
    ]
    assert refused(stubs.tokens.UpdateToken, UpdateTokenRequest(), stubs.admin).bad_fields == [
        ("token.token_id", "FIELD_REQUIRED")
    ]


def test_only_validating_changes_nothing(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    before = a_full_token(account)
    footprint = rows.footprint()

    answer = update(stubs, before.token_id, ["*"], validate_only=True, **NEW)
    told = refused(stubs.tokens.UpdateToken, wanted(before.token_id, ["grants"], validate_only=True), stubs.admin)

    assert answer.token.display_name == NEW["display_name"]
    assert list(answer.token.grants) == NEW["grants"]
    assert not answer.HasField("propagation")
    assert told.bad_fields == [("token.grants", "FIELD_REQUIRED")]
    assert rows.footprint() == footprint
    assert account.token(before.token_id) == before


# ---- callers that are tokens


def test_a_token_updates_within_what_it_holds(stubs: Stubs, account: OwnAccount) -> None:
    caller = bearer(account.issue(on_all("account_admin"), allow_self_rotation=True).secret)
    token_id = account.issue(on_all("member")).token.token_id

    after = update(stubs, token_id, ["*"], caller, **NEW).token

    assert (after.display_name, list(after.grants)) == (NEW["display_name"], NEW["grants"])


def test_a_token_neither_gives_nor_takes_what_it_does_not_hold(stubs: Stubs, account: OwnAccount) -> None:
    """Before and after: what exceeds it, it may not touch, and to what it may touch it adds nothing."""
    passing = bearer(account.issue(on_all("account_admin"), ttl=Duration(seconds=3600)).secret)
    lasting = account.issue(on_all("member")).token
    short = account.issue(on_all("member"), ttl=Duration(seconds=600)).token
    requests = {
        "narrow what outlives it": wanted(lasting.token_id, ["display_name"], display_name="mine"),
        "cut the life of what outlives it": wanted(lasting.token_id, ["expire_time"], expire_time=short.expire_time),
        "prolong beyond its own": wanted(short.token_id, ["expire_time"]),
        "give self-rotation": wanted(short.token_id, ["allow_self_rotation"], allow_self_rotation=True),
    }

    told = {what: refused(stubs.tokens.UpdateToken, request, passing) for what, request in requests.items()}

    assert {what: (one.code, one.reason) for what, one in told.items()} == dict.fromkeys(
        requests, ("PERMISSION_DENIED", "EXCEEDS_CALLER")
    )
    assert told["give self-rotation"].metadata == {"excess": "allow_self_rotation"}
    assert [account.token(token.token_id) for token in (lasting, short)] == [lasting, short]


def test_to_a_token_anothers_token_is_an_unknown_one_whatever_else_is_wrong(stubs: Stubs, account: OwnAccount) -> None:
    other = an_account(stubs)
    foreign = other.issue(on_all("member"))
    caller = bearer(account.issue(on_all("account_admin")).secret)
    contents: list[dict[str, Any]] = [
        {"display_name": "n"},
        {"display_name": "n", "etag": "stale"},
        {"display_name": "n", "etag": foreign.token.etag},
        {"grants": [on_all("no_such")]},
        {"grants": [on("job_admin", other.project_ids[0])]},
        {"expire_time": Timestamp(seconds=1)},
        {"description": "x" * 2001, "grants": [on("job_admin", "nowhere")]},
    ]
    unknown = foreign.token.token_id[::-1]

    for fields in contents:
        told = [
            refused(stubs.tokens.UpdateToken, wanted(token_id, **fields), caller)
            for token_id in (foreign.token.token_id, unknown)
        ]
        assert told[0].text.replace(foreign.token.token_id, "") == told[1].text.replace(unknown, "")
        assert told[0].bad_fields == told[1].bad_fields
        assert told[0].code == ("INVALID_ARGUMENT" if "description" in fields else "NOT_FOUND")
