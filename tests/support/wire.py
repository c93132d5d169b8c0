"""Speaking to a real server over the wire: refusals taken apart, an account of the test's own, every RPC of the contract.

account = an_account(stubs)                                    # fresh ids: no test meets another's
issued = account.issue(on_all("job_admin"))
refusal = refused(stubs.tokens.GetToken, pb.GetTokenRequest(), stubs.admin)
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from doorward.core.secret import SecretKind, find_secret, generate
from doorward.v1 import account_admin_pb2, authorizer_pb2, system_admin_pb2, token_admin_pb2
from doorward.v1.types_pb2 import DenyReason, Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from doorward.v1.types_pb2 import Consistency, ServiceToken
    from tests.support.server import Stubs

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
Metadata: TypeAlias = "tuple[tuple[str, str], ...]"

TIMEOUT_S: Final = 30.0
NOBODY: Final[Metadata] = ()


# ---- calls and refusals


class Violation(NamedTuple):
    """One entry of a BadRequest."""

    field: str
    reason: str
    description: str


@dataclass(frozen=True)
class Refusal:
    """A status of ours, taken apart."""

    code: str
    message: str
    reason: str
    domain: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None

    @property
    def bad_fields(self) -> list[tuple[str, str]]:
        """Each bad field with its reason, sorted."""
        return sorted((violation.field, violation.reason) for violation in self.violations)

    @property
    def text(self) -> str:
        """Everything in it that somebody may read."""
        told = [self.message, self.reason, *self.metadata.keys(), *self.metadata.values()]
        return "\n".join([*told, *(part for violation in self.violations for part in violation)])


def ask(rpc: grpc.UnaryUnaryMultiCallable[Q, A], request: Q, metadata: Metadata, timeout_s: float = TIMEOUT_S) -> A:
    """The answer of one call."""
    return rpc(request, metadata=metadata, timeout=timeout_s)


def refused(
    rpc: grpc.UnaryUnaryMultiCallable[Q, A], request: Q, metadata: Metadata, timeout_s: float = TIMEOUT_S
) -> Refusal:
    """What the server refuses the call with; that it does is asserted."""
    with pytest.raises(grpc.RpcError) as caught:
        rpc(request, metadata=metadata, timeout=timeout_s)
    return refusal_of(caught.value)


def refusal_of(error: Any) -> Refusal:
    """The status of a failed call. It must be one of ours: with details, and ErrorInfo among them."""
    status = rpc_status.from_call(error)
    assert status is not None, f"a status without details: {error.code()} {error.details()!r}"
    refusal = refusal_in(status)
    assert refusal.code == error.code().name
    return refusal


def refusal_in(status: status_pb2.Status) -> Refusal:
    """The same of a google.rpc.Status, as in a result of a batch."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found = [detail.TypeName() for detail in status.details]
    assert sorted(set(found)) == sorted(found), f"a detail stands twice: {found}"
    assert "google.rpc.ErrorInfo" in found, f"no ErrorInfo: {found}"
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad) or detail.Unpack(retry), detail.TypeName()
    return Refusal(
        code_pb2.Code.Name(status.code),
        status.message,
        info.reason,
        info.domain,
        dict(info.metadata),
        tuple(Violation(found.field, found.reason, found.description) for found in bad.field_violations),
        retry.retry_delay.ToTimedelta().total_seconds() if "google.rpc.RetryInfo" in found else None,
    )


def raw(channel: grpc.Channel, path: str) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
    """An RPC that sends bytes and answers bytes."""
    return channel.unary_unary(path)


def raw_stream(channel: grpc.Channel, path: str) -> Any:
    """An RPC that sends an iterator of bytes and answers one."""
    return channel.stream_stream(path)


def code_of(call: Callable[[], object]) -> str:
    """The name of the status that a call ends with, OK among them."""
    try:
        call()
    except grpc.RpcError as error:
        code = error.code()
        assert isinstance(code, grpc.StatusCode)
        return str(code.name)
    return "OK"


def eventually(condition: Callable[[], bool], within_s: float = TIMEOUT_S) -> None:
    """Returns once `condition()` holds.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


# ---- the contract


class Rpc(NamedTuple):
    """One RPC, as the contract's descriptors have it."""

    name: str  # Service.Method
    path: str
    request_type: type[Message]
    response_type: type[Message]
    is_stream: bool


def every_rpc() -> list[Rpc]:
    """Every RPC of every service of the contract."""
    files = (account_admin_pb2, token_admin_pb2, authorizer_pb2, system_admin_pb2)
    methods = [
        (service, method)
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    return [
        Rpc(
            f"{service.name}.{method.name}",
            f"/{service.full_name}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
            method.client_streaming or method.server_streaming,
        )
        for service, method in methods
    ]


# ---- what tests are about


def fresh_id(prefix: str = "x") -> str:
    """An id that nobody has used."""
    return f"{prefix}-{uuid.uuid4().hex[:16]}"


def on_all(permission_set: str) -> Grant:
    """A grant on all projects."""
    return Grant(permission_set=permission_set, all_projects=True)


def on(permission_set: str, *project_ids: str) -> Grant:
    """A grant on named projects."""
    return Grant(permission_set=permission_set, project_ids=project_ids)


def mistyped(secret: str) -> str:
    """The same with another last character: its checksum does not fit."""
    return secret[:-1] + ("a" if secret[-1] != "a" else "b")


def another_of(secret: str) -> str:
    """A well-formed secret of the same id that is not the right one."""
    kind = SecretKind(secret.partition("_")[0])
    known = find_secret(secret, kind)
    assert known is not None
    return generate(kind, known.subject_id).reveal()


@dataclass(frozen=True)
class OwnAccount:
    """An account of the test's own, with projects."""

    stubs: Stubs = field(repr=False)
    account_id: str
    project_ids: tuple[str, ...]

    def issue(self, *grants: Grant, display_name: str = "a token", **fields: Any) -> token_admin_pb2.IssueTokenResponse:
        """Issues a token in it."""
        return ask(
            self.stubs.tokens.IssueToken, self.wanted(*grants, display_name=display_name, **fields), self.stubs.admin
        )

    def wanted(self, *grants: Grant, display_name: str = "a token", **fields: Any) -> token_admin_pb2.IssueTokenRequest:
        """The request that issues one."""
        return token_admin_pb2.IssueTokenRequest(
            account_id=self.account_id, display_name=display_name, grants=grants, **fields
        )

    def revoke(self, token_id: str, reason: str = "") -> token_admin_pb2.RevokeTokenResponse:
        """Revokes a token."""
        return ask(
            self.stubs.tokens.RevokeToken,
            token_admin_pb2.RevokeTokenRequest(token_id=token_id, reason=reason),
            self.stubs.admin,
        )

    def token(self, token_id: str) -> ServiceToken:
        """A token's record."""
        return ask(
            self.stubs.tokens.GetToken, token_admin_pb2.GetTokenRequest(token_id=token_id), self.stubs.admin
        ).token

    def token_ids(self) -> list[str]:
        """Every token that it ever had, newest first."""
        listed = ask(
            self.stubs.tokens.ListTokens,
            token_admin_pb2.ListTokensRequest(account_id=self.account_id, page_size=1000),
            self.stubs.admin,
        )
        assert not listed.next_page_token
        return [token.token_id for token in listed.tokens]

    def set_plan(self, plan: str) -> account_admin_pb2.PutAccountResponse:
        """Puts the account on a plan."""
        return ask(
            self.stubs.accounts.PutAccount,
            account_admin_pb2.PutAccountRequest(account_id=self.account_id, display_name="Own", plan=plan),
            self.stubs.admin,
        )

    def put_project(self, project_id: str, display_name: str = "A project") -> account_admin_pb2.PutProjectResponse:
        """Puts a project into it."""
        return ask(
            self.stubs.accounts.PutProject,
            account_admin_pb2.PutProjectRequest(
                account_id=self.account_id, project_id=project_id, display_name=display_name
            ),
            self.stubs.admin,
        )


def an_account(stubs: Stubs, *, plan: str = "enterprise", projects: int = 2) -> OwnAccount:
    """A new account with that many projects."""
    account_id = fresh_id("acc")
    account = OwnAccount(stubs, account_id, tuple(f"{account_id}-p{number}" for number in range(projects)))
    account.set_plan(plan)
    for project_id in account.project_ids:
        account.put_project(project_id)
    return account


def check(
    stubs: Stubs,
    secret: str,
    permission: str,
    *,
    project_id: str | None = None,
    account_id: str | None = None,
    consistency: Consistency | None = None,
) -> authorizer_pb2.CheckResponse:
    """One unary Check by the caller."""
    request = authorizer_pb2.CheckRequest(secret=secret, permission=permission, consistency=consistency)
    if project_id is not None:
        request.project_id = project_id
    if account_id is not None:
        request.account_id = account_id
    return ask(stubs.authorizer.Check, request, stubs.caller)


def verdict(answer: authorizer_pb2.CheckResponse | authorizer_pb2.BatchCheckResult) -> str:
    """ALLOWED, or the name of the reason; that the two fields agree is asserted."""
    assert answer.allowed is (answer.reason == DenyReason.DENY_REASON_UNSPECIFIED)
    return "ALLOWED" if answer.allowed else DenyReason.Name(answer.reason).removeprefix("DENY_REASON_")
