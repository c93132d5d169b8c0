"""Every bound of the contract, one below, at and one above it; what is allowed is only validated, where that can be asked."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.v1.account_admin_pb2 import GetAccountRequest, ListProjectsRequest, PutAccountRequest, PutProjectRequest
from doorward.v1.authorizer_pb2 import (
    BatchCheckItem,
    BatchCheckRequest,
    CheckRequest,
    IntrospectTokenRequest,
    ListPermissionsRequest,
)
from doorward.v1.token_admin_pb2 import GetTokenRequest, ListTokensRequest, RevokeTokenRequest
from tests.support.wire import OwnAccount, an_account, ask, check, fresh_id, on, on_all, refused, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.rows import Rows
    from tests.support.server import Stubs

MEMBER = on_all("member")
CENTURY_S = 36500 * 24 * 3600
# The last second that a Timestamp can say.
LAST_S = 253402300799


def issue(stubs: Stubs, account: OwnAccount, **fields: Any) -> list[tuple[str, str]]:
    """The bad fields of a token that is only validated; none: it could be issued."""
    grants = fields.pop("grants", [MEMBER])
    request = account.wanted(*grants, validate_only=True, **fields)
    return bad_fields(stubs.tokens.IssueToken, request, stubs)


def bad_fields(rpc: Any, request: Any, stubs: Stubs) -> list[tuple[str, str]]:
    """The bad fields that a call is refused for; none: it passes, or what it asks about is not there."""
    try:
        ask(rpc, request, stubs.admin)
    except Exception:  # noqa: BLE001 - the refusal is taken apart by `refused`
        refusal = refused(rpc, request, stubs.admin)
        if refusal.code == "NOT_FOUND":
            return []
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
        return refusal.bad_fields
    return []


# ---- texts and ids


@pytest.mark.parametrize("letter", ["x", "é", "東", "😀"])
@pytest.mark.parametrize(("field", "most"), [("display_name", 200), ("description", 2000)])
def test_a_text_of_a_token_has_its_longest(stubs: Stubs, still: OwnAccount, field: str, most: int, letter: str) -> None:
    told = [issue(stubs, still, **{field: letter * length}) for length in (most - 1, most, most + 1)]

    assert told == [[], [], [(field, "FIELD_TOO_LONG")]]


def test_the_longest_texts_come_back_whole(stubs: Stubs, account: OwnAccount) -> None:
    labels = {"k" * 63: "東" * 255, **{f"label{number}": "" for number in range(31)}}

    token = account.issue(MEMBER, display_name="é" * 200, description="😀" * 2000, labels=labels).token

    read = account.token(token.token_id)
    assert read == token
    assert (read.display_name, read.description, dict(read.labels)) == ("é" * 200, "😀" * 2000, labels)


@pytest.mark.parametrize(
    ("length", "told"), [(1, []), (199, []), (200, []), (201, [("display_name", "FIELD_TOO_LONG")])]
)
def test_the_name_of_an_account_or_project_has_its_longest(
    stubs: Stubs, still: OwnAccount, length: int, told: list[tuple[str, str]]
) -> None:
    own = PutAccountRequest(account_id=still.account_id, display_name="é" * length, plan="team", validate_only=True)
    project = PutProjectRequest(
        account_id=still.account_id, project_id=fresh_id("p"), display_name="é" * length, validate_only=True
    )

    assert bad_fields(stubs.accounts.PutAccount, own, stubs) == told
    assert bad_fields(stubs.accounts.PutProject, project, stubs) == told


def test_the_reason_of_a_revocation_has_its_longest(stubs: Stubs, account: OwnAccount) -> None:
    token_id = account.issue(MEMBER).token.token_id

    refusal = refused(stubs.tokens.RevokeToken, RevokeTokenRequest(token_id=token_id, reason="é" * 501), stubs.admin)
    revoked = account.revoke(token_id, "é" * 500)

    assert refusal.bad_fields == [("reason", "FIELD_TOO_LONG")]
    assert revoked.token.revoke_reason == account.token(token_id).revoke_reason == "é" * 500


@pytest.mark.parametrize(
    ("length", "reason"), [(0, "FIELD_REQUIRED"), (1, ""), (63, ""), (64, ""), (65, "FIELD_TOO_LONG")]
)
def test_an_id_has_1_to_64_characters(stubs: Stubs, still: OwnAccount, length: int, reason: str) -> None:
    value = "x" * length
    account_id = still.account_id
    requests: list[tuple[Any, Any, str]] = [
        (
            stubs.accounts.PutAccount,
            PutAccountRequest(account_id=value, display_name="X", plan="team", validate_only=True),
            "account_id",
        ),
        (
            stubs.accounts.PutProject,
            PutProjectRequest(account_id=account_id, project_id=value, display_name="X", validate_only=True),
            "project_id",
        ),
        (stubs.accounts.GetAccount, GetAccountRequest(account_id=value), "account_id"),
        (stubs.accounts.ListProjects, ListProjectsRequest(account_id=value), "account_id"),
        (stubs.tokens.GetToken, GetTokenRequest(token_id=value), "token_id"),
        (stubs.tokens.RevokeToken, RevokeTokenRequest(token_id=value), "token_id"),
        (stubs.tokens.ListTokens, ListTokensRequest(account_id=value), "account_id"),
        (
            stubs.authorizer.Check,
            CheckRequest(secret="x", permission="jobs:read", project_id=value),
            "project_id",
        ),
        (
            stubs.authorizer.Check,
            CheckRequest(secret="x", permission="billing:read", account_id=value),
            "account_id",
        ),
        (stubs.authorizer.ListPermissions, ListPermissionsRequest(secret="x", project_id=value), "project_id"),
    ]

    told = [(bad_fields(rpc, request, stubs), field) for rpc, request, field in requests]

    assert [found for found, _ in told] == [[(field, reason)] if reason else [] for _, field in told]


def test_every_character_that_an_id_may_have_is_taken(stubs: Stubs, account: OwnAccount) -> None:
    project_id = f"AZaz09_-{fresh_id('')}"

    account.put_project(project_id)

    secret = account.issue(on("job_admin", project_id)).secret
    assert check(stubs, secret, "jobs:read", project_id=project_id).allowed


# ---- labels


@pytest.mark.parametrize(("count", "told"), [(0, []), (31, []), (32, []), (33, [("labels", "TOO_MANY_ITEMS")])])
def test_a_token_has_at_most_32_labels(
    stubs: Stubs, still: OwnAccount, count: int, told: list[tuple[str, str]]
) -> None:
    assert issue(stubs, still, labels={f"label{number}": "x" for number in range(count)}) == told


@pytest.mark.parametrize(("length", "reason"), [(1, ""), (62, ""), (63, ""), (64, "FIELD_TOO_LONG")])
def test_a_label_key_has_at_most_63_characters(stubs: Stubs, still: OwnAccount, length: int, reason: str) -> None:
    key = "k" * length

    assert issue(stubs, still, labels={key: ""}) == ([(f"labels['{key[:63]}']", reason)] if reason else [])


@pytest.mark.parametrize(("length", "reason"), [(0, ""), (254, ""), (255, ""), (256, "FIELD_TOO_LONG")])
def test_a_label_value_has_at_most_255_characters(stubs: Stubs, still: OwnAccount, length: int, reason: str) -> None:
    assert issue(stubs, still, labels={"key": "東" * length}) == ([("labels['key']", reason)] if reason else [])


# ---- grants


@pytest.mark.parametrize(
    ("count", "reasons"),
    [(1, set()), (99, {"FIELD_DUPLICATE"}), (100, {"FIELD_DUPLICATE"}), (101, {"TOO_MANY_ITEMS"})],
)
def test_a_token_has_at_most_100_grants(stubs: Stubs, still: OwnAccount, count: int, reasons: set[str]) -> None:
    # The catalog has 21 sets, so that more of them than that repeat.
    told = issue(stubs, still, grants=[MEMBER] * count)

    assert {reason for _, reason in told if reason != "INVALID_FIELDS"} == reasons


@pytest.fixture(scope="module")
def crowded(stubs: Stubs, rows: Rows) -> tuple[OwnAccount, list[str]]:
    """An account with 1,001 projects, and their ids in order."""
    account = an_account(stubs, projects=0)
    project_ids = [f"{account.account_id}-{number:04}" for number in range(1001)]
    rows.fetch(
        "INSERT INTO projects SELECT project_id, $1, 'One of many', now() FROM unnest($2::text[]) AS project_id",
        account.account_id,
        project_ids,
    )
    return account, project_ids


@pytest.mark.parametrize(
    ("count", "told"), [(999, []), (1000, []), (1001, [("grants[0].project_ids", "TOO_MANY_ITEMS")])]
)
def test_a_grant_names_at_most_1000_projects(
    stubs: Stubs, crowded: tuple[OwnAccount, list[str]], count: int, told: list[tuple[str, str]]
) -> None:
    account, project_ids = crowded

    assert issue(stubs, account, grants=[on("job_admin", *project_ids[:count])]) == told


def test_a_grant_on_1000_projects_holds_on_each_of_them_and_on_no_other(
    stubs: Stubs, crowded: tuple[OwnAccount, list[str]]
) -> None:
    account, project_ids = crowded
    secret = account.issue(on("job_admin", *project_ids[:1000])).secret
    items = [BatchCheckItem(permission="jobs:write", project_id=project_id) for project_id in project_ids[:1000]]

    batch = ask(stubs.authorizer.BatchCheck, BatchCheckRequest(secret=secret, items=items), stubs.caller)

    assert {verdict(result) for result in batch.results} == {"ALLOWED"}
    assert verdict(check(stubs, secret, "jobs:write", project_id=project_ids[1000])) == "PROJECT_NOT_GRANTED"


@pytest.mark.parametrize(
    ("page_size", "rows_shown"), [(0, 100), (999, 999), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_a_page_has_at_most_1000_rows_and_100_when_the_server_chooses(
    stubs: Stubs, crowded: tuple[OwnAccount, list[str]], page_size: int, rows_shown: int
) -> None:
    account, project_ids = crowded
    request = ListProjectsRequest(account_id=account.account_id, page_size=page_size)

    page = ask(stubs.accounts.ListProjects, request, stubs.admin)

    assert [project.project_id for project in page.projects] == project_ids[:rows_shown]
    assert page.next_page_token


# ---- expiry


@pytest.mark.parametrize(
    ("ttl", "told"),
    [
        (Duration(nanos=1000), []),
        (Duration(seconds=CENTURY_S - 1), []),
        (Duration(seconds=CENTURY_S), []),
        (Duration(seconds=CENTURY_S + 1), [("ttl", "FIELD_OUT_OF_RANGE")]),
        (Duration(nanos=999), [("ttl", "FIELD_OUT_OF_RANGE")]),
    ],
)
def test_a_ttl_is_more_than_nothing_and_at_most_a_century(
    stubs: Stubs, still: OwnAccount, ttl: Duration, told: list[tuple[str, str]]
) -> None:
    assert issue(stubs, still, ttl=ttl) == told


@pytest.mark.parametrize("nanos", [0, 1_000, 999_998_000, 999_999_000, 999_999_999])
def test_a_token_that_expires_in_the_last_second_there_is_works_or_is_refused(
    stubs: Stubs, account: OwnAccount, nanos: int
) -> None:
    expire_time = Timestamp(seconds=LAST_S, nanos=nanos)
    told = issue(stubs, account, expire_time=expire_time)

    if nanos >= 999_999_000:
        # The database has no such instant but "infinity".
        assert told == [("expire_time", "FIELD_OUT_OF_RANGE")]
        return
    assert told == []
    issued = account.issue(MEMBER, expire_time=expire_time)
    assert account.token(issued.token.token_id).expire_time == expire_time
    assert check(stubs, issued.secret, "jobs:read", project_id=account.project_ids[0]).allowed
    assert account.token_ids() == [issued.token.token_id]


@pytest.mark.parametrize("seconds", [LAST_S + 1, 2**63 - 1, -62135596801, -(2**63)])
def test_a_time_beyond_the_calendar_is_refused(stubs: Stubs, still: OwnAccount, seconds: int) -> None:
    told = issue(stubs, still, expire_time=Timestamp(seconds=seconds))

    assert told == [("expire_time", "FIELD_OUT_OF_RANGE")]


def test_an_expiry_must_lie_ahead(stubs: Stubs, still: OwnAccount, rows: Rows) -> None:
    ((now,),) = rows.fetch("SELECT clock_timestamp()")
    past, future = Timestamp(), Timestamp()
    past.FromDatetime(now)
    future.FromDatetime(now + dt.timedelta(minutes=10))

    assert issue(stubs, still, expire_time=past) == [("expire_time", "FIELD_OUT_OF_RANGE")]
    assert issue(stubs, still, expire_time=future) == []


# ---- presented secrets and batches


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ("", [("secret", "FIELD_REQUIRED")]),
        ("x", []),
        ("x" * 127, []),
        ("x" * 128, []),
        ("x" * 129, [("secret", "FIELD_TOO_LONG")]),
        ("é" * 64, []),
        ("é" * 64 + "x", [("secret", "FIELD_TOO_LONG")]),
        ("x" * 1_000_000, [("secret", "FIELD_TOO_LONG")]),
    ],
    ids=lambda value: f"{len(value.encode())} bytes" if isinstance(value, str) else "",
)
def test_a_presented_secret_has_at_most_128_bytes(
    stubs: Stubs, account: OwnAccount, secret: str, told: list[tuple[str, str]]
) -> None:
    project_id, _ = account.project_ids
    items = [BatchCheckItem(secret=account.issue(MEMBER).secret, permission="jobs:read", project_id=project_id)]

    found = [
        bad_fields(
            stubs.authorizer.Check, CheckRequest(secret=secret, permission="jobs:read", project_id=project_id), stubs
        ),
        bad_fields(stubs.authorizer.ListPermissions, ListPermissionsRequest(secret=secret), stubs),
        bad_fields(stubs.authorizer.IntrospectToken, IntrospectTokenRequest(secret=secret), stubs),
    ]

    assert found == [told] * 3
    # A batch may leave its own secret out.
    batch = bad_fields(stubs.authorizer.BatchCheck, BatchCheckRequest(secret=secret, items=items), stubs)
    assert batch == (told if secret else [])


@pytest.mark.parametrize("count", [1, 199, 200, 201, 999, 1000])
def test_a_batch_of_up_to_1000_is_answered_in_order(stubs: Stubs, account: OwnAccount, count: int) -> None:
    first, second = account.project_ids
    issued = account.issue(on("job_admin", first))
    items = [BatchCheckItem(permission="jobs:write", project_id=(first, second)[number % 2]) for number in range(count)]

    answer = ask(stubs.authorizer.BatchCheck, BatchCheckRequest(secret=issued.secret, items=items), stubs.caller)

    assert [verdict(result) for result in answer.results] == [
        ("ALLOWED", "PROJECT_NOT_GRANTED")[number % 2] for number in range(count)
    ]
    assert {result.token_id for result in answer.results} == {issued.token.token_id}


@pytest.mark.parametrize(("count", "reason"), [(0, "FIELD_REQUIRED"), (1001, "TOO_MANY_ITEMS")])
def test_a_batch_of_none_or_more_is_refused(stubs: Stubs, count: int, reason: str) -> None:
    items = [BatchCheckItem(secret="x", permission="jobs:read", project_id="p")] * count

    assert bad_fields(stubs.authorizer.BatchCheck, BatchCheckRequest(items=items), stubs) == [("items", reason)]


# ---- the refusal itself


def worst(account: OwnAccount) -> Any:
    """As much as can be wrong with one request, told in as many words."""
    labels = {"東" * 62 + chr(0x4E00 + number): "\x01" for number in range(32)}
    return account.wanted(*[on_all("z" * 63 + "!")] * 100, display_name="x", labels=labels)


def unknown_sets(account: OwnAccount) -> Any:
    """The longest descriptions, since each tells what there is."""
    return account.wanted(*[on_all("z" * 63)] * 100)


@pytest.mark.parametrize("request_of", [worst, unknown_sets])
def test_hundreds_of_violations_fit_into_the_metadata_that_every_peer_takes(
    stubs: Stubs, still: OwnAccount, request_of: Callable[[OwnAccount], Any]
) -> None:
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        ask(stubs.tokens.IssueToken, request_of(still), stubs.admin)
    refusal = refused(stubs.tokens.IssueToken, request_of(still), stubs.admin)

    error: Any = caught.value
    (details,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    # As base64, and percent-encoded: what a peer without binary metadata gets. 32 bytes a pair are counted for the table.
    size = 4 * len(details) / 3 + 3 * len(error.details().encode()) + 6 * 32 + 100
    assert size < 8192
    assert refusal.violations[-1].description.startswith("and ")
    assert len(refusal.violations) > 5
