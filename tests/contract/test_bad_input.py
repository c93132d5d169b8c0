"""Requests that are wrong: each gets its code and reason, names every bad field at once, and leaves nothing behind.

A secret that is wrong is no bad input but a normal denial, as long as it could be a secret at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.account_admin_pb2 import GetAccountRequest, ListProjectsRequest, PutAccountRequest, PutProjectRequest
from doorward.v1.authorizer_pb2 import (
    BatchCheckRequest,
    CheckRequest,
    IntrospectTokenRequest,
    ListPermissionsRequest,
)
from doorward.v1.token_admin_pb2 import (
    GetTokenRequest,
    IssueTokenRequest,
    ListPermissionSetsRequest,
    ListTokensRequest,
    RevokeTokenRequest,
)
from doorward.v1.types_pb2 import Grant
from tests.support.wire import (
    OwnAccount,
    Refusal,
    an_account,
    fresh_id,
    on,
    on_all,
    refused,
)

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs

# Made at run time, of nobody: well formed, and not to be written down anywhere.
TOKEN_SECRET = generate(SecretKind.TOKEN, new_id()).reveal()
OPERATOR_SECRET = generate(SecretKind.OPERATOR, new_id()).reveal()
MEMBER = on_all("member")


class Wrong(NamedTuple):
    """Fields of a request that are wrong, and how each is told."""

    id: str
    fields: dict[str, Any]
    bad_fields: list[tuple[str, str]]


def rpc_for(stubs: Stubs, request: Any) -> Any:
    """The RPC that takes this request."""
    name = type(request).__name__.removesuffix("Request")
    services = (stubs.accounts, stubs.tokens, stubs.authorizer, stubs.system)
    return next(getattr(service, name) for service in services if hasattr(service, name))


def refusal_that_leaves_nothing(stubs: Stubs, rows: Rows, request: Any) -> Refusal:
    """What `request` is refused with; that nothing moved and everything is told is asserted."""
    before = rows.footprint()
    refusal = refused(rpc_for(stubs, request), request, stubs.admin)
    assert rows.footprint() == before
    assert refusal.domain == "doorward"
    assert all(violation.description for violation in refusal.violations)
    assert TOKEN_SECRET not in refusal.text
    assert OPERATOR_SECRET not in refusal.text
    return refusal


def is_told(refusal: Refusal, bad_fields: list[tuple[str, str]]) -> bool:
    """Whether these fields, and no others, are told as bad."""
    assert (refusal.code, refusal.reason, refusal.metadata) == ("INVALID_ARGUMENT", "INVALID_FIELDS", {})
    assert refusal.bad_fields == sorted(bad_fields)
    return True


ISSUES = [
    Wrong("no account", {"account_id": ""}, [("account_id", "FIELD_REQUIRED")]),
    Wrong("account with a space", {"account_id": "ac me"}, [("account_id", "FIELD_MALFORMED")]),
    Wrong("account with NUL", {"account_id": "ac\0me"}, [("account_id", "FIELD_MALFORMED")]),
    Wrong("account with a newline", {"account_id": "acme\n"}, [("account_id", "FIELD_MALFORMED")]),
    Wrong("account not ASCII", {"account_id": "äcme"}, [("account_id", "FIELD_MALFORMED")]),
    Wrong("a secret for an account", {"account_id": TOKEN_SECRET}, [("account_id", "FIELD_CONTAINS_SECRET")]),
    Wrong("no name", {"display_name": ""}, [("display_name", "FIELD_REQUIRED")]),
    Wrong("a blank name", {"display_name": " \t\n "}, [("display_name", "FIELD_REQUIRED")]),
    Wrong("NUL in the name", {"display_name": "a\0b"}, [("display_name", "FIELD_MALFORMED")]),
    Wrong("an escape in the name", {"display_name": "a\x1b[31mb"}, [("display_name", "FIELD_MALFORMED")]),
    Wrong("a secret as name", {"display_name": TOKEN_SECRET}, [("display_name", "FIELD_CONTAINS_SECRET")]),
    Wrong("a secret in the name", {"display_name": f"x{TOKEN_SECRET}y"}, [("display_name", "FIELD_CONTAINS_SECRET")]),
    Wrong("NUL in the description", {"description": "a\0"}, [("description", "FIELD_MALFORMED")]),
    Wrong(
        "an operator's secret in the description",
        {"description": f"use {OPERATOR_SECRET}!"},
        [("description", "FIELD_CONTAINS_SECRET")],
    ),
    Wrong("an empty label key", {"labels": {"": "x"}}, [("labels['']", "FIELD_MALFORMED")]),
    Wrong("a label key with a space", {"labels": {"a b": "x"}}, [("labels['a b']", "FIELD_MALFORMED")]),
    Wrong("a label key not ASCII", {"labels": {"é": "x"}}, [("labels['é']", "FIELD_MALFORMED")]),
    Wrong("a label key that ends badly", {"labels": {"a-": "x"}}, [("labels['a-']", "FIELD_MALFORMED")]),
    Wrong("NUL in a label", {"labels": {"a": "x\0"}}, [("labels['a']", "FIELD_MALFORMED")]),
    Wrong("a secret in a label", {"labels": {"a": TOKEN_SECRET}}, [("labels['a']", "FIELD_CONTAINS_SECRET")]),
    Wrong("a secret as label key", {"labels": {TOKEN_SECRET: "a"}}, [("labels", "FIELD_CONTAINS_SECRET")]),
    Wrong("no grants", {"grants": []}, [("grants", "FIELD_REQUIRED")]),
    Wrong("neither scope", {"grants": [Grant(permission_set="member")]}, [("grants[0]", "FIELD_REQUIRED")]),
    Wrong(
        "both scopes",
        {"grants": [Grant(permission_set="member", all_projects=True, project_ids=["p"])]},
        [("grants[0]", "FIELD_CONFLICT")],
    ),
    Wrong("a grant of nothing", {"grants": [on_all("")]}, [("grants[0].permission_set", "FIELD_REQUIRED")]),
    Wrong("a set in capitals", {"grants": [on_all("Member")]}, [("grants[0].permission_set", "FIELD_MALFORMED")]),
    Wrong("an unknown set", {"grants": [on_all("job_admn")]}, [("grants[0].permission_set", "PERMISSION_SET_UNKNOWN")]),
    Wrong("a set twice", {"grants": [MEMBER, MEMBER]}, [("grants[1].permission_set", "FIELD_DUPLICATE")]),
    Wrong(
        "a set and its alias",
        {"grants": [on_all("read_only"), on_all("readonly")]},
        [("grants[1].permission_set", "FIELD_DUPLICATE")],
    ),
    Wrong("an empty project", {"grants": [on("member", "")]}, [("grants[0].project_ids[0]", "FIELD_REQUIRED")]),
    Wrong("a project with NUL", {"grants": [on("member", "p\0")]}, [("grants[0].project_ids[0]", "FIELD_MALFORMED")]),
    Wrong(
        "a project twice",
        {"grants": [on("member", "p", "q", "p")]},
        [
            ("grants[0].project_ids[0]", "PROJECT_NOT_IN_ACCOUNT"),
            ("grants[0].project_ids[1]", "PROJECT_NOT_IN_ACCOUNT"),
            ("grants[0].project_ids[2]", "FIELD_DUPLICATE"),
        ],
    ),
    Wrong(
        "a secret for a project",
        {"grants": [on("member", OPERATOR_SECRET)]},
        [("grants[0].project_ids[0]", "FIELD_CONTAINS_SECRET")],
    ),
    Wrong(
        "an unknown project",
        {"grants": [on("member", "no-such")]},
        [("grants[0].project_ids[0]", "PROJECT_NOT_IN_ACCOUNT")],
    ),
    Wrong(
        "account-level permissions on a project",
        {"grants": [on("billing_admin", "no-such")]},
        [("grants[0]", "GRANT_WITHOUT_EFFECT"), ("grants[0].project_ids[0]", "PROJECT_NOT_IN_ACCOUNT")],
    ),
    Wrong("an expiry in the past", {"expire_time": Timestamp(seconds=1)}, [("expire_time", "FIELD_OUT_OF_RANGE")]),
    Wrong(
        "an expiry before Christ", {"expire_time": Timestamp(seconds=-(2**62))}, [("expire_time", "FIELD_OUT_OF_RANGE")]
    ),
    Wrong("no such nanoseconds", {"expire_time": Timestamp(nanos=10**9)}, [("expire_time", "FIELD_OUT_OF_RANGE")]),
    Wrong("negative nanoseconds", {"expire_time": Timestamp(nanos=-1)}, [("expire_time", "FIELD_OUT_OF_RANGE")]),
    Wrong("no span", {"ttl": Duration()}, [("ttl", "FIELD_OUT_OF_RANGE")]),
    Wrong("a span of no microsecond", {"ttl": Duration(nanos=400)}, [("ttl", "FIELD_OUT_OF_RANGE")]),
    Wrong("a negative span", {"ttl": Duration(seconds=-1)}, [("ttl", "FIELD_OUT_OF_RANGE")]),
    Wrong("a span of two minds", {"ttl": Duration(seconds=1, nanos=-1)}, [("ttl", "FIELD_OUT_OF_RANGE")]),
    Wrong("a span without end", {"ttl": Duration(seconds=2**62)}, [("ttl", "FIELD_OUT_OF_RANGE")]),
    Wrong("no such nanoseconds of a span", {"ttl": Duration(nanos=2**31 - 1)}, [("ttl", "FIELD_OUT_OF_RANGE")]),
]


@pytest.mark.parametrize("wrong", ISSUES, ids=lambda wrong: wrong.id)
def test_a_token_that_is_wrong_is_not_issued(stubs: Stubs, rows: Rows, still: OwnAccount, wrong: Wrong) -> None:
    fields = {"account_id": still.account_id, "display_name": "a token", "grants": [MEMBER], **wrong.fields}

    refusal = refusal_that_leaves_nothing(stubs, rows, IssueTokenRequest(**fields))

    assert is_told(refusal, wrong.bad_fields)
    assert still.token_ids() == []


def test_everything_that_is_wrong_with_a_token_is_told_at_once(stubs: Stubs, rows: Rows, still: OwnAccount) -> None:
    request = still.wanted(
        on_all("Member"),
        Grant(permission_set="job_admin"),
        Grant(permission_set="", all_projects=True, project_ids=["a b", "p", "p"]),
        display_name="",
        description=f"the secret is {TOKEN_SECRET}",
        labels={"-": "ok", "key": "x" * 256},
        ttl=Duration(seconds=-5),
    )

    refusal = refusal_that_leaves_nothing(stubs, rows, request)

    assert is_told(
        refusal,
        [
            ("display_name", "FIELD_REQUIRED"),
            ("description", "FIELD_CONTAINS_SECRET"),
            ("labels['-']", "FIELD_MALFORMED"),
            ("labels['key']", "FIELD_TOO_LONG"),
            ("grants[0].permission_set", "FIELD_MALFORMED"),
            ("grants[1]", "FIELD_REQUIRED"),
            ("grants[2]", "FIELD_CONFLICT"),
            ("grants[2].permission_set", "FIELD_REQUIRED"),
            ("grants[2].project_ids[0]", "FIELD_MALFORMED"),
            ("grants[2].project_ids[2]", "FIELD_DUPLICATE"),
            ("ttl", "FIELD_OUT_OF_RANGE"),
        ],
    )


def test_what_the_catalog_and_the_account_say_is_told_together_with_the_rest(
    stubs: Stubs, rows: Rows, account: OwnAccount
) -> None:
    other = an_account(stubs, projects=1)
    request = account.wanted(
        on("job_admin", other.project_ids[0]),
        on_all("no_such_set"),
        on("billing_admin", account.project_ids[0]),
        on("job_admin", account.project_ids[0]),
        display_name="x" * 201,
        expire_time=Timestamp(seconds=1),
    )

    refusal = refusal_that_leaves_nothing(stubs, rows, request)

    assert is_told(
        refusal,
        [
            ("display_name", "FIELD_TOO_LONG"),
            ("expire_time", "FIELD_OUT_OF_RANGE"),
            ("grants[0].project_ids[0]", "PROJECT_NOT_IN_ACCOUNT"),
            ("grants[1].permission_set", "PERMISSION_SET_UNKNOWN"),
            ("grants[2]", "GRANT_WITHOUT_EFFECT"),
            ("grants[3].permission_set", "FIELD_DUPLICATE"),
        ],
    )


def test_a_foreign_project_is_told_like_an_unknown_one(stubs: Stubs, rows: Rows, account: OwnAccount) -> None:
    foreign, unknown = an_account(stubs, projects=1).project_ids[0], fresh_id("nothing")

    told = [
        refusal_that_leaves_nothing(stubs, rows, account.wanted(on("member", project_id))).text.replace(project_id, "…")
        for project_id in (foreign, unknown)
    ]

    assert told[0] == told[1]


def test_a_set_that_the_plan_does_not_cover_is_a_precondition(stubs: Stubs, rows: Rows, account: OwnAccount) -> None:
    account.set_plan("team")

    refusal = refusal_that_leaves_nothing(stubs, rows, account.wanted(on_all("job_runner"), MEMBER))
    mixed = refusal_that_leaves_nothing(stubs, rows, account.wanted(on_all("job_runner"), on_all("no_such")))

    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "PERMISSION_SET_NOT_IN_PLAN")
    assert refusal.metadata == {"account_id": account.account_id, "plan": "team", "permission_set": "job_runner"}
    assert refusal.bad_fields == [("grants[0].permission_set", "PERMISSION_SET_NOT_IN_PLAN")]
    assert is_told(
        mixed,
        [
            ("grants[0].permission_set", "PERMISSION_SET_NOT_IN_PLAN"),
            ("grants[1].permission_set", "PERMISSION_SET_UNKNOWN"),
        ],
    )


OTHERS: list[tuple[Any, list[tuple[str, str]]]] = [
    (
        PutAccountRequest(),
        [("account_id", "FIELD_REQUIRED"), ("display_name", "FIELD_REQUIRED"), ("plan", "FIELD_REQUIRED")],
    ),
    (PutAccountRequest(account_id="x", display_name="X", plan="enterprize"), [("plan", "PLAN_UNKNOWN")]),
    (PutAccountRequest(account_id="x", display_name="X", plan="Team"), [("plan", "FIELD_MALFORMED")]),
    (
        PutAccountRequest(account_id="x", display_name="", plan="enterprize"),
        [("display_name", "FIELD_REQUIRED"), ("plan", "PLAN_UNKNOWN")],
    ),
    (
        PutAccountRequest(account_id=OPERATOR_SECRET, display_name=TOKEN_SECRET, plan="team"),
        [("account_id", "FIELD_CONTAINS_SECRET"), ("display_name", "FIELD_CONTAINS_SECRET")],
    ),
    (
        PutProjectRequest(),
        [("account_id", "FIELD_REQUIRED"), ("display_name", "FIELD_REQUIRED"), ("project_id", "FIELD_REQUIRED")],
    ),
    (
        PutProjectRequest(account_id="a b", project_id=TOKEN_SECRET, display_name=f"{TOKEN_SECRET}\0"),
        [
            ("account_id", "FIELD_MALFORMED"),
            ("display_name", "FIELD_MALFORMED"),
            ("project_id", "FIELD_CONTAINS_SECRET"),
        ],
    ),
    (GetAccountRequest(), [("account_id", "FIELD_REQUIRED")]),
    (GetAccountRequest(account_id=TOKEN_SECRET), [("account_id", "FIELD_CONTAINS_SECRET")]),
    (ListProjectsRequest(page_size=-1), [("account_id", "FIELD_REQUIRED"), ("page_size", "FIELD_OUT_OF_RANGE")]),
    (GetTokenRequest(), [("token_id", "FIELD_REQUIRED")]),
    (GetTokenRequest(token_id="a/b"), [("token_id", "FIELD_MALFORMED")]),
    (GetTokenRequest(token_id=TOKEN_SECRET), [("token_id", "FIELD_CONTAINS_SECRET")]),
    (
        ListTokensRequest(page_size=-1, state=77),  # type: ignore[arg-type]  # no such state
        [("account_id", "FIELD_REQUIRED"), ("page_size", "FIELD_OUT_OF_RANGE"), ("state", "FIELD_OUT_OF_RANGE")],
    ),
    (RevokeTokenRequest(), [("token_id", "FIELD_REQUIRED")]),
    (
        RevokeTokenRequest(token_id=OPERATOR_SECRET, reason=f"leaked: {TOKEN_SECRET}"),
        [("reason", "FIELD_CONTAINS_SECRET"), ("token_id", "FIELD_CONTAINS_SECRET")],
    ),
    (RevokeTokenRequest(token_id="a", reason="\0"), [("reason", "FIELD_MALFORMED")]),
    (
        ListPermissionSetsRequest(account_id="a b", page_size=-1),
        [("account_id", "FIELD_MALFORMED"), ("page_size", "FIELD_OUT_OF_RANGE")],
    ),
    (
        CheckRequest(),
        [("permission", "FIELD_REQUIRED"), ("resource", "FIELD_REQUIRED"), ("secret", "FIELD_REQUIRED")],
    ),
    (CheckRequest(secret="x", permission="jobs:read"), [("resource", "FIELD_REQUIRED")]),
    (CheckRequest(secret="x", permission="jobs:read", project_id=""), [("project_id", "FIELD_REQUIRED")]),
    (CheckRequest(secret="x", permission="jobs:read", project_id="a b"), [("project_id", "FIELD_MALFORMED")]),
    (
        CheckRequest(secret="x", permission="jobs:read", project_id=TOKEN_SECRET),
        [("project_id", "FIELD_CONTAINS_SECRET")],
    ),
    (CheckRequest(secret="x", permission="jobs:read", account_id="a"), [("account_id", "PERMISSION_LEVEL_MISMATCH")]),
    (
        CheckRequest(secret="x", permission="billing:read", project_id="p"),
        [("project_id", "PERMISSION_LEVEL_MISMATCH")],
    ),
    (CheckRequest(secret="x", permission="jobs:delete", project_id="p"), [("permission", "PERMISSION_UNKNOWN")]),
    (CheckRequest(secret="x", permission="nothing:read", project_id="p"), [("permission", "PERMISSION_UNKNOWN")]),
    (CheckRequest(secret="x", permission="jobs", project_id="p"), [("permission", "PERMISSION_UNKNOWN")]),
    (CheckRequest(secret="x", permission=" jobs:read", project_id="p"), [("permission", "PERMISSION_UNKNOWN")]),
    (CheckRequest(secret="x", permission="metadata:write", project_id="p"), [("permission", "PERMISSION_UNKNOWN")]),
    (CheckRequest(secret="x", permission=TOKEN_SECRET, project_id="p"), [("permission", "PERMISSION_UNKNOWN")]),
    (BatchCheckRequest(), [("items", "FIELD_REQUIRED")]),
    (ListPermissionsRequest(), [("secret", "FIELD_REQUIRED")]),
    (
        ListPermissionsRequest(secret="x" * 129, project_id=""),
        [("project_id", "FIELD_REQUIRED"), ("secret", "FIELD_TOO_LONG")],
    ),
    (IntrospectTokenRequest(), [("secret", "FIELD_REQUIRED")]),
    (IntrospectTokenRequest(secret="x" * 129), [("secret", "FIELD_TOO_LONG")]),
]


@pytest.mark.parametrize(
    ("request_", "bad_fields"),
    OTHERS,
    ids=[f"{type(request).__name__} {bad_fields[0]} {number}" for number, (request, bad_fields) in enumerate(OTHERS)],
)
def test_a_wrong_request_is_told_every_bad_field(
    stubs: Stubs, rows: Rows, request_: Any, bad_fields: list[tuple[str, str]]
) -> None:
    assert is_told(refusal_that_leaves_nothing(stubs, rows, request_), bad_fields)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (RevokeTokenRequest(token_id="nothing"), "TOKEN_NOT_FOUND"),
        (GetTokenRequest(token_id="nothing"), "TOKEN_NOT_FOUND"),
        (PutProjectRequest(account_id="nobody", project_id="p", display_name="P"), "ACCOUNT_NOT_FOUND"),
        (IssueTokenRequest(account_id="nobody", display_name="x", grants=[MEMBER]), "ACCOUNT_NOT_FOUND"),
    ],
)
def test_what_is_not_there_is_not_found_and_not_made(stubs: Stubs, rows: Rows, request_: Any, reason: str) -> None:
    refusal = refusal_that_leaves_nothing(stubs, rows, request_)

    assert (refusal.code, refusal.reason) == ("NOT_FOUND", reason)
    assert refusal.metadata in ({"token_id": "nothing"}, {"account_id": "nobody"})


def test_unknown_permissions_are_told_with_what_there_is(stubs: Stubs, rows: Rows) -> None:
    refusal = refusal_that_leaves_nothing(
        stubs, rows, CheckRequest(secret="x", permission="jobs:delete", project_id="p")
    )

    assert "jobs:read" in refusal.violations[0].description
    assert "jobs:write" in refusal.violations[0].description


# ---- on-behalf-of


@pytest.mark.parametrize(
    ("text", "reason"),
    [("x" * 256, "FIELD_TOO_LONG"), (f"for {TOKEN_SECRET}", "FIELD_CONTAINS_SECRET")],
    ids=["too long", "a secret"],
)
def test_a_change_on_behalf_of_what_is_no_name_is_refused(
    stubs: Stubs, rows: Rows, still: OwnAccount, text: str, reason: str
) -> None:
    before = rows.footprint()

    refusal = refused(stubs.tokens.IssueToken, still.wanted(MEMBER), (*stubs.admin, ("on-behalf-of", text)))

    assert is_told(refusal, [("on-behalf-of", reason)])
    assert TOKEN_SECRET not in refusal.text
    assert rows.footprint() == before
