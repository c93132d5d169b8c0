"""Every ErrorReason that this version can give, given: with the code and the metadata that the contract documents for it.

Most need a server in trouble: one of its own, with a short hold, whose database is locked, tripped and altered by SQL.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.account_admin_pb2 import GetAccountRequest, ListAccountsRequest, PutAccountRequest
from doorward.v1.authorizer_pb2 import CheckRequest, ListTokensWithPermissionRequest
from doorward.v1.error_reason_pb2 import ErrorReason
from doorward.v1.system_admin_pb2 import RevokeOperatorRequest
from doorward.v1.token_admin_pb2 import GetTokenRequest, RevokeTokenRequest
from doorward.v1.types_pb2 import Grant
from tests.support import troubles
from tests.support.server import bearer
from tests.support.wire import Refusal, on, on_all, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.support.frail import Frail

pytestmark = pytest.mark.usefixtures("recovered")

ROOT: Final = Path(__file__).parents[2]
CONTRACT: Final = (ROOT / "protos/doorward/v1/error_reason.proto").read_text(encoding="utf-8")
# Of RPCs and fields that a later version of the contract brings: this one has none that is not offered.
LATER: Final = {"NOT_IMPLEMENTED"}
HOW: Final[Mapping[str, Callable[[Frail], Refusal]]] = {
    "INVALID_FIELDS": lambda frail: refused(frail.stubs.tokens.GetToken, GetTokenRequest(), frail.stubs.admin),
    "MALFORMED_MESSAGE": troubles.malformed_message,
    "PAGE_TOKEN_INVALID": lambda frail: refused(
        frail.stubs.accounts.ListAccounts, ListAccountsRequest(page_token="x"), frail.stubs.admin
    ),
    "REQUEST_ID_REUSED": troubles.request_id_reused,
    "CREDENTIAL_MISSING": lambda frail: troubles.get_token(frail, ()),
    "CREDENTIAL_MALFORMED": lambda frail: troubles.get_token(frail, bearer("x")),
    "CREDENTIAL_UNRECOGNIZED": lambda frail: troubles.get_token(
        frail, bearer(generate(SecretKind.OPERATOR, new_id()).reveal())
    ),
    "CALLER_NOT_PERMITTED": lambda frail: troubles.get_token(frail, frail.stubs.caller),
    "EXCEEDS_CALLER": troubles.exceeds_caller,
    "ACCOUNT_NOT_FOUND": lambda frail: refused(
        frail.stubs.accounts.GetAccount, GetAccountRequest(account_id="nobody"), frail.stubs.admin
    ),
    "PROJECT_NOT_FOUND": lambda frail: refused(
        frail.stubs.authorizer.ListTokensWithPermission,
        ListTokensWithPermissionRequest(permission="jobs:read", project_id="nothing"),
        frail.stubs.admin,
    ),
    "TOKEN_NOT_FOUND": lambda frail: troubles.get_token(frail, frail.stubs.admin),
    "OPERATOR_NOT_FOUND": lambda frail: refused(
        frail.stubs.system.RevokeOperator, RevokeOperatorRequest(operator_id="nobody"), frail.stubs.admin
    ),
    "PROJECT_ID_TAKEN": troubles.project_id_taken,
    "ACCOUNT_DELETED": troubles.account_deleted,
    "ACCOUNT_NOT_ACTIVE": troubles.account_not_active,
    "TOKEN_IS_REVOKED": troubles.token_is_revoked,
    "TOKEN_IS_EXPIRED": troubles.token_is_expired,
    "PERMISSION_SET_NOT_IN_PLAN": troubles.not_in_plan,
    "REVISION_OF_ANOTHER_EPOCH": lambda frail: troubles.await_propagation(frail, "2.0"),
    "REVISION_BEYOND_END": troubles.beyond_end,
    "ETAG_MISMATCH": troubles.etag_mismatch,
    "CATALOG_IN_USE": troubles.catalog_in_use,
    "CATALOG_VERSION_MISMATCH": troubles.catalog_version_mismatch,
    "CHANGED_CONCURRENTLY": troubles.changed_concurrently,
    "TOO_MANY_LIVE_TOKENS": troubles.too_many_live_tokens,
    "HASHING_BUSY": troubles.hashing_busy,
    "TOO_MANY_REQUESTS": troubles.too_many_requests,
    "NO_LEASE": troubles.no_lease,
    "DATABASE_UNAVAILABLE": troubles.database_unavailable,
    "COMMIT_UNKNOWN": troubles.commit_unknown,
    "PROPAGATION_UNKNOWN": troubles.propagation_unknown,
    "REVISION_NOT_REACHED": troubles.revision_not_reached,
    "SHUTTING_DOWN": troubles.shutting_down,
    "PROPAGATION_NOT_AWAITED": troubles.propagation_not_awaited,
    "DEADLINE_TOO_SHORT": troubles.deadline_too_short,
    "COMMIT_NOT_AWAITED": troubles.commit_not_awaited,
    "METHOD_UNKNOWN": troubles.method_unknown,
    "INTERNAL": troubles.internal,
}
TWO_SCOPES: Final = Grant(permission_set="member", all_projects=True, project_ids=["p"])
FIELDS: Final[Mapping[str, Callable[[Frail], Any]]] = {
    "FIELD_REQUIRED": lambda _: GetTokenRequest(),
    "FIELD_MALFORMED": lambda _: GetTokenRequest(token_id="a b"),
    "FIELD_TOO_LONG": lambda _: GetTokenRequest(token_id="x" * 65),
    "FIELD_OUT_OF_RANGE": lambda _: ListAccountsRequest(page_size=-1),
    "FIELD_CONFLICT": lambda frail: frail.account.wanted(TWO_SCOPES),
    "FIELD_DUPLICATE": lambda frail: frail.account.wanted(on_all("member"), on_all("member")),
    "FIELD_CONTAINS_SECRET": lambda _: RevokeTokenRequest(
        token_id="x", reason=generate(SecretKind.TOKEN, new_id()).reveal()
    ),
    "TOO_MANY_ITEMS": lambda frail: frail.account.wanted(*[on_all("member")] * 101),
    "PERMISSION_UNKNOWN": lambda _: CheckRequest(secret="x", permission="jobs:delete", project_id="p"),
    "PERMISSION_LEVEL_MISMATCH": lambda _: CheckRequest(secret="x", permission="jobs:read", account_id="a"),
    "PERMISSION_SET_UNKNOWN": lambda frail: frail.account.wanted(on_all("job_admn")),
    "GRANT_WITHOUT_EFFECT": lambda frail: frail.account.wanted(on("billing_admin", frail.account.project_ids[0])),
    "PROJECT_NOT_IN_ACCOUNT": lambda frail: frail.account.wanted(on("member", "no-such-project")),
    "PLAN_UNKNOWN": lambda _: PutAccountRequest(account_id="a", display_name="A", plan="enterprize"),
}


def documented(reason: str) -> tuple[str, set[str]]:
    """The code and the metadata keys that the contract's comment gives a reason."""
    before, found, _ = CONTRACT.partition(f"  ERROR_REASON_{reason} = ")
    assert found
    lines = re.split(r"\n\n|;\n", before)[-1].splitlines()
    comment = " ".join(line.strip().removeprefix("//").strip() for line in lines).strip()
    metadata = re.search(r"Metadata: (.*?)\. Example:", comment)
    assert metadata, comment
    return comment.partition(".")[0], set(re.findall(r"`(\w+)`", metadata[1]))


def names(least: int, most: int) -> set[str]:
    numbers = [number for number in ErrorReason.values() if least <= number <= most]
    return {ErrorReason.Name(number).removeprefix("ERROR_REASON_") for number in numbers}


@pytest.fixture(scope="module", params=HOW)
def reason(request: pytest.FixtureRequest) -> str:
    """Each reason in turn; what it is given with is looked at from all sides before the next one."""
    return str(request.param)


@pytest.fixture(scope="module")
def refusal(frail: Frail, reason: str) -> Refusal:
    """A refusal that was given for this reason."""
    return HOW[reason](frail)


def test_each_reason_comes_with_its_code_and_metadata(reason: str, refusal: Refusal) -> None:
    code, keys = documented(reason)
    assert (refusal.reason, refusal.code, refusal.domain) == (reason, code, "doorward")
    assert set(refusal.metadata) == keys
    assert all(refusal.metadata.values())
    assert (refusal.retry_after_s is not None) is (code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
    assert refusal.message


def test_no_refusal_tells_anything_of_the_servers_inside(frail: Frail, refusal: Refusal) -> None:
    told = refusal.text.lower()

    inside = ["traceback", "asyncpg", "postgres", ".py", "select ", "relation", "column", "sqlstate", "exception", "0x"]
    inside += ["/tmp", "/home", "in the way", "last_used_time", str(frail.server.data_dir).lower()]  # noqa: S108
    assert [word for word in inside if word in told] == []


@pytest.mark.parametrize("reason", FIELDS)
def test_each_reason_of_a_field_is_told_of_it(frail: Frail, reason: str) -> None:
    request = FIELDS[reason](frail)
    name = type(request).__name__.removesuffix("Request")
    services = (frail.stubs.accounts, frail.stubs.tokens, frail.stubs.authorizer)
    rpc = next(getattr(service, name) for service in services if hasattr(service, name))

    refusal = refused(rpc, request, frail.stubs.admin)

    assert refusal.reason == "INVALID_FIELDS"
    assert reason in {violation.reason for violation in refusal.violations}


def test_every_reason_is_given_here_or_comes_later() -> None:
    assert not LATER & set(HOW)
    assert set(HOW) | LATER == names(1, 199)
    assert set(FIELDS) == names(200, 999)


def test_the_server_can_give_exactly_the_reasons_that_are_given_here() -> None:
    known = names(1, 999)
    sources = [
        path
        for layer in ("api", "service", "replica", "storage", "credentials", "catalog")
        for path in (ROOT / "server/doorward_server" / layer).glob("*.py")
    ]
    sources.append(ROOT / "server/doorward_server/errors.py")

    written = {
        node.value
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }

    assert written & known == set(HOW) | set(FIELDS)
