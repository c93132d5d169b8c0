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

import weakref
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, cast

import grpc

from doorward import _account_admin, _authorizer, _shared, _system_admin, _token_admin, errors
from doorward._caller import CHECK_TIMEOUT_S, LONGEST_TIMEOUT_S
from doorward._checks import batches_of, decision_of, decisions_of, demand_of
from doorward._threads_checks import Checks
from doorward._threads_client import AdminClient, Client, rpc
from doorward.decisions import Ask, DecidedBy, Decision, DenyReason
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
    from doorward.core.watch_tables import WatchBounds

__all__ = [
    "UNCHANGED",
    "AccountAdminClient",
    "Ask",
    "AuthorizerClient",
    "CreatedOperator",
    "DecidedBy",
    "Decision",
    "DenyReason",
    "DoorwardError",
    "IssuedToken",
    "LocalAuthorizer",
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


class LocalAuthorizer:
    """Decides in this process, from tokens fetched once and kept true by a stream from the server, under the same promise.

    While it holds a sub-lease, a token that was asked about before is decided from memory, without a call; everything
    else is asked of the server, and ends as there. `Decision.decided_by` tells which it was. The stream begins with the
    first check, or with `with`. See docs/callers.md for what it costs and when to take it.
    """

    def __init__(
        self,
        target: str | Sequence[str] | grpc.Channel,
        *,
        credential: str | os.PathLike[str] | Callable[[], str] | None = None,
        timeout: float | None = None,
        bounds: WatchBounds | None = None,
        **how: Unpack[Connecting],
    ) -> None:
        """As every client. `bounds`: the most that it keeps in memory, a `doorward.bounds.WatchBounds`."""
        from doorward._threads_local import Feed  # noqa: PLC0415 - who only asks servers need not load it

        self._server = AuthorizerClient(target, credential=credential, timeout=timeout, **how)
        self._feed = Feed(self._server._connection, self._server._caller, bounds)  # noqa: SLF001 - it shares them
        self._warm = self._feed.watching.warm
        # Who drops it without closing it leaves no stream behind.
        weakref.finalize(self, self._feed.abandon).atexit = False

    @property
    def server(self) -> AuthorizerClient:
        """The client that is asked where nothing can be decided here; it has the other calls, and this one's connection."""
        return self._server

    @property
    def holds_lease(self) -> bool:
        """Whether a check that begins now could be decided here: for health and metrics. No check needs to be spared."""
        return self._feed.watching.holds_lease

    def __enter__(self) -> Self:
        self._feed.begin()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def wait_ready(self, *, timeout: float | None = None) -> None:
        """Returns once it holds a sub-lease. Nobody must wait for that: until then the server is asked.

        Raises:
            DeadlineExceeded: not in time; the message says what the last stream ended with.
            ClientClosed: it was closed.
        """
        left = self._server._caller.budget(timeout)  # noqa: SLF001
        self._feed.begin()
        self._feed.wait_ready(left)

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
        """As `AuthorizerClient.check`, with the same promise and the same errors.

        A demand (`at_least_as_fresh`, `fully_consistent`) goes to the server.
        """
        if at_least_as_fresh is None and not fully_consistent and (timeout is None or 0 < timeout <= LONGEST_TIMEOUT_S):
            decision = self._warm(secret, permission, project_id, account_id)
            if decision is not None:
                return decision
        self._feed.begin()
        left = self._server._caller.budget(timeout)  # noqa: SLF001
        if at_least_as_fresh is None and not fully_consistent:
            asked = self._feed.watching.asked(secret, permission, project_id, account_id)
            if asked is not None:
                # Half of the time, so that the server can still be asked in the other.
                decided = self._feed.decide(((0, asked),), left() / 2)
                if decided:
                    return decided[0]
        return self._server.check(
            secret,
            permission,
            project_id=project_id,
            account_id=account_id,
            timeout=left(),
            at_least_as_fresh=at_least_as_fresh,
            fully_consistent=fully_consistent,
        )

    def check_many(
        self,
        secret: str,
        asks: Sequence[Ask],
        *,
        timeout: float | None = None,
        at_least_as_fresh: str | None = None,
        fully_consistent: bool = False,
    ) -> list[Decision]:
        """As `AuthorizerClient.check_many`, with the same promise and the same errors.

        What cannot be decided here is asked of the server together; a demand sends all of it there.
        """
        self._feed.begin()
        left = self._server._caller.budget(timeout)  # noqa: SLF001
        decisions: list[Decision | None] = [None] * len(asks)
        if at_least_as_fresh is None and not fully_consistent:
            decisions, others = self._feed.watching.warm_many(secret, asks)
            if others:
                for place, decision in (self._feed.decide(others, left() / 2)).items():
                    decisions[place] = decision
        missing = [place for place, decision in enumerate(decisions) if decision is None]
        if missing:
            answered = self._server.check_many(
                secret,
                [asks[place] for place in missing],
                timeout=left(),
                at_least_as_fresh=at_least_as_fresh,
                fully_consistent=fully_consistent,
            )
            for place, decision in zip(missing, answered, strict=True):
                decisions[place] = decision
        return [decision for decision in decisions if decision is not None]

    def close(self) -> None:
        """Gives up what it holds and tells the server so, that nobody waits for it; ends the connection.

        Checks that are under way end with ClientClosed.
        """
        self._feed.close()
        self._server.close()


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
