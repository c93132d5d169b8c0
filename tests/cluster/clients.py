"""A client of one replica: it begins calls, and what came of them stands in the history.

`Pending` is a call under way. A `Kind` is a mutation that takes away what a subject was allowed; the others are in `kinds.py`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from doorward.core.revision import Revision
from doorward.v1 import (
    account_admin_pb2,
    account_admin_pb2_grpc,
    authorizer_pb2,
    authorizer_pb2_grpc,
    system_admin_pb2_grpc,
    token_admin_pb2,
    token_admin_pb2_grpc,
)
from doorward.v1.types_pb2 import Consistency, DenyReason
from tests.cluster.history import OK, Check, History, Mutation, Subject, now_ns
from tests.support.wire import fresh_id, on

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.wire import Metadata

__all__ = ["ISSUE", "LOWER_PLAN", "PUT_PROJECT", "REVOKE", "TIMEOUT_S", "Client", "Kind", "Pending"]

R = TypeVar("R", Check, Mutation)

TIMEOUT_S: Final = 60.0
PATIENCE_S: Final = 60.0
# What every subject is asked about; of the set that it is granted, which a plan must be enterprise to cover.
PERMISSION: Final = "develop:write"
ALLOWED: Final = "ALLOWED"


class Pending(Generic[R]):
    """A call under way. `record` is filled in when it ends."""

    def __init__(self, record: R, future: Any, fill: Callable[[R, Any], None], true_now_ns: Callable[[], int]) -> None:
        self.record: R = record
        self.response: Any = None
        self._future = future
        self._fill: Callable[[R, Any], None] = fill
        self._true_now_ns = true_now_ns
        self._ended = threading.Event()
        future.add_done_callback(self._end)

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def result(self, within_s: float = PATIENCE_S) -> R:
        """The record, once it has ended.

        Raises:
            AssertionError: it did not end in time.
        """
        assert self._ended.wait(within_s), f"did not end: {self.record}"
        return self.record

    def ended_within(self, within_s: float) -> bool:
        """Whether it ends in that time."""
        return self._ended.wait(within_s)

    def leave(self) -> None:
        """The caller goes away."""
        self._future.cancel()

    def _end(self, future: Any) -> None:
        record = self.record
        try:
            self.response = future.result()
            self._fill(record, self.response)
        except grpc.FutureCancelledError:
            record.answered = "CANCELLED"
        except grpc.RpcError as error:
            _fill_failure(record, error)
        record.ended_ns = now_ns()
        if isinstance(record, Mutation):
            record.true_ended_ns = self._true_now_ns()
        self._ended.set()


class Client:
    """Calls one replica, with the deployment's credentials."""

    def __init__(self, replica: str, address: str, admin: Metadata, caller: Metadata, history: History) -> None:
        self.replica = replica
        self.history = history
        self._admin, self._caller = admin, caller
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.accounts = account_admin_pb2_grpc.AccountAdminStub(self.channel)
        self.tokens = token_admin_pb2_grpc.TokenAdminStub(self.channel)
        self.system = system_admin_pb2_grpc.SystemAdminStub(self.channel)
        self._authorizer = authorizer_pb2_grpc.AuthorizerStub(self.channel)

    def close(self) -> None:
        """Ends the channel."""
        self.channel.close()

    # ---- checks

    def begin_check(
        self,
        subject: Subject,
        *,
        fully: bool = False,
        at_least: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Pending[Check]:
        """Begins a check of the subject's question."""
        request = authorizer_pb2.CheckRequest(
            secret=subject.secret, permission=subject.permission, project_id=subject.project_id
        )
        if fully:
            request.consistency.CopyFrom(Consistency(fully_consistent=True))
        if at_least is not None:
            request.consistency.CopyFrom(Consistency(at_least_as_fresh=f"1.{at_least}"))
        record = self.history.begin_check(self.replica, subject, fully=fully)
        asked_by = self._caller if subject.asked_by is None else subject.asked_by
        future = self._authorizer.Check.future(request, metadata=asked_by, timeout=timeout_s)
        return Pending(record, future, _fill_check, self.history.true_now_ns)

    def check(self, subject: Subject, *, fully: bool = False, timeout_s: float = TIMEOUT_S) -> str:
        """What a check is answered: ALLOWED, a DenyReason or the code of the failure."""
        return self.begin_check(subject, fully=fully, timeout_s=timeout_s).result().answered

    # ---- mutations

    def begin_revoke(self, subject: Subject, timeout_s: float = TIMEOUT_S) -> Pending[Mutation]:
        """Begins a RevokeToken."""
        request = token_admin_pb2.RevokeTokenRequest(token_id=subject.token_id)
        return self.begin_mutation("RevokeToken", subject, "TOKEN_REVOKED", self.tokens.RevokeToken, request, timeout_s)

    def begin_put_account(
        self, account_id: str, plan: str, *, subject: Subject | None = None, timeout_s: float = TIMEOUT_S
    ) -> Pending[Mutation]:
        """Begins a PutAccount; a plan below enterprise suspends the subject's grant."""
        request = account_admin_pb2.PutAccountRequest(account_id=account_id, display_name="Own", plan=plan)
        makes = "GRANT_SUSPENDED_BY_PLAN" if plan == "team" else ALLOWED
        return self.begin_mutation("PutAccount", subject, makes, self.accounts.PutAccount, request, timeout_s)

    def begin_put_project(
        self, account_id: str, project_id: str, *, subject: Subject | None = None, timeout_s: float = TIMEOUT_S
    ) -> Pending[Mutation]:
        """Begins a PutProject."""
        request = account_admin_pb2.PutProjectRequest(
            account_id=account_id, project_id=project_id, display_name="A project"
        )
        return self.begin_mutation("PutProject", subject, ALLOWED, self.accounts.PutProject, request, timeout_s)

    def begin_issue(self, subject: Subject, *, everywhere: bool = False) -> Pending[Mutation]:
        """Begins an IssueToken of the subject's token, which has neither id nor secret yet."""
        grant = on(subject.permission_set, subject.project_id)
        if everywhere:
            grant.all_projects = True
            del grant.project_ids[:]
        request = token_admin_pb2.IssueTokenRequest(
            account_id=subject.account_id, display_name="a token", grants=(grant,)
        )
        return self.begin_mutation("IssueToken", subject, ALLOWED, self.tokens.IssueToken, request, TIMEOUT_S)

    def begin_await(self, number: int, timeout_s: float = TIMEOUT_S) -> Pending[Mutation]:
        """Begins an AwaitPropagation."""
        request = token_admin_pb2.AwaitPropagationRequest(revision=f"1.{number}")
        return self.begin_mutation("AwaitPropagation", None, "", self.tokens.AwaitPropagation, request, timeout_s)

    def begin_mutation(
        self,
        rpc: str,
        subject: Subject | None,
        makes: str,
        stub: Any,
        request: Any,
        timeout_s: float = TIMEOUT_S,
        *,
        done_by: Metadata | None = None,
    ) -> Pending[Mutation]:
        """Begins any mutation; `done_by`: a caller other than the deployment's admin."""
        record = self.history.begin_mutation(self.replica, rpc, subject, makes)
        future = stub.future(request, metadata=self._admin if done_by is None else done_by, timeout=timeout_s)
        return Pending(record, future, _fill_mutation, self.history.true_now_ns)

    def ask(self, stub: Any, request: Any) -> Any:
        """The answer of a call that is no part of the history."""
        return stub(request, metadata=self._admin, timeout=TIMEOUT_S)

    # ---- what checks are about

    def prepare(self, subject: Subject) -> None:
        """What a kind of mutation needs of its subjects, before their token is issued; nothing, unless `kinds.py` says so."""

    def subject(self, *, everywhere: bool = False) -> Subject:
        """A token with a grant on one project, or `everywhere` on all, in an account of its own."""
        account_id = fresh_id("acc")
        project_id = f"{account_id}-p"
        subject = Subject(account_id, project_id, "", "", PERMISSION, "TOKEN_UNRECOGNIZED")
        self.prepare(subject)
        _done(self.begin_put_account(account_id, "enterprise"))
        _done(self.begin_put_project(account_id, project_id))
        _done(self.begin_issue(subject, everywhere=everywhere))
        return subject

    def another_of(self, subject: Subject) -> Subject:
        """Another token of the same account."""
        other = Subject(subject.account_id, subject.project_id, "", "", PERMISSION, "TOKEN_UNRECOGNIZED")
        self.prepare(other)
        _done(self.begin_issue(other))
        return other


@dataclass(frozen=True)
class Kind:
    """A kind of mutation: how it begins, and what it makes of its subject."""

    rpc: str
    makes: str
    begin: Callable[[Client, Subject, float], Pending[Mutation]]
    prepare: Callable[[Client, Subject], None] = lambda _client, _subject: None
    # What it does not have: "again", a repeat that succeeds; "repeat", one that then changes nothing; "account", the
    # lock of an account.
    lacks: frozenset[str] = frozenset()

    def at(self, client: Client, subject: Subject, timeout_s: float = TIMEOUT_S) -> Pending[Mutation]:
        """Begins it."""
        return self.begin(client, subject, timeout_s)


REVOKE: Final = Kind("RevokeToken", "TOKEN_REVOKED", lambda client, subject, s: client.begin_revoke(subject, s))
LOWER_PLAN: Final = Kind(
    "PutAccount",
    "GRANT_SUSPENDED_BY_PLAN",
    lambda client, subject, s: client.begin_put_account(subject.account_id, "team", subject=subject, timeout_s=s),
)
ISSUE: Final = Kind("IssueToken", ALLOWED, lambda client, subject, _s: client.begin_issue(subject))
PUT_PROJECT: Final = Kind(
    "PutProject",
    ALLOWED,
    lambda client, subject, s: client.begin_put_project(
        subject.account_id, subject.project_id, subject=subject, timeout_s=s
    ),
)


def _done(pending: Pending[Mutation]) -> None:
    record = pending.result()
    assert record.answered == OK, record


def _fill_check(check: Check, response: authorizer_pb2.CheckResponse) -> None:
    check.is_decided = True
    check.number = Revision.parse(response.revision).number
    check.answered = ALLOWED if response.allowed else DenyReason.Name(response.reason).removeprefix("DENY_REASON_")


def _fill_mutation(mutation: Mutation, response: Any) -> None:
    mutation.answered = OK
    if not hasattr(response, "propagation"):
        return
    propagation = response.propagation
    mutation.number = Revision.parse(propagation.revision).number
    mutation.confirmed, mutation.expired = propagation.replicas_confirmed, propagation.replicas_expired
    mutation.elapsed_s = propagation.elapsed.ToTimedelta().total_seconds()
    if isinstance(response, token_admin_pb2.IssueTokenResponse) and mutation.subject is not None:
        mutation.subject.token_id, mutation.subject.secret = response.token.token_id, response.secret


def _fill_failure(record: Check | Mutation, error: Any) -> None:
    record.answered = error.code().name
    if isinstance(record, Check):
        # That nobody is known by this credential is an answer; what else fails decided nothing.
        record.is_decided = record.answered == "UNAUTHENTICATED"
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in () if status is None else status.details:
        if detail.Unpack(info):
            record.why = info.reason
            if info.metadata.get("revision"):
                record.number = Revision.parse(info.metadata["revision"]).number
