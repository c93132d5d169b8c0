"""A server that stops, is killed and starts again on its directory: nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward.v1.system_admin_pb2 import ListReplicasRequest
from doorward.v1.token_admin_pb2 import RevokeTokenRequest
from tests.support.rows import Rows
from tests.support.server import PATIENCE_S, clean_environment, start_server, stubs_on
from tests.support.wire import (
    OwnAccount,
    an_account,
    ask,
    check,
    code_of,
    eventually,
    fresh_id,
    on_all,
    raw,
    raw_stream,
    refused,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from doorward.v1.token_admin_pb2 import IssueTokenResponse
    from doorward.v1.types_pb2 import Propagation, ServiceToken
    from tests.support.server import ServerProcess, Stubs


class Life:
    """One data directory, and the server that runs on it at the moment."""

    def __init__(self, base: Path) -> None:
        self.data_dir = base / "data"
        self._scratch = base / "scratch"
        self.rows = Rows(self.data_dir)
        self._server: ServerProcess | None = None
        self._channel: grpc.Channel | None = None

    @property
    def server(self) -> ServerProcess:
        """The server that was started last."""
        assert self._server is not None
        return self._server

    def start(self, *arguments: str) -> Stubs:
        """Starts a server and speaks to it."""
        self._server = start_server(self.data_dir, self._scratch, arguments)
        self._channel = grpc.insecure_channel(self.server.address)
        return stubs_on(self._channel, self.server)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        status = self.server.stop()
        self._close()
        return status

    def kill(self) -> None:
        """kill -9."""
        self.server.kill()
        self._close()

    def end(self) -> None:
        """Stops what runs."""
        self.rows.close()
        if self._server is not None and self._server.process.poll() is None:
            self.stop()

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def begin(self) -> subprocess.Popen[bytes]:
        """Starts a server process and does not wait for it."""
        options = ["--listen", "127.0.0.1:0", "--data-dir", str(self.data_dir)]
        return subprocess.Popen(
            [sys.executable, "-m", "doorward_server.cli.main", "serve", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
            start_new_session=True,
        )


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    """A data directory of this test's own."""
    life = Life(tmp_path)
    try:
        yield life
    finally:
        life.end()


# ---- stopped, then killed


@dataclass
class Seen:
    """What was seen of one server of a directory."""

    credentials: tuple[Any, Any]
    verdicts: tuple[str, str]
    token_ids: list[str]
    record: ServiceToken
    first: Propagation
    second: Propagation
    replicas: int


@dataclass
class Lives:
    """Three servers, one after the other, on one directory: the first was stopped, the second killed, the third stopped."""

    issued: IssueTokenResponse
    revoked: IssueTokenResponse
    credentials: tuple[Any, Any]
    statuses: list[int]
    after_stop: Seen
    after_kill: Seen
    reflection: grpc.StatusCode


def seen_of(stubs: Stubs, account: OwnAccount, issued: IssueTokenResponse, revoked: IssueTokenResponse) -> Seen:
    own = OwnAccount(stubs, account.account_id, account.project_ids)
    (project_id,) = account.project_ids
    first = own.put_project(fresh_id("p")).propagation

    def replicas() -> int:
        return len(ask(stubs.system.ListReplicas, ListReplicasRequest(), stubs.admin).replicas)

    # Pruning follows the answer.
    eventually(lambda: replicas() == 1)
    return Seen(
        (stubs.admin, stubs.caller),
        (
            verdict(check(stubs, issued.secret, "jobs:write", project_id=project_id)),
            verdict(check(stubs, revoked.secret, "jobs:write", project_id=project_id)),
        ),
        own.token_ids(),
        own.token(issued.token.token_id),
        first,
        own.put_project(fresh_id("p")).propagation,
        replicas(),
    )


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """Lets three servers live, with everything that was acknowledged by the first looked at in the others."""
    life = Life(tmp_path_factory.mktemp("lives"))
    try:
        stubs = life.start("--hold", "2", "--no-reflection")
        credentials = (stubs.admin, stubs.caller)
        account = an_account(stubs, projects=1)
        issued, revoked = account.issue(on_all("job_admin")), account.issue(on_all("job_admin"))
        account.revoke(revoked.token.token_id)
        with pytest.raises(grpc.RpcError) as caught:
            raw(stubs.channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(b"", timeout=20)
        # What bcrypt would be asked about is no hash any more: only a digest can tell.
        life.rows.fetch("UPDATE token_secrets SET bcrypt_hash = 'unusable'")
        statuses = [life.stop()]
        after_stop = seen_of(life.start("--hold", "2"), account, issued, revoked)
        life.kill()
        stubs = life.start("--drain", "0.5")
        after_kill = seen_of(stubs, account, issued, revoked)
        # A call that nobody ends: it must not be waited for beyond the drain.
        raw_stream(stubs.channel, "/doorward.v1.TokenAdmin/GetToken")(iter(()), metadata=stubs.admin)
        statuses.append(life.stop())
    finally:
        life.end()
    return Lives(issued, revoked, credentials, statuses, after_stop, after_kill, caught.value.code())


@pytest.mark.parametrize("which", ["after_stop", "after_kill"])
def test_tokens_survive_and_need_no_bcrypt(lives: Lives, which: str) -> None:
    seen: Seen = getattr(lives, which)

    assert seen.verdicts == ("ALLOWED", "TOKEN_REVOKED")
    assert seen.token_ids == [lives.revoked.token.token_id, lives.issued.token.token_id]
    assert seen.record == lives.issued.token


@pytest.mark.parametrize("which", ["after_stop", "after_kill"])
def test_the_first_credentials_stay_as_they_were(lives: Lives, which: str) -> None:
    seen: Seen = getattr(lives, which)

    assert seen.credentials == lives.credentials


def test_a_server_that_stopped_leaves_nobody_to_wait_for(lives: Lives) -> None:
    first, second = lives.after_stop.first, lives.after_stop.second

    assert (first.replicas_confirmed, first.replicas_expired) == (1, 0)
    assert (second.replicas_confirmed, second.replicas_expired) == (1, 0)
    assert lives.after_stop.replicas == 1


def test_a_server_that_was_killed_is_waited_for_once(lives: Lives) -> None:
    first, second = lives.after_kill.first, lives.after_kill.second

    assert (first.replicas_confirmed, first.replicas_expired) == (1, 1)
    assert (second.replicas_confirmed, second.replicas_expired) == (1, 0)
    assert lives.after_kill.replicas == 1


def test_sigterm_ends_with_0_also_while_a_call_never_ends(lives: Lives) -> None:
    assert lives.statuses == [0, 0]


def test_reflection_can_be_turned_off(lives: Lives) -> None:
    assert lives.reflection is grpc.StatusCode.UNIMPLEMENTED


# ---- stopped in the middle of something

WAITS_FOR_A_LOCK = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'doorward'"


def test_a_change_under_way_at_sigterm_is_finished_and_answered_while_no_check_is(life: Life) -> None:
    stubs = life.start()
    account = an_account(stubs, projects=1)
    issued = account.issue(on_all("job_admin"))

    def outcome() -> str:
        return code_of(lambda: check(stubs, issued.secret, "jobs:write", project_id=account.project_ids[0]))

    with life.rows.holding("LOCK TABLE tokens IN SHARE MODE"):
        request = RevokeTokenRequest(token_id=issued.token.token_id, reason="at the last moment")
        revoking = stubs.tokens.RevokeToken.future(request, metadata=stubs.admin, timeout=30)
        eventually(lambda: bool(life.rows.fetch(WAITS_FOR_A_LOCK)))
        before = outcome()
        os.kill(life.server.process.pid, signal.SIGTERM)
        eventually(lambda: b"server_stopping" in life.server.log.read_bytes())
        eventually(lambda: outcome() != "OK")
        after = {outcome() for _ in range(20)}

    assert (before, after) == ("OK", {"UNAVAILABLE"})
    assert revoking.result().token.revoke_reason == "at the last moment"
    assert life.stop() == 0
    answer = check(life.start(), issued.secret, "jobs:write", project_id=account.project_ids[0])
    assert verdict(answer) == "TOKEN_REVOKED"


# ---- the first start

# What appears in the directory, in this order, while a server starts there for the first time.
STAGES = ("postgres", "pepper.keys", "operator.token", "caller.token")


def start_and_kill(life: Life, is_reached: Callable[[], bool]) -> bool:
    """Starts a server and kills it as soon as `is_reached()`; whether it got so far."""
    process = life.begin()
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            if is_reached():
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
                break
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    return False


def works(life: Life) -> None:
    """Asserts that the next start ends with two operators whose credentials are in the files."""
    stubs = life.start()
    account = an_account(stubs, projects=1)
    secret = account.issue(on_all("job_admin")).secret
    assert check(stubs, secret, "jobs:write", project_id=account.project_ids[0]).allowed
    assert refused(stubs.tokens.RevokeToken, RevokeTokenRequest(token_id="x"), stubs.caller).code == "PERMISSION_DENIED"
    assert sorted(life.rows.fetch("SELECT role FROM operators")) == [("admin",), ("caller",)]
    assert life.stop() == 0


def test_a_first_start_that_is_killed_at_every_stage_ends_with_working_credentials(life: Life) -> None:
    reached = [start_and_kill(life, (life.data_dir / stage).exists) for stage in STAGES]

    assert reached == [True] * len(STAGES)
    works(life)


def test_a_first_start_that_is_killed_at_some_moment_ends_with_working_credentials(life: Life) -> None:
    after_s = random.uniform(0.3, 2.5)  # noqa: S311 - not a secret
    print(f"killed after {after_s:.3f} s")  # noqa: T201 - shown when it fails
    begun = time.monotonic()

    start_and_kill(life, lambda: time.monotonic() - begun > after_s)

    works(life)
