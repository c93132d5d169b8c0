"""How each ErrorReason comes about at a server: functions from a `Frail` to the refusal that was given."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from doorward.core.revision import Revision
from doorward.v1.account_admin_pb2 import PutProjectRequest
from doorward.v1.authorizer_pb2 import CheckRequest
from doorward.v1.system_admin_pb2 import ApplyCatalogRequest
from doorward.v1.token_admin_pb2 import (
    AwaitPropagationRequest,
    GetTokenRequest,
    ReportLeakedTokenRequest,
    RotateTokenRequest,
    UpdateTokenRequest,
)
from doorward.v1.types_pb2 import Consistency, ServiceToken, TokenState
from doorward_server.api.errors import status_of
from doorward_server.catalog.load import builtin_text
from doorward_server.errors import Unavailable
from doorward_server.replica.tasks import Tasks
from doorward_server.service.report_leaked import REPORTS_AT_ONCE
from tests.support.server import bearer
from tests.support.wire import (
    NOBODY,
    OwnAccount,
    Refusal,
    an_account,
    another_of,
    ask,
    check,
    eventually,
    fresh_id,
    on_all,
    raw,
    refusal_in,
    refusal_of,
    refused,
)

if TYPE_CHECKING:
    from tests.support.frail import Frail


def malformed_message(frail: Frail) -> Refusal:
    """Bytes that are no message."""
    with pytest.raises(grpc.RpcError) as caught:
        raw(frail.stubs.channel, "/doorward.v1.TokenAdmin/GetToken")(b"\x0a", metadata=frail.stubs.admin, timeout=20)
    return refusal_of(caught.value)


def method_unknown(frail: Frail) -> Refusal:
    """A method that the contract does not have."""
    with pytest.raises(grpc.RpcError) as caught:
        raw(frail.stubs.channel, "/doorward.v1.TokenAdmin/MintToken")(b"", metadata=frail.stubs.admin, timeout=20)
    return refusal_of(caught.value)


def get_token(frail: Frail, metadata: Any) -> Refusal:
    """A read, by whoever presents this."""
    return refused(frail.stubs.tokens.GetToken, GetTokenRequest(token_id="nothing"), metadata)


def await_propagation(frail: Frail, revision: str) -> Refusal:
    """A wait for this revision."""
    return refused(frail.stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision=revision), frail.stubs.admin)


def project_id_taken(frail: Frail) -> Refusal:
    """Another account's project."""
    other = an_account(frail.stubs, projects=0)
    request = PutProjectRequest(account_id=other.account_id, project_id=frail.account.project_ids[0], display_name="X")
    return refused(frail.stubs.accounts.PutProject, request, frail.stubs.admin)


def in_state(frail: Frail, state: str) -> OwnAccount:
    """An account in a state that no RPC of this version leads to."""
    account = an_account(frail.stubs, projects=0)
    frail.rows.fetch("UPDATE accounts SET state = $2 WHERE account_id = $1", account.account_id, state)
    return account


def account_deleted(frail: Frail) -> Refusal:
    """A change of an account that is deleted."""
    account = in_state(frail, "deleted")
    return refused(frail.stubs.accounts.PutAccount, frail.put_account(account.account_id), frail.stubs.admin)


def account_not_active(frail: Frail) -> Refusal:
    """A token for an account that is suspended."""
    account = in_state(frail, "suspended")
    return refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)


def not_in_plan(frail: Frail) -> Refusal:
    """A set that the plan does not cover."""
    account = an_account(frail.stubs, plan="team", projects=0)
    return refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("job_runner")), frail.stubs.admin)


def catalog_in_use(frail: Frail) -> Refusal:
    """A catalog that lacks nearly everything, while a token and an account use something of each kind."""
    frail.account.issue(on_all("job_admin"))
    lacking = """
        schema = 1
        version = "lacking"
        account_resources.billing = { title = "Billing", actions = ["read"] }
        permission_sets.payer = { title = "Payer", read = ["billing"] }
        plans.free = { title = "Free", permission_sets = ["*"] }
    """
    return refused(frail.stubs.system.ApplyCatalog, ApplyCatalogRequest(catalog=lacking), frail.stubs.admin)


def catalog_version_mismatch(frail: Frail) -> Refusal:
    """A catalog in place of one that is not in force."""
    request = ApplyCatalogRequest(catalog=builtin_text(), expected_catalog_version=999)
    return refused(frail.stubs.system.ApplyCatalog, request, frail.stubs.admin)


def beyond_end(frail: Frail) -> Refusal:
    """A revision that no change has yet."""
    end = Revision.parse(frail.account.put_project(fresh_id("p")).propagation.revision)
    return await_propagation(frail, f"{end.epoch}.{end.number + 1000}")


def changed_concurrently(frail: Frail) -> Refusal:
    """Another transaction is in the way each time."""
    with frail.tripped("RAISE EXCEPTION 'in the way' USING ERRCODE = '40001';", "TRIGGER trip BEFORE INSERT"):
        return refused(frail.stubs.accounts.PutAccount, frail.put_account(), frail.stubs.admin)


def too_many_live_tokens(frail: Frail) -> Refusal:
    """One token more than an account may have."""
    account = an_account(frail.stubs, projects=0)
    for _ in range(2):
        account.issue(on_all("member"))
    return refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)


def hashing_busy(frail: Frail) -> Refusal:
    """Wrong secrets, one after the other, for a token that no digest can decide about."""
    issued = an_account(frail.stubs, projects=0).issue(on_all("member"))
    token_id = issued.token.token_id
    frail.rows.fetch("UPDATE token_secrets SET digest = NULL, pepper_id = NULL WHERE token_id = $1", token_id)
    for _ in range(100):
        try:
            answer = check(frail.stubs, another_of(issued.secret), "jobs:read", project_id="p")
        except grpc.RpcError as error:
            return refusal_of(error)
        assert not answer.allowed
    raise AssertionError("every wrong secret got a bcrypt of its own")


def too_many_requests(frail: Frail) -> Refusal:
    """More reports of leaked secrets than one peer may send at once."""
    request = ReportLeakedTokenRequest(secret="x")
    for _ in range(10 * REPORTS_AT_ONCE):
        try:
            ask(frail.stubs.tokens.ReportLeakedToken, request, NOBODY)
        except grpc.RpcError as error:
            return refusal_of(error)
    raise AssertionError("every report was taken")


def no_lease(frail: Frail) -> Refusal:
    """The replica cannot renew."""
    refusals: list[Refusal] = []

    def has_lost_its_lease() -> bool:
        with contextlib.suppress(grpc.RpcError):
            check(frail.stubs, "nonsense", "jobs:read", project_id="p")
            return False
        request = CheckRequest(secret="nonsense", permission="jobs:read", project_id="p")
        refusals.append(refused(frail.stubs.authorizer.Check, request, frail.stubs.caller))
        return True

    with frail.rows.holding("LOCK TABLE replicas"):
        eventually(has_lost_its_lease)
    return refusals[-1]


def database_unavailable(frail: Frail) -> Refusal:
    """Somebody keeps a table locked."""
    with frail.rows.holding("LOCK TABLE tokens"):
        return get_token(frail, frail.stubs.admin)


def commit_unknown(frail: Frail) -> Refusal:
    """The connection breaks during COMMIT."""
    with frail.tripped("PERFORM pg_terminate_backend(pg_backend_pid());", "CONSTRAINT TRIGGER trip AFTER INSERT"):
        return refused(frail.stubs.accounts.PutAccount, frail.put_account(), frail.stubs.admin)


def propagation_unknown(frail: Frail) -> Refusal:
    """The rows of the replicas cannot be read."""
    with frail.rows.holding("LOCK TABLE replicas"):
        return await_propagation(frail, "1.0")


def revision_not_reached(frail: Frail) -> Refusal:
    """The renewal that would tell the log's end is not answered within a hold."""
    consistency = Consistency(fully_consistent=True)
    request = CheckRequest(secret="x", permission="jobs:read", project_id="p", consistency=consistency)
    check(frail.stubs, "x", "jobs:read", project_id="p")
    with frail.rows.holding("LOCK TABLE replicas"):
        return refused(frail.stubs.authorizer.Check, request, frail.stubs.caller)


def shutting_down(_frail: Frail) -> Refusal:
    """Work that is begun when the server has drained; over the wire grpc itself refuses by then."""

    async def begin() -> Refusal:
        async with asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            await tasks.drain(0)
            with pytest.raises(Unavailable) as caught:
                tasks.start(asyncio.sleep(0))
        return refusal_in(status_pb2.Status.FromString(status_of(caught.value).details))

    return asyncio.run(begin())


def propagation_not_awaited(frail: Frail) -> Refusal:
    """Some replica does not confirm before the caller's deadline."""
    with frail.a_silent_replica():
        return refused(frail.stubs.accounts.PutProject, frail.put_project(), frail.stubs.admin, timeout_s=2)


def commit_not_awaited(frail: Frail) -> Refusal:
    """Somebody else holds the account's lock when the caller's deadline comes near, and lets go before the wait is over."""
    with frail.rows.holding("SELECT FROM accounts FOR UPDATE"):
        return refused(frail.stubs.accounts.PutProject, frail.put_project(), frail.stubs.admin, timeout_s=1)


def deadline_too_short(frail: Frail) -> Refusal:
    """Too short to begin; and so short that the answer may be late: then once more."""
    refusals: list[Refusal] = []

    def is_told() -> bool:
        try:
            ask(frail.stubs.accounts.PutProject, frail.put_project(), frail.stubs.admin, timeout_s=0.09)
        except grpc.RpcError as error:
            with contextlib.suppress(AssertionError):
                refusals.append(refusal_of(error))
        return bool(refusals)

    eventually(is_told)
    return refusals[0]


def internal(frail: Frail) -> Refusal:
    """The schema is not what the server takes it for."""
    frail.rows.fetch("ALTER TABLE token_activity RENAME COLUMN last_used_time TO used")
    try:
        return get_token(frail, frail.stubs.admin)
    finally:
        frail.rows.fetch("ALTER TABLE token_activity RENAME COLUMN used TO last_used_time")


def request_id_reused(frail: Frail) -> Refusal:
    """One id for two requests."""
    account, request_id = an_account(frail.stubs, projects=0), str(uuid.uuid4())
    account.issue(on_all("member"), request_id=request_id)
    other = account.wanted(on_all("read_only"), request_id=request_id)
    return refused(frail.stubs.tokens.IssueToken, other, frail.stubs.admin)


def exceeds_caller(frail: Frail) -> Refusal:
    """A token that expires issues one that does not."""
    account = an_account(frail.stubs, projects=0)
    caller = account.issue(on_all("account_admin"), ttl=Duration(seconds=3600))
    return refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), bearer(caller.secret))


def token_is_revoked(frail: Frail) -> Refusal:
    """An update of what has ended for good."""
    account = an_account(frail.stubs, projects=0)
    token_id = account.issue(on_all("member")).token.token_id
    account.revoke(token_id)
    request = UpdateTokenRequest(token=ServiceToken(token_id=token_id, display_name="n"))
    return refused(frail.stubs.tokens.UpdateToken, request, frail.stubs.admin)


def token_is_expired(frail: Frail) -> Refusal:
    """A new secret for what has expired."""
    account = an_account(frail.stubs, projects=0)
    token_id = account.issue(on_all("member"), ttl=Duration(seconds=1)).token.token_id
    eventually(lambda: account.token(token_id).state == TokenState.TOKEN_STATE_EXPIRED)
    request = RotateTokenRequest(token_id=token_id, overlap=Duration())
    return refused(frail.stubs.tokens.RotateToken, request, frail.stubs.admin)


def etag_mismatch(frail: Frail) -> Refusal:
    """An update on the ground of what was read before another one."""
    account = an_account(frail.stubs, projects=0)
    token = account.issue(on_all("member")).token
    requests = [
        UpdateTokenRequest(token=ServiceToken(token_id=token.token_id, etag=token.etag, display_name=name))
        for name in ("first", "second")
    ]
    ask(frail.stubs.tokens.UpdateToken, requests[0], frail.stubs.admin)
    return refused(frail.stubs.tokens.UpdateToken, requests[1], frail.stubs.admin)
