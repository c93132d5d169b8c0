"""The clients for threads. `doorward.aio` has the same names and arguments, with `await`. Design section 8.

    from pathlib import Path
    from doorward.threads import AuthorizerClient

    with AuthorizerClient("127.0.0.1:50051", credential=Path("caller.token")) as authorizer:
        decision = authorizer.check(secret, "jobs:write", project_id="p1", timeout=0.2)
        if decision:  # true only if it allows; decision.reason says why not
            ...

Whatever is not answered is raised as a `doorward.errors.DoorwardError`: treat it as a no. Every call has a deadline. A
client is made anywhere, opens its connection with the first call, and may be used by any number of threads at once. It
ends with its process: after fork() the child needs one of its own, and a client that made no call before is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Unpack, cast

import grpc

from doorward import _account_admin, _authorizer, _shared, _system_admin, _token_admin, errors
from doorward._caller import CHECK_TIMEOUT_S
from doorward._checks import batches_of, decision_of, decisions_of, demand_of
from doorward._threads_checks import Checks
from doorward._threads_client import AdminClient, Client, rpc
from doorward.decisions import Ask, Decision, DenyReason
from doorward.errors import ClientClosed, DoorwardError
from doorward.records import (
    UNCHANGED,
    CreatedOperator,
    IssuedToken,
    RotatedToken,
    on_all_projects,
    on_projects,
)
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1.account_admin_pb2_grpc import AccountAdminStub
from doorward.v1.authorizer_pb2_grpc import AuthorizerStub
from doorward.v1.system_admin_pb2_grpc import SystemAdminStub
from doorward.v1.token_admin_pb2_grpc import TokenAdminStub

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from doorward._channel import Connecting

__all__ = [
    "UNCHANGED",
    "AccountAdminClient",
    "Ask",
    "AuthorizerClient",
    "CreatedOperator",
    "Decision",
    "DenyReason",
    "DoorwardError",
    "IssuedToken",
    "RotatedToken",
    "SystemAdminClient",
    "TokenAdminClient",
    "errors",
    "on_all_projects",
    "on_projects",
]

_CHECK: Final = f"/{_shared.AUTHORIZER}/Check"
_CHECK_MANY: Final = f"/{_shared.AUTHORIZER}/BatchCheck"


class AuthorizerClient(Client):
    """Asks whether a token may do something. Concurrent checks travel together by themselves."""

    _SERVICE = _shared.AUTHORIZER
    _USUAL_TIMEOUT_S = CHECK_TIMEOUT_S

    def __init__(
        self,
        target: str | Sequence[str] | grpc.Channel,
        *,
        credential: str | os.PathLike[str] | Callable[[], str] | None = None,
        timeout: float | None = None,
        coalesce: bool = True,
        **how: Unpack[Connecting],
    ) -> None:
        """As every client; `coalesce=False` sends every check alone."""
        super().__init__(target, credential=credential, timeout=timeout, **how)
        self._checks = Checks(self._send_one, self._send_many, is_shared=coalesce)
        self._raw_batch: Any = None

    @property
    def stub(self) -> AuthorizerStub:
        """The generated stub on this connection, for `call`."""
        return AuthorizerStub(self._connection.open())

    def check(
        self,
        secret: str,
        permission: str,
        *,
        project_id: str | None = None,
        account_id: str | None = None,
        timeout: float | None = None,
        at_least_as_fresh: str | None = None,
        fully_consistent: bool = False,
    ) -> Decision:
        """Decides whether the token with this secret has the permission on the project, or on the account.

        It begins now: a change that had returned before is in the answer. `at_least_as_fresh`: a revision that must be in
        it; `fully_consistent`: the log's end is read first. `timeout`: seconds.

        Raises:
            DoorwardError: it could not be decided; treat that as a no.
            ValueError: not exactly one of `project_id` and `account_id`.
        """
        seconds = self._caller.seconds(timeout)
        demand = demand_of(at_least_as_fresh, fully_consistent)
        self._connection.open()
        return self._checks.decide(secret, permission, project_id, account_id, seconds, demand)

    def check_many(
        self,
        secret: str,
        asks: Sequence[Ask],
        *,
        timeout: float | None = None,
        at_least_as_fresh: str | None = None,
        fully_consistent: bool = False,
    ) -> list[Decision]:
        """Decides several checks of one secret, in their order; one that could not be decided is a no with an `error`.

        More than 1,000 take several calls, one after the other, within the same deadline.

        Raises:
            DoorwardError: nothing could be decided.
        """
        left = self._caller.budget(timeout)
        method = self._connection.method(_CHECK_MANY, pb.BatchCheckResponse)
        decisions: list[Decision] = []
        for request in batches_of(secret, asks, demand_of(at_least_as_fresh, fully_consistent)):
            decisions += decisions_of(self._answered(method, request, left()), len(request.items))
        return decisions

    list_permissions = rpc(_authorizer.list_permissions)
    introspect_token = rpc(_authorizer.introspect_token)
    list_tokens_with_permission = rpc(_authorizer.list_tokens_with_permission)
    explain_check = rpc(_authorizer.explain_check)

    def close(self) -> None:
        """Ends the connection; checks that are under way or wait end with ClientClosed."""
        self._checks.close()
        super().close()

    def _send_one(self, request: pb.CheckRequest, seconds: float) -> Decision:
        method = self._connection.method(_CHECK, pb.CheckResponse)
        return decision_of(self._answered(method, request, seconds))

    def _send_many(
        self, request: bytes, asked: int, seconds: float, tell: Callable[[list[Decision] | DoorwardError], None]
    ) -> Callable[[], object]:
        channel = self._connection.open()
        if self._raw_batch is None:
            self._raw_batch = channel.unary_unary(_CHECK_MANY, None, pb.BatchCheckResponse.FromString)
        metadata = self._caller.metadata()
        try:
            future = self._raw_batch.future(request, timeout=seconds, metadata=metadata)
        except ValueError:
            # What grpc says of a channel that was closed since.
            if self._connection.is_closed:
                raise ClientClosed from None
            raise
        future.add_done_callback(lambda ended: tell(self._outcome(ended, asked)))
        return cast("Callable[[], object]", future.cancel)

    def _outcome(self, ended: Any, asked: int) -> list[Decision] | DoorwardError:
        try:
            return decisions_of(ended.result(), asked)
        except grpc.FutureCancelledError:
            return ClientClosed()  # or nobody waits for it any more
        except grpc.RpcError as error:
            return self._raised(error)
        except DoorwardError as error:
            return error


class TokenAdminClient(AdminClient):
    """Issues, changes, rotates and revokes tokens."""

    _SERVICE = "doorward.v1.TokenAdmin"

    @property
    def stub(self) -> TokenAdminStub:
        """The generated stub on this connection, for `call`."""
        return TokenAdminStub(self._connection.open())

    issue_token = rpc(_token_admin.issue_token)
    get_token = rpc(_token_admin.get_token)
    list_tokens = rpc(_token_admin.list_tokens)
    update_token = rpc(_token_admin.update_token)
    rotate_token = rpc(_token_admin.rotate_token)
    disable_token = rpc(_token_admin.disable_token)
    enable_token = rpc(_token_admin.enable_token)
    revoke_token = rpc(_token_admin.revoke_token)
    batch_revoke_tokens = rpc(_token_admin.batch_revoke_tokens)
    revoke_tokens_by_filter = rpc(_token_admin.revoke_tokens_by_filter)
    report_leaked_token = rpc(_token_admin.report_leaked_token)
    describe_self = rpc(_token_admin.describe_self)
    revoke_self = rpc(_token_admin.revoke_self)
    rotate_self = rpc(_token_admin.rotate_self)
    list_permission_sets = rpc(_token_admin.list_permission_sets)
    list_audit_events = rpc(_token_admin.list_audit_events)
    await_propagation = rpc(_token_admin.await_propagation)


class AccountAdminClient(AdminClient):
    """Puts, suspends and deletes accounts, and puts and deletes their projects."""

    _SERVICE = "doorward.v1.AccountAdmin"

    @property
    def stub(self) -> AccountAdminStub:
        """The generated stub on this connection, for `call`."""
        return AccountAdminStub(self._connection.open())

    put_account = rpc(_account_admin.put_account)
    get_account = rpc(_account_admin.get_account)
    list_accounts = rpc(_account_admin.list_accounts)
    suspend_account = rpc(_account_admin.suspend_account)
    resume_account = rpc(_account_admin.resume_account)
    delete_account = rpc(_account_admin.delete_account)
    put_project = rpc(_account_admin.put_project)
    list_projects = rpc(_account_admin.list_projects)
    delete_project = rpc(_account_admin.delete_project)
    preview_plan_change = rpc(_account_admin.preview_plan_change)


class SystemAdminClient(AdminClient):
    """Reads and applies the catalog, creates and revokes operators, shows the replicas."""

    _SERVICE = "doorward.v1.SystemAdmin"

    @property
    def stub(self) -> SystemAdminStub:
        """The generated stub on this connection, for `call`."""
        return SystemAdminStub(self._connection.open())

    get_catalog = rpc(_system_admin.get_catalog)
    preview_catalog = rpc(_system_admin.preview_catalog)
    apply_catalog = rpc(_system_admin.apply_catalog)
    create_operator = rpc(_system_admin.create_operator)
    list_operators = rpc(_system_admin.list_operators)
    revoke_operator = rpc(_system_admin.revoke_operator)
    list_replicas = rpc(_system_admin.list_replicas)
