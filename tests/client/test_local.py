"""A LocalAuthorizer decides as the server does, from memory while it may, and tells which it was. Both dialects.

A real server; what happens to streams is in test_local_streams.py.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import duration_pb2, field_mask_pb2, timestamp_pb2

from doorward import _aio_local, _threads_local, errors
from doorward.bounds import WatchBounds
from doorward.core.watch_messages import TokenSnapshot
from doorward.decisions import Ask, DecidedBy, Decision, DenyReason
from doorward.v1 import account_admin_pb2 as accounts_pb
from doorward.v1 import token_admin_pb2 as tokens_pb
from doorward.v1.types_pb2 import ServiceToken
from tests.support.dialects import Local, results_of
from tests.support.wire import an_account, another_of, ask, eventually, fresh_id, mistyped, on, on_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.dialects import Dialect
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import OwnAccount

WRITE = "jobs:write"


def a_local(dialect: Dialect, server: ServerProcess, **options: Any) -> Local:
    return dialect.local(server.address, credential=server.caller_token_file, **options)


@pytest.fixture
def local(dialect: Dialect, server: ServerProcess) -> Local:
    """One that holds a sub-lease."""
    return a_local(dialect, server).ready()


@pytest.fixture
def account(stubs: Stubs) -> OwnAccount:
    return an_account(stubs)


def decided_here(decision: Decision) -> Decision:
    """The same; that no server was asked is asserted."""
    assert decision.decided_by is DecidedBy.HERE
    return decision


def here(local: Local, secret: str, permission: str = WRITE, **place: str) -> DenyReason | None:
    """Why not, or None: decided here at the latest at the second time, for a sub-lease may just have ended."""
    decision: Decision | None = None

    def is_decided_here() -> bool:
        nonlocal decision
        decision = local.check(secret, permission, **place)
        return decision.decided_by is DecidedBy.HERE

    eventually(is_decided_here)
    assert decision is not None
    assert decision.allowed is (decision.reason is None)
    return decision.reason


# ---- the same decisions


def test_every_check_is_decided_here_as_the_server_decides_it(local: Local, account: OwnAccount, stubs: Stubs) -> None:
    mine, other = account.project_ids
    foreign = an_account(stubs).project_ids[0]
    wide, narrow = account.issue(on_all("account_admin")), account.issue(on("job_admin", mine))
    lasting = account.issue(
        on("job_admin", mine), expire_time=timestamp_pb2.Timestamp(seconds=int(datetime.now(UTC).timestamp()) + 3600)
    )
    asked: list[tuple[str, str, dict[str, str]]] = [
        (secret, permission, place)
        for secret in (
            wide.secret,
            narrow.secret,
            lasting.secret,
            another_of(narrow.secret),
            mistyped(narrow.secret),
            "no secret at all",
        )
        for permission, place in (
            (WRITE, {"project_id": mine}),
            (WRITE, {"project_id": other}),
            (WRITE, {"project_id": foreign}),
            (WRITE, {"project_id": fresh_id("nobody")}),
            ("service_tokens:write", {"account_id": account.account_id}),
            ("service_tokens:write", {"account_id": fresh_id("acc")}),
        )
    ]
    for secret, permission, place in asked:
        expected = local.client.server  # asked in its own dialect, below
        told = local._dialect.start(expected.check, secret, permission, **place).result(30)
        for _ in range(3):
            decision = local.check(secret, permission, **place)
            assert decision.decided_by is DecidedBy.HERE
            assert decision[:4] == told[:4]


@pytest.mark.parametrize("change", ["revoke", "disable", "suspend", "update", "project", "plan", "delete"])
def test_a_change_is_in_every_check_from_its_return_on(
    local: Local, account: OwnAccount, stubs: Stubs, change: str
) -> None:
    project_id = account.project_ids[0]
    issued = account.issue(on("admin", project_id))  # which only the enterprise plan covers
    token_id, account_id = issued.token.token_id, account.account_id
    assert here(local, issued.secret, project_id=project_id) is None
    changed_token = ServiceToken(token_id=token_id, grants=[on("admin", account.project_ids[1])])
    changes: dict[str, tuple[Callable[[], Any], DenyReason]] = {
        "revoke": (lambda: account.revoke(token_id), DenyReason.TOKEN_REVOKED),
        "disable": (
            lambda: ask(stubs.tokens.DisableToken, tokens_pb.DisableTokenRequest(token_id=token_id), stubs.admin),
            DenyReason.TOKEN_DISABLED,
        ),
        "suspend": (
            lambda: ask(
                stubs.accounts.SuspendAccount, accounts_pb.SuspendAccountRequest(account_id=account_id), stubs.admin
            ),
            DenyReason.ACCOUNT_SUSPENDED,
        ),
        "update": (
            lambda: ask(
                stubs.tokens.UpdateToken,
                tokens_pb.UpdateTokenRequest(
                    token=changed_token, update_mask=field_mask_pb2.FieldMask(paths=["grants"])
                ),
                stubs.admin,
            ),
            DenyReason.PROJECT_NOT_GRANTED,
        ),
        "project": (
            lambda: ask(
                stubs.accounts.DeleteProject,
                accounts_pb.DeleteProjectRequest(account_id=account_id, project_id=project_id),
                stubs.admin,
            ),
            DenyReason.RESOURCE_NOT_IN_ACCOUNT,
        ),
        "plan": (lambda: account.set_plan("team"), DenyReason.GRANT_SUSPENDED_BY_PLAN),
        "delete": (
            lambda: ask(
                stubs.accounts.DeleteAccount, accounts_pb.DeleteAccountRequest(account_id=account_id), stubs.admin
            ),
            DenyReason.TOKEN_REVOKED,
        ),
    }
    make, reason = changes[change]
    answer = make()
    # The first check after it: whoever decides it.
    assert local.check(issued.secret, WRITE, project_id=project_id).reason is reason
    assert answer.propagation.watchers_confirmed >= 1
    assert answer.propagation.replicas_expired == 0
    assert here(local, issued.secret, project_id=project_id) is reason


def test_what_was_unknown_is_known_once_it_was_made(local: Local, account: OwnAccount) -> None:
    issued, project_id = account.issue(on_all("job_admin")), fresh_id("later")
    assert here(local, issued.secret, project_id=project_id) is DenyReason.RESOURCE_NOT_IN_ACCOUNT
    account.put_project(project_id)
    assert local.check(issued.secret, WRITE, project_id=project_id).allowed


def test_a_rotated_secret_works_to_the_end_of_its_overlap_and_the_new_one_at_once(
    local: Local, account: OwnAccount, stubs: Stubs
) -> None:
    project_id = account.project_ids[0]
    issued = account.issue(on("job_admin", project_id))
    assert here(local, issued.secret, project_id=project_id) is None

    def rotated(seconds: int) -> str:
        request = tokens_pb.RotateTokenRequest(
            token_id=issued.token.token_id, overlap=duration_pb2.Duration(seconds=seconds)
        )
        return ask(stubs.tokens.RotateToken, request, stubs.admin).secret

    second = rotated(3600)
    assert [local.check(secret, WRITE, project_id=project_id).reason for secret in (issued.secret, second)] == [
        None,
        None,
    ]
    third = rotated(0)
    reasons = [local.check(secret, WRITE, project_id=project_id).reason for secret in (second, third)]
    assert reasons == [DenyReason.TOKEN_UNRECOGNIZED, None]
    assert here(local, third, project_id=project_id) is None


def test_a_token_that_expires_is_denied_here_from_then_on(local: Local, account: OwnAccount) -> None:
    project_id = account.project_ids[0]
    soon = timestamp_pb2.Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=1.5))
    issued = account.issue(on("job_admin", project_id), expire_time=soon)
    eventually(lambda: here(local, issued.secret, project_id=project_id) is DenyReason.TOKEN_EXPIRED)


# ---- what is asked of the server


def test_the_first_check_waits_for_no_stream(dialect: Dialect, server: ServerProcess, account: OwnAccount) -> None:
    issued = account.issue(on("job_admin", account.project_ids[0]))
    local = a_local(dialect, server)
    decision = local.check(issued.secret, WRITE, project_id=account.project_ids[0])
    assert (decision.allowed, decision.decided_by) == (True, DecidedBy.SERVER)
    assert here(local, issued.secret, project_id=account.project_ids[0]) is None  # it has begun the stream


@pytest.mark.parametrize("demand", ["revision", "fully"])
def test_a_demand_goes_to_the_server(local: Local, account: OwnAccount, demand: str) -> None:
    project_id = account.project_ids[0]
    issued = account.issue(on("job_admin", project_id))
    how: dict[str, Any] = (
        {"fully_consistent": True} if demand == "fully" else {"at_least_as_fresh": issued.propagation.revision}
    )
    assert here(local, issued.secret, project_id=project_id) is None
    decision = local.check(issued.secret, WRITE, project_id=project_id, **how)
    (one,) = local.check_many(issued.secret, [Ask(WRITE, project_id=project_id)], **how)
    assert [decision.decided_by, one.decided_by] == [DecidedBy.SERVER] * 2
    assert decision
    assert one


def test_what_is_wrong_with_a_check_is_told_as_by_an_authorizer_client(
    dialect: Dialect, local: Local, server: ServerProcess, account: OwnAccount
) -> None:
    remote = dialect.client("Authorizer", server.address, credential=server.caller_token_file)
    secret, project_id = account.issue(on("job_admin", account.project_ids[0])).secret, account.project_ids[0]
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((secret, "no such permission"), {"project_id": project_id}),
        ((secret, "billing:read"), {"project_id": project_id}),
        ((secret, WRITE), {"account_id": account.account_id}),
        ((secret, WRITE), {"project_id": "no/id"}),
        ((secret, WRITE), {"project_id": "x" * 65}),
        ((secret, "service_tokens:read"), {"account_id": "x" * 65}),
        ((secret, WRITE), {}),
        ((secret, WRITE), {"project_id": project_id, "account_id": account.account_id}),
        ((secret, WRITE), {"project_id": project_id, "timeout": 0.0}),
        ((secret, WRITE), {"project_id": project_id, "timeout": -1.0}),
        ((secret, WRITE), {"project_id": project_id, "timeout": 1e9}),
        ((secret, WRITE), {"project_id": project_id, "fully_consistent": True, "at_least_as_fresh": "1.1"}),
        (("", WRITE), {"project_id": project_id}),
        (("x" * 129, WRITE), {"project_id": project_id}),
        (("\ud800", WRITE), {"project_id": project_id}),
        ((None, WRITE), {"project_id": project_id}),
    ]
    for args, kwargs in wrong:
        errors_of = [client.begin("check", *args, **kwargs).error() for client in (local, remote)]
        assert type(errors_of[0]) is type(errors_of[1]), (args[1:], kwargs, errors_of)
        if isinstance(errors_of[1], errors.InvalidRequest):
            assert errors_of[0].violations == errors_of[1].violations


def test_many_checks_are_decided_in_order_here_and_by_the_server(local: Local, account: OwnAccount) -> None:
    mine, other = account.project_ids
    first, second = account.issue(on("job_admin", mine)), account.issue(on("job_admin", other))
    asks = [
        Ask(WRITE, project_id=mine),
        Ask("no such permission", project_id=mine),
        Ask(WRITE, project_id=mine, secret=second.secret),
        Ask(WRITE, project_id=other, secret=second.secret),
        Ask(WRITE, project_id=fresh_id("nobody")),
    ]
    for _ in range(2):
        decisions = local.check_many(first.secret, asks)
        assert [decision.reason for decision in decisions] == [
            None,
            None,
            DenyReason.PROJECT_NOT_GRANTED,
            None,
            DenyReason.RESOURCE_NOT_IN_ACCOUNT,
        ]
        assert [bool(decision) for decision in decisions] == [True, False, False, True, False]
        assert isinstance(decisions[1].error, errors.InvalidRequest)
        assert [decision.decided_by for decision in decisions].count(DecidedBy.SERVER) == 1
    assert local.check_many(first.secret, []) == []


# ---- bounds


def test_small_bounds_change_no_decision(dialect: Dialect, server: ServerProcess, account: OwnAccount) -> None:
    local = a_local(dialect, server, bounds=WatchBounds(tokens=3, accounts=1, projects=2, unknown=1)).ready()
    issued = [account.issue(on("job_admin", project_id)) for project_id in account.project_ids * 3]
    for _ in range(2):
        for number, one in enumerate(issued):
            project_id = account.project_ids[number % 2]
            assert local.check(one.secret, WRITE, project_id=project_id)
            denied = local.check(another_of(one.secret), WRITE, project_id=project_id)
            assert denied.reason is DenyReason.TOKEN_UNRECOGNIZED
    session = local.watching.watcher.session
    assert session is not None
    tables = session.tables
    assert (len(tables.tokens) <= 3, len(tables.projects) <= 2, len(tables.unrecognized) <= 1) == (True, True, True)
    for number, one in enumerate(issued):
        account.revoke(one.token.token_id)
        reason = local.check(one.secret, WRITE, project_id=account.project_ids[number % 2]).reason
        assert reason is DenyReason.TOKEN_REVOKED


def test_beyond_the_checks_that_may_wait_the_server_is_asked(
    dialect: Dialect, local: Local, account: OwnAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_aio_local, _threads_local):
        monkeypatch.setattr(module, "MOST_WAITING", 1)
    project_id = account.project_ids[0]
    issued = [account.issue(on("job_admin", project_id)) for _ in range(2)]
    held = local.hold_messages(TokenSnapshot)
    waits = local.begin("check", issued[0].secret, WRITE, project_id=project_id, timeout=20)
    held.await_one()
    decision = local.check(issued[1].secret, WRITE, project_id=project_id)
    assert (decision.allowed, decision.decided_by) == (True, DecidedBy.SERVER)
    held.let_go()
    assert waits.result().allowed
    assert local.watching.waiting == 0


def test_checks_of_one_unknown_token_share_a_resolve(local: Local, account: OwnAccount) -> None:
    project_id = account.project_ids[0]
    issued = account.issue(on("job_admin", project_id))
    held = local.hold_messages(TokenSnapshot)
    begun = [local.begin("check", issued.secret, WRITE, project_id=project_id, timeout=20) for _ in range(20)]
    held.await_one()
    session = local.watching.watcher.session
    assert session is not None
    eventually(lambda: local.watching.waiting == 20)
    assert len(session.resolves) == 1
    held.let_go()
    decisions = results_of(begun)
    assert all(decision.allowed for decision in decisions)
    assert {decision.decided_by for decision in decisions} == {DecidedBy.HERE}


def test_a_check_whose_token_does_not_come_asks_the_server_with_half_of_its_time(
    local: Local, account: OwnAccount
) -> None:
    project_id = account.project_ids[0]
    issued = account.issue(on("job_admin", project_id))
    held = local.hold_messages(TokenSnapshot)
    decision = local.check(issued.secret, WRITE, project_id=project_id, timeout=1.0)
    assert (decision.allowed, decision.decided_by) == (True, DecidedBy.SERVER)
    held.let_go()


def test_a_caller_that_leaves_takes_nobody_along(dialect: Dialect, local: Local, account: OwnAccount) -> None:
    if not dialect.is_aio:
        return  # nobody can cancel a thread
    project_id = account.project_ids[0]
    issued = account.issue(on("job_admin", project_id))
    held = local.hold_messages(TokenSnapshot)
    leaves, stays = (local.begin("check", issued.secret, WRITE, project_id=project_id, timeout=20) for _ in range(2))
    held.await_one()
    eventually(lambda: local.watching.waiting == 2)
    leaves.cancel()
    eventually(lambda: local.watching.waiting == 1)
    held.let_go()
    assert decided_here(stays.result())


# ---- what it costs who has none


@pytest.mark.parametrize("name", ["aio", "threads"])
def test_who_only_asks_servers_loads_nothing_of_it(name: str) -> None:
    look = f"import sys, doorward.{name}; print(*(name for name in sys.modules if 'watch' in name or 'local' in name))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith("doorward")] == []


# ---- secrets


def test_no_secret_is_in_a_repr_an_error_or_a_log(
    local: Local, account: OwnAccount, server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = account.issue(on("job_admin", account.project_ids[0])).secret
    assert here(local, secret, project_id=account.project_ids[0]) is None
    error = local.begin("check", secret, "no such permission", project_id=account.project_ids[0]).error()
    told = [repr(error), str(error), repr(local.client), repr(local.watching), caplog.text]

    def remembers() -> bool:
        assert here(local, secret, project_id=account.project_ids[0]) is None
        session = local.watching.watcher.session
        found = [] if session is None else [repr(key) for key in session.answers]
        told.extend([repr(session), *found])
        return bool(found)

    eventually(remembers)
    for shown in told:
        assert secret not in shown
        assert server.caller_credential not in shown
