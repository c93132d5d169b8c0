"""Last use over the wire: which calls count as one, when it shows, and what a stop or a kill leaves of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import pytest

from doorward.v1 import authorizer_pb2
from doorward.v1 import token_admin_pb2 as pb
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import (
    OwnAccount,
    an_account,
    another_of,
    ask,
    check,
    eventually,
    fresh_id,
    on_all,
    refused,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from doorward.v1.types_pb2 import ServiceToken
    from tests.support.server import ServerProcess, Stubs


@pytest.fixture(scope="module")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that writes uses every second."""
    base = tmp_path_factory.mktemp("last-use")
    running = start_server(base / "data", base / "scratch", ("--usage-interval", "1"))
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture(scope="module")
def stubs(swift_server: ServerProcess) -> Iterator[Stubs]:
    with grpc.insecure_channel(swift_server.address) as channel:
        yield stubs_on(channel, swift_server)


@pytest.fixture
def account(stubs: Stubs) -> OwnAccount:
    return an_account(stubs)


def used(account: OwnAccount, token_id: str) -> ServiceToken:
    """The token, once its last use shows."""
    eventually(lambda: account.token(token_id).HasField("last_used_time"))
    return account.token(token_id)


def asked(account: OwnAccount, secret: str, permission: str = "jobs:write") -> str:
    return verdict(check(account.stubs, secret, permission, project_id=account.project_ids[0]))


def test_a_check_is_a_use_and_shows_within_the_interval(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    assert not issued.token.HasField("last_used_time")
    before_s = time.time()
    assert asked(account, issued.secret) == "ALLOWED"
    token = used(account, issued.token.token_id)
    assert before_s - 2 < token.last_used_time.ToNanoseconds() / 1e9 <= time.time() + 2
    # Nothing else of it has changed.
    assert (token.etag, token.update_time) == (issued.token.etag, issued.token.update_time)
    (listed,) = ask(stubs.tokens.ListTokens, pb.ListTokensRequest(account_id=account.account_id), stubs.admin).tokens
    assert listed.last_used_time == token.last_used_time
    introspected = ask(
        stubs.authorizer.IntrospectToken, authorizer_pb2.IntrospectTokenRequest(secret=issued.secret), stubs.caller
    )
    assert introspected.last_used_time == token.last_used_time


def test_a_denied_check_of_a_recognized_secret_is_a_use(account: OwnAccount) -> None:
    denied, revoked, batched, warm = (account.issue(on_all("job_admin")) for _ in range(4))
    account.revoke(revoked.token.token_id)
    assert verdict(check(account.stubs, denied.secret, "billing:read", account_id=account.account_id)) != "ALLOWED"
    assert asked(account, revoked.secret) == "TOKEN_REVOKED"
    item = authorizer_pb2.BatchCheckItem(permission="jobs:write", project_id=account.project_ids[0])
    ask(
        account.stubs.authorizer.BatchCheck,
        authorizer_pb2.BatchCheckRequest(secret=batched.secret, items=[item]),
        account.stubs.caller,
    )
    for _ in range(3):
        assert asked(account, warm.secret) == "ALLOWED"
    for issued in (denied, revoked, batched, warm):
        used(account, issued.token.token_id)


def test_what_is_no_check_of_its_secret_is_no_use(stubs: Stubs, account: OwnAccount) -> None:
    quiet, marker = account.issue(on_all("account_admin")), account.issue(on_all("job_admin"))
    assert asked(account, another_of(quiet.secret)) == "TOKEN_UNRECOGNIZED"
    assert asked(account, quiet.secret[:-1]) == "TOKEN_UNRECOGNIZED"
    account.token(quiet.token.token_id)
    ask(stubs.tokens.ListTokens, pb.ListTokensRequest(account_id=account.account_id), bearer(quiet.secret))
    asked(account, marker.secret)
    used(account, marker.token.token_id)
    assert not account.token(quiet.token.token_id).HasField("last_used_time")


def test_a_later_use_moves_it_on(account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    asked(account, issued.secret)
    first = used(account, issued.token.token_id).last_used_time.ToNanoseconds()

    def has_moved() -> bool:
        asked(account, issued.secret)
        return account.token(issued.token.token_id).last_used_time.ToNanoseconds() > first

    eventually(has_moved)


def test_a_stop_writes_what_was_gathered_and_a_kill_loses_it(tmp_path: Path) -> None:
    slow = ("--usage-interval", "3600")
    server = start_server(tmp_path / "data", tmp_path / "scratch", slow)
    with grpc.insecure_channel(server.address) as channel:
        account = an_account(stubs_on(channel, server))
        issued, lost = account.issue(on_all("job_admin")), account.issue(on_all("job_admin"))
        asked(account, issued.secret)
        missing = fresh_id("t")
        refused(account.stubs.tokens.RevokeToken, pb.RevokeTokenRequest(token_id=missing), account.stubs.admin)
    assert server.stop() == 0

    server = start_server(tmp_path / "data", tmp_path / "scratch", slow)
    with grpc.insecure_channel(server.address) as channel:
        account = OwnAccount(stubs_on(channel, server), account.account_id, account.project_ids)
        assert account.token(issued.token.token_id).HasField("last_used_time")
        request = pb.ListAuditEventsRequest(kind=pb.AUDIT_EVENT_KIND_REFUSAL)
        found = ask(account.stubs.tokens.ListAuditEvents, request, account.stubs.admin).audit_events
        assert [event.subject for event in found] == [f"token:{missing}"]
        asked(account, lost.secret)
    server.kill()

    server = start_server(tmp_path / "data", tmp_path / "scratch", slow)
    with grpc.insecure_channel(server.address) as channel:
        account = OwnAccount(stubs_on(channel, server), account.account_id, account.project_ids)
        assert not account.token(lost.token.token_id).HasField("last_used_time")
        assert asked(account, lost.secret) == "ALLOWED"
    assert server.stop() == 0
