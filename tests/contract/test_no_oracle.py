"""To a service token, another account's ids are unknown ones: the same code, text and details, over every RPC it may call.

A row is a request with a place for one id, of an account, a token, a project or an actor. It is sent with the ids of
another account in every state they can be in, and with one that nobody has; the answers must be equal but for the id.
An RPC without a row fails here: add one where it names anything.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import grpc
import pytest
from google.protobuf import duration_pb2, json_format

from doorward.core.secret import new_id
from doorward.v1 import account_admin_pb2 as account_pb
from doorward.v1 import token_admin_pb2 as pb
from doorward.v1.authorizer_pb2 import ExplainCheckRequest, ListTokensWithPermissionRequest
from doorward.v1.types_pb2 import ServiceToken
from doorward_server.api.access import TABLE
from doorward_server.storage.audit_lists import MOST_READ
from tests.support.server import bearer
from tests.support.wire import OwnAccount, Refusal, an_account, ask, every_rpc, fresh_id, on, on_all, raw, refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from tests.support.rows import Rows
    from tests.support.server import Stubs
    from tests.support.wire import Metadata

RPCS = {rpc.name: rpc for rpc in every_rpc()}
# No id of an account, token or project stands in these: a token acts on itself, or names a revision.
NAMELESS: Final = {
    "TokenAdmin.AwaitPropagation",
    "TokenAdmin.DescribeSelf",
    "TokenAdmin.RevokeSelf",
    "TokenAdmin.RotateSelf",
}
SOON: Final = duration_pb2.Duration(seconds=3600)
MANY_REFUSALS: Final = """
INSERT INTO refusals (time, account_id, actor, action, subject, reason, peer)
SELECT now(), $1, $2, 'GetToken', $2, 'CALLER_NOT_PERMITTED', '' FROM generate_series(1, $3)
"""
LONG_AGO: Final = duration_pb2.Duration(seconds=-3600)


@dataclass(frozen=True)
class Home:
    """The account that asks; `token_id`: a token of it."""

    account: OwnAccount
    token_id: str

    @property
    def account_id(self) -> str:
        return self.account.account_id

    @property
    def project_id(self) -> str:
        return self.account.project_ids[0]


class Row(NamedTuple):
    """A request with a place for an id of this kind. `is_right`: with the home's own id it is answered."""

    kind: str
    request: Callable[[Home, str], Message]
    is_right: bool = True


def _issue(home: Home, account_id: str, **fields: Any) -> pb.IssueTokenRequest:
    grants = fields.pop("grants", [on("job_viewer", home.project_id)])
    return pb.IssueTokenRequest(**{"account_id": account_id, "display_name": "n", "grants": grants, **fields})


def _update(token: ServiceToken, *paths: str, **fields: Any) -> pb.UpdateTokenRequest:
    request = pb.UpdateTokenRequest(token=token, **fields)
    request.update_mask.paths.extend(paths)
    return request


def _all_wrong(account_id: str) -> dict[str, Any]:
    """What is wrong in every way that a list can be asked."""
    return {"account_id": account_id, "page_size": -1, "page_token": "made up"}


def _audit(
    kind: pb.AuditEventKind.ValueType, field: str, prefix: str, home: Home, asked: str
) -> pb.ListAuditEventsRequest:
    request = pb.ListAuditEventsRequest(account_id=home.account_id, kind=kind)
    setattr(request, field, prefix + asked)
    return request


ROWS: Final[dict[str, tuple[Row, ...]]] = {
    "TokenAdmin.IssueToken": (
        Row("account", _issue),
        Row("account", lambda home, asked: _issue(home, asked, validate_only=True)),
        Row("account", lambda home, asked: _issue(home, asked, grants=[on_all("account_admin")])),
        Row("account", lambda home, asked: _issue(home, asked, display_name="", ttl=LONG_AGO), is_right=False),
        Row("account", lambda home, asked: _issue(home, asked, grants=[on_all("no_such")]), is_right=False),
        Row("account", lambda home, asked: _issue(home, asked, request_id="no uuid"), is_right=False),
        Row("project", lambda home, asked: _issue(home, home.account_id, grants=[on("job_viewer", asked)])),
        Row(
            "project",
            lambda home, asked: _issue(home, home.account_id, display_name="", grants=[on("job_viewer", asked)]),
            is_right=False,
        ),
    ),
    "TokenAdmin.GetToken": (Row("token", lambda _, asked: pb.GetTokenRequest(token_id=asked)),),
    "TokenAdmin.ListTokens": (
        Row("account", lambda _, asked: pb.ListTokensRequest(account_id=asked)),
        Row("account", lambda _, asked: pb.ListTokensRequest(account_id=asked, permission_set="job_viewer")),
        Row("account", lambda _, asked: pb.ListTokensRequest(account_id=asked, labels={"team": "data"})),
        Row("account", lambda _, asked: pb.ListTokensRequest(**_all_wrong(asked)), is_right=False),
        Row("project", lambda home, asked: pb.ListTokensRequest(account_id=home.account_id, project_id=asked)),
        Row(
            "token",
            lambda home, asked: pb.ListTokensRequest(account_id=home.account_id, created_by=f"token:{asked}"),
        ),
    ),
    "TokenAdmin.UpdateToken": (
        Row("token", lambda _, asked: _update(ServiceToken(token_id=asked, display_name="new"), "display_name")),
        Row("token", lambda _, asked: _update(ServiceToken(token_id=asked, grants=[on_all("account_admin")]), "grants")),
        Row(
            "token",
            lambda _, asked: _update(ServiceToken(token_id=asked, description="d"), "description", validate_only=True),
        ),
        Row(
            "token",
            lambda _, asked: _update(ServiceToken(token_id=asked, etag='"1"', description="d"), "description"),
            is_right=False,
        ),
        Row("token", lambda _, asked: _update(ServiceToken(token_id=asked), "display_name", "state"), is_right=False),
        Row(
            "token",
            lambda _, asked: _update(ServiceToken(token_id=asked, grants=[on_all("no_such")]), "grants"),
            is_right=False,
        ),
        Row(
            "project",
            lambda home, asked: _update(
                ServiceToken(token_id=home.token_id, grants=[on("job_viewer", asked)]), "grants"
            ),
        ),
    ),
    "TokenAdmin.RotateToken": (
        Row("token", lambda _, asked: pb.RotateTokenRequest(token_id=asked, overlap=SOON)),
        Row("token", lambda _, asked: pb.RotateTokenRequest(token_id=asked, overlap=SOON, validate_only=True)),
        Row("token", lambda _, asked: pb.RotateTokenRequest(token_id=asked), is_right=False),
    ),
    "TokenAdmin.DisableToken": (Row("token", lambda _, asked: pb.DisableTokenRequest(token_id=asked)),),
    "TokenAdmin.EnableToken": (Row("token", lambda _, asked: pb.EnableTokenRequest(token_id=asked)),),
    "TokenAdmin.RevokeToken": (
        Row("token", lambda _, asked: pb.RevokeTokenRequest(token_id=asked)),
        Row("token", lambda _, asked: pb.RevokeTokenRequest(token_id=asked, reason="r" * 501), is_right=False),
    ),
    "TokenAdmin.BatchRevokeTokens": (
        Row("account", lambda home, asked: pb.BatchRevokeTokensRequest(account_id=asked, token_ids=[home.token_id])),
        Row("account", lambda _, asked: pb.BatchRevokeTokensRequest(account_id=asked), is_right=False),
        Row(
            "token", lambda home, asked: pb.BatchRevokeTokensRequest(account_id=home.account_id, token_ids=[asked])
        ),
        Row(
            "token",
            lambda home, asked: pb.BatchRevokeTokensRequest(
                account_id=home.account_id, token_ids=[asked], validate_only=True
            ),
        ),
    ),
    "TokenAdmin.RevokeTokensByFilter": (
        Row("account", lambda _, asked: pb.RevokeTokensByFilterRequest(account_id=asked, display_name_prefix="zzz")),
        Row(
            "account",
            lambda _, asked: pb.RevokeTokensByFilterRequest(account_id=asked, all_tokens=True, validate_only=True),
        ),
        Row("account", lambda _, asked: pb.RevokeTokensByFilterRequest(account_id=asked), is_right=False),
        Row(
            "project",
            lambda home, asked: pb.RevokeTokensByFilterRequest(
                account_id=home.account_id, project_id=asked, display_name_prefix="zzz"
            ),
        ),
        Row(
            "token",
            lambda home, asked: pb.RevokeTokensByFilterRequest(
                account_id=home.account_id, created_by=f"token:{asked}", validate_only=True
            ),
        ),
        Row(
            "token",
            lambda home, asked: pb.RevokeTokensByFilterRequest(
                account_id=home.account_id, obtained_by=asked, include_descendants=True, validate_only=True
            ),
        ),
        Row(
            "token", lambda home, asked: pb.RevokeTokensByFilterRequest(account_id=home.account_id, obtained_by=asked)
        ),
    ),
    "TokenAdmin.ListPermissionSets": (
        Row("account", lambda _, asked: pb.ListPermissionSetsRequest(account_id=asked)),
        Row("account", lambda _, asked: pb.ListPermissionSetsRequest(**_all_wrong(asked)), is_right=False),
    ),
    "TokenAdmin.ListAuditEvents": (
        Row("account", lambda _, asked: pb.ListAuditEventsRequest(account_id=asked)),
        Row("account", lambda _, asked: pb.ListAuditEventsRequest(account_id=asked, kind=pb.AUDIT_EVENT_KIND_REFUSAL)),
        Row("account", lambda _, asked: pb.ListAuditEventsRequest(**_all_wrong(asked)), is_right=False),
        *(
            Row("token", functools.partial(_audit, kind, "token_id", ""))
            for kind in (pb.AUDIT_EVENT_KIND_CHANGE, pb.AUDIT_EVENT_KIND_REFUSAL)
        ),
        *(
            Row("token", functools.partial(_audit, kind, "actor", "token:"))
            for kind in (pb.AUDIT_EVENT_KIND_CHANGE, pb.AUDIT_EVENT_KIND_REFUSAL)
        ),
        Row("token", lambda _, asked: pb.ListAuditEventsRequest(token_id=asked), is_right=False),
    ),
    "Authorizer.ListTokensWithPermission": (
        Row(
            "account",
            lambda _, asked: ListTokensWithPermissionRequest(permission="billing:read", account_id=asked),
        ),
        Row("project", lambda _, asked: ListTokensWithPermissionRequest(permission="jobs:read", project_id=asked)),
        Row(
            "account",
            lambda _, asked: ListTokensWithPermissionRequest(permission="jobs:read", account_id=asked),
            is_right=False,
        ),
        Row(
            "project",
            lambda _, asked: ListTokensWithPermissionRequest(permission="no:such", project_id=asked),
            is_right=False,
        ),
    ),
    "Authorizer.ExplainCheck": (
        Row(
            "token",
            lambda home, asked: ExplainCheckRequest(
                token_id=asked, permission="jobs:read", project_id=home.project_id
            ),
        ),
        Row("token", lambda _, asked: ExplainCheckRequest(token_id=asked, permission="no:such"), is_right=False),
        Row(
            "project",
            lambda home, asked: ExplainCheckRequest(token_id=home.token_id, permission="jobs:read", project_id=asked),
        ),
        Row(
            "account",
            lambda home, asked: ExplainCheckRequest(token_id=home.token_id, permission="billing:read", account_id=asked),
        ),
    ),
}  # fmt: skip

# Ids of one foreign account, by kind, for each state in which they can be.
Ids: TypeAlias = "dict[str, str]"


def _ids_of(account: OwnAccount, token_id: str) -> Ids:
    return {"account": account.account_id, "project": account.project_ids[0], "token": token_id}


@pytest.fixture(scope="module")
def foreign(stubs: Stubs, rows: Rows) -> dict[str, Ids]:
    """Another account's ids, in every state. The token of a `busy` one is in more records than a page may look at."""
    states: dict[str, Ids] = {}
    for state in ("live", "busy", "revoked", "disabled", "expired", "suspended", "deleted"):
        account = an_account(stubs, projects=1)
        fields: dict[str, Any] = {"ttl": duration_pb2.Duration(nanos=1_000_000)} if state == "expired" else {}
        token_id = account.issue(on_all("account_admin"), labels={"team": "data"}, **fields).token.token_id
        states[state] = _ids_of(account, token_id)
        if state == "busy":
            rows.fetch(MANY_REFUSALS, account.account_id, f"token:{token_id}", 2 * MOST_READ)
        elif state == "revoked":
            account.revoke(token_id)
        elif state == "disabled":
            ask(stubs.tokens.DisableToken, pb.DisableTokenRequest(token_id=token_id), stubs.admin)
        elif state == "suspended":
            request = account_pb.SuspendAccountRequest(account_id=account.account_id)
            ask(stubs.accounts.SuspendAccount, request, stubs.admin)
        elif state == "deleted":
            ask(
                stubs.accounts.DeleteAccount,
                account_pb.DeleteAccountRequest(account_id=account.account_id),
                stubs.admin,
            )
    return states


@pytest.fixture
def home(stubs: Stubs) -> Home:
    """The account that asks: a new one each time, whose own audit does not show yet what it asked about."""
    account = an_account(stubs, projects=1)
    return Home(account, account.issue(on("job_viewer", account.project_ids[0])).token.token_id)


def asking(home: Home, who: str) -> Metadata:
    """A token there: one that may change tokens, one that may see them, or one that may do neither."""
    permission_set = {"writes": "account_admin", "reads": "account_viewer", "neither": "job_admin"}[who]
    return bearer(home.account.issue(on_all(permission_set)).secret)


def told(stubs: Stubs, name: str, request: Message, metadata: Metadata, asked: str) -> object:
    """Everything that the caller is told, with the id that it asked about written as `<id>`."""
    rpc = RPCS[name]
    try:
        answer = rpc.response_type.FromString(
            raw(stubs.channel, rpc.path)(request.SerializeToString(), metadata=metadata, timeout=30)
        )
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        return replace(
            refusal,
            message=refusal.message.replace(asked, "<id>"),
            metadata={key: value.replace(asked, "<id>") for key, value in refusal.metadata.items()},
            violations=tuple(
                violation._replace(description=violation.description.replace(asked, "<id>"))
                for violation in refusal.violations
            ),
        )
    for moving in ("propagation", "revision"):
        if moving in rpc.response_type.DESCRIPTOR.fields_by_name:
            answer.ClearField(moving)
    return json_format.MessageToJson(answer).replace(asked, "<id>")


def unknown_id(kind: str) -> str:
    return new_id() if kind == "token" else fresh_id("acc")


def test_every_rpc_that_a_token_may_call_has_its_rows() -> None:
    callable_by_tokens = {rpc.name for rpc in RPCS.values() if TABLE[rpc.path].tokens}

    assert {*ROWS, *NAMELESS} == callable_by_tokens
    assert not NAMELESS & set(ROWS)


@pytest.mark.parametrize("who", ["writes", "reads", "neither"])
@pytest.mark.parametrize("name", ROWS)
def test_a_foreign_id_is_answered_as_one_that_nobody_has(
    stubs: Stubs, home: Home, foreign: dict[str, Ids], name: str, who: str
) -> None:
    asker = asking(home, who)

    for place, row in enumerate(ROWS[name]):
        asked = unknown_id(row.kind)
        expected = told(stubs, name, row.request(home, asked), asker, asked)
        for state, ids in foreign.items():
            found = told(stubs, name, row.request(home, ids[row.kind]), asker, ids[row.kind])
            assert found == expected, (name, place, state)


@pytest.mark.parametrize("name", ROWS)
def test_a_foreign_account_or_token_is_not_found(stubs: Stubs, home: Home, foreign: dict[str, Ids], name: str) -> None:
    """The first row of each is right but for that."""
    row = ROWS[name][0]
    asked = foreign["live"][row.kind]

    found = told(stubs, name, row.request(home, asked), asking(home, "writes"), asked)

    assert isinstance(found, Refusal)
    assert found.code == "NOT_FOUND"
    reason, key = {"account": ("ACCOUNT_NOT_FOUND", "account_id"), "token": ("TOKEN_NOT_FOUND", "token_id")}[row.kind]
    assert (found.reason, found.metadata) == (reason, {key: "<id>"})


@pytest.mark.parametrize("name", ROWS)
def test_with_an_id_of_its_own_each_right_row_is_answered(stubs: Stubs, name: str) -> None:
    """Else a row that is wrong in itself would prove nothing."""
    for place, row in enumerate(ROWS[name]):
        account = an_account(stubs, projects=1)
        home = Home(account, account.issue(on("job_viewer", account.project_ids[0])).token.token_id)
        metadata = bearer(account.issue(on_all("account_admin"), allow_self_rotation=True).secret)
        own = _ids_of(account, home.token_id)[row.kind]

        answer = told(stubs, name, row.request(home, own), metadata, own)

        assert isinstance(answer, str) is row.is_right, (name, place, answer)
