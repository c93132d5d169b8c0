"""What a LocalAuthorizer does when its stream ends, stalls or is replaced: it never decides by what it cannot know. Both
dialects, real servers, real processes; faults 23 to 28 of design section 7 have more of them in tests/cluster."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest

from doorward import _watch_shared, errors
from doorward.core.secret import SecretKind, generate, new_id
from doorward.core.watch_messages import Evict, TokenSnapshot
from doorward.decisions import DecidedBy, DenyReason
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import system_admin_pb2 as system_pb
from doorward.v1 import types_pb2
from tests.support.server import start_server, stubs_on
from tests.support.wire import an_account, ask, eventually, on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.clusters import Cluster
    from tests.support.dialects import Dialect, Local
    from tests.support.server import ServerProcess, Stubs

WRITE: Final = "jobs:write"
WATCH: Final = "doorward watch"


class Asking:
    """One token on one project, and the LocalAuthorizer that is asked about it."""

    def __init__(self, stubs: Stubs, local: Local) -> None:
        self.account = an_account(stubs)
        self.project_id = self.account.project_ids[0]
        self.issued = self.account.issue(on("job_admin", self.project_id))
        self.local = local

    def check(self, **how: Any) -> Any:
        return self.local.check(self.issued.secret, WRITE, project_id=self.project_id, **how)

    def begin(self, **how: Any) -> Any:
        return self.local.begin("check", self.issued.secret, WRITE, project_id=self.project_id, **how)

    def revoke(self) -> Any:
        return self.account.revoke(self.issued.token.token_id)

    def is_allowed_here(self) -> bool:
        try:
            decision = self.check()
        except errors.Unanswered:
            return False
        assert decision.allowed
        return bool(decision.decided_by is DecidedBy.HERE)


@pytest.fixture
def asking(dialect: Dialect, server: ServerProcess, stubs: Stubs) -> Asking:
    """What is asked, held in memory already."""
    asking = Asking(stubs, dialect.local(server.address, credential=server.caller_token_file).ready())
    eventually(asking.is_allowed_here)
    return asking


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that may be hurt; its sub-leases are short."""
    server = start_server(tmp_path / "data", tmp_path / "scratch", ["--hold", "1"])
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.process.pid, signal.SIGCONT)
        server.stop()


@contextlib.contextmanager
def asking_of(dialect: Dialect, server: ServerProcess) -> Iterator[Asking]:
    with grpc.insecure_channel(server.address) as channel:
        local = dialect.local(server.address, credential=server.caller_credential, timeout=1.0).ready()
        asking = Asking(stubs_on(channel, server), local)
        eventually(asking.is_allowed_here)
        yield asking


def is_undecided(asking: Asking) -> bool:
    """Whether a check ends without a decision; one that is decided here must not be allowed by then."""
    try:
        asking.check()
    except errors.Unanswered:
        return True
    return False


# ---- streams that end


def test_without_stream_and_server_nothing_is_decided_and_afterwards_it_is_again(
    dialect: Dialect, own_server: ServerProcess, tmp_path: Path
) -> None:
    with asking_of(dialect, own_server) as asking:
        own_server.kill()
        eventually(lambda: is_undecided(asking))
        assert not asking.local.holds_lease
        session = asking.local.watching.watcher.session
        assert session is None or not len(session.tables.tokens)
        again = start_server(own_server.data_dir, tmp_path / "scratch", ["--hold", "1"], listen=own_server.address)
        try:
            eventually(asking.is_allowed_here)
        finally:
            assert again.stop() == 0


def test_a_frozen_server_ends_what_it_let_decide(dialect: Dialect, own_server: ServerProcess) -> None:
    with asking_of(dialect, own_server) as asking:
        os.kill(own_server.process.pid, signal.SIGSTOP)
        eventually(lambda: is_undecided(asking))
        assert not asking.local.holds_lease
        os.kill(own_server.process.pid, signal.SIGCONT)
        eventually(asking.is_allowed_here)


def test_a_server_that_stops_in_order_takes_what_it_let_decide_along(
    dialect: Dialect, own_server: ServerProcess
) -> None:
    with asking_of(dialect, own_server) as asking:
        assert own_server.stop() == 0
        eventually(lambda: is_undecided(asking))
        assert not asking.local.holds_lease


def test_another_replica_is_watched_when_the_first_one_dies(dialect: Dialect, cluster: Cluster) -> None:
    ((_, bearer),) = cluster.deployment.caller
    targets = [cluster[name].await_ready() for name in ("a", "b")]
    local = dialect.local(
        targets,
        credential=bearer.removeprefix("Bearer "),
        timeout=20.0,
        options=[("grpc.use_local_subchannel_pool", 1)],
    ).ready()
    subject = cluster["c"].client.subject()

    def decided_here() -> bool:
        decision = local.check(subject.secret, subject.permission, project_id=subject.project_id)
        assert decision.allowed
        return bool(decision.decided_by is DecidedBy.HERE)

    eventually(decided_here)
    watched: list[str] = []

    def is_found() -> bool:
        cluster["c"].client.subject()  # a change, whose report tells how many watchers acknowledged it
        ids = {row[0] for row in cluster.rows.fetch("SELECT replica_id::text FROM replicas WHERE watchers > 0")}
        watched[:] = [name for name in ("a", "b") if cluster[name].status().replica_id in ids]
        return bool(watched)

    eventually(is_found)
    (name,) = watched
    cluster[name].kill()
    eventually(lambda: not local.holds_lease)
    eventually(decided_here)


# ---- changes while messages are held back


def test_a_change_waits_for_an_evict_that_is_not_applied_and_nothing_is_allowed_after_its_return(
    asking: Asking,
) -> None:
    held = asking.local.hold_messages(Evict)
    with ThreadPoolExecutor(1) as pool:
        revoking = pool.submit(asking.revoke)
        held.await_one()
        # Received and not applied: the session owes it, so the change has not returned, and until then memory may answer.
        seen = [asking.check() for _ in range(3)]
        assert not revoking.done()
        assert all(decision.allowed or decision.decided_by is DecidedBy.SERVER for decision in seen)
        answer = revoking.result(60)  # once the sub-lease has run out, for it is never acknowledged
        assert answer.propagation.revision
        assert asking.check().reason is DenyReason.TOKEN_REVOKED
        held.let_go()
    assert asking.check().reason is DenyReason.TOKEN_REVOKED


def test_a_check_that_waits_through_a_change_has_it(asking: Asking) -> None:
    """Fault 25, from the watcher's side: a snapshot on the way is followed by the evict, or contains the change."""
    other = asking.account.issue(on("job_admin", asking.project_id))
    held = asking.local.hold_messages(TokenSnapshot)
    waits = asking.local.begin("check", other.secret, WRITE, project_id=asking.project_id, timeout=30)
    held.await_one()
    with ThreadPoolExecutor(1) as pool:
        revoking = pool.submit(asking.account.revoke, other.token.token_id)
        held.let_go()
        revoking.result(60)
    waits.result()  # it began before: either is right
    later = asking.local.check(other.secret, WRITE, project_id=asking.project_id)
    assert later.reason is DenyReason.TOKEN_REVOKED


# ---- its own end


def test_after_close_nothing_is_decided(asking: Asking) -> None:
    asking.local.close()
    assert not asking.local.holds_lease
    assert isinstance(asking.begin().error(), errors.ClientClosed)
    assert isinstance(asking.local.begin("wait_ready", timeout=5.0).error(), errors.ClientClosed)
    assert isinstance(asking.local.begin("check_many", "x", []).error(), errors.ClientClosed)
    asking.local.close()  # again


def test_a_check_that_waits_when_it_is_closed_never_says_yes(asking: Asking) -> None:
    """Fault 28: goodbye with a check in flight, then a revocation."""
    other = asking.account.issue(on("job_admin", asking.project_id))
    held = asking.local.hold_messages(TokenSnapshot)
    waits = asking.local.begin("check", other.secret, WRITE, project_id=asking.project_id, timeout=30)
    held.await_one()
    closing = asking.local.begin("close")
    assert isinstance(waits.error(), errors.ClientClosed)
    propagation = asking.account.revoke(other.token.token_id).propagation
    held.let_go()
    closing.result()
    assert propagation.replicas_expired == 0


def test_one_that_was_never_used_is_closed_as_well(dialect: Dialect, server: ServerProcess) -> None:
    local = dialect.local(server.address)
    assert not local.holds_lease
    local.close()


def test_one_that_is_dropped_without_close_leaves_no_stream(
    dialect: Dialect, server: ServerProcess, dialect_loop: asyncio.AbstractEventLoop
) -> None:
    local = dialect.local(server.address, credential=server.caller_token_file).ready()
    dropped, session = weakref.ref(local.client), local.watching.watcher.session
    assert session is not None
    dialect.forget(local)
    del local

    def is_gone() -> bool:
        gc.collect()
        running = {thread.name for thread in threading.enumerate()}
        if dialect.is_aio:
            running = {task.get_name() for task in asyncio.all_tasks(dialect_loop)}
        return dropped() is None and WATCH not in running

    eventually(is_gone)
    assert session.end_ns is None  # given up


# ---- credentials


def test_a_new_credential_in_the_file_is_watched_with(
    dialect: Dialect, server: ServerProcess, stubs: Stubs, tmp_path: Path
) -> None:
    def an_operator() -> tuple[str, str]:
        request = system_pb.CreateOperatorRequest(role=types_pb2.OPERATOR_ROLE_CALLER, display_name="a watcher")
        created = ask(stubs.system.CreateOperator, request, stubs.admin)
        return created.operator.operator_id, created.secret

    (first_id, first), (_, second) = an_operator(), an_operator()
    file = tmp_path / "caller.token"
    file.write_text(first)
    local = dialect.local(server.address, credential=file).ready()
    asking = Asking(stubs, local)
    eventually(asking.is_allowed_here)
    session = local.watching.watcher.session
    file.write_text(second)
    ask(stubs.system.RevokeOperator, system_pb.RevokeOperatorRequest(operator_id=first_id), stubs.admin)
    eventually(lambda: local.watching.watcher.session is not session and asking.is_allowed_here())


def test_waiting_for_a_lease_that_does_not_come_tells_why(dialect: Dialect, server: ServerProcess) -> None:
    local = dialect.local(server.address, credential=generate(SecretKind.OPERATOR, new_id()).reveal())
    error = local.begin("wait_ready", timeout=3.0).error()
    assert isinstance(error, errors.DeadlineExceeded)
    assert "CREDENTIAL_UNRECOGNIZED" in str(error)


# ---- servers that do not keep to the contract


class Scripted(grpc.GenericRpcHandler):
    """A server whose Watch says what it is told to, and notes what it hears; it answers nothing else."""

    def __init__(self, said: list[bytes], *, hangs: bool = False) -> None:
        self._said = said
        self._hangs = hangs
        self.streams = 0
        self.heard: list[pb.WatchRequest] = []
        self.over = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._watch) if details.method.endswith("/Watch") else None

    def _watch(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        self.streams += 1
        self.heard.append(pb.WatchRequest.FromString(next(requests)))
        yield from self._said
        if self._hangs:
            self.over.wait(30)
            return
        with contextlib.suppress(grpc.RpcError, StopIteration):
            for request in requests:
                self.heard.append(pb.WatchRequest.FromString(request))


@contextlib.contextmanager
def scripted(*said: bytes, hangs: bool = False) -> Iterator[tuple[Scripted, str]]:
    handler, server = Scripted(list(said), hangs=hangs), grpc.server(ThreadPoolExecutor(32))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        handler.over.set()
        server.stop(0).wait()


def start(sequence: int = 1, **fields: Any) -> bytes:
    body = pb.WatchResponse.Start(session_id="a session", max_held_keys=1000, **fields)
    body.hold.FromSeconds(4)
    body.ask_interval.FromSeconds(1)
    body.ack_within.FromSeconds(1)
    return pb.WatchResponse(sequence=sequence, position="1.7", start=body).SerializeToString()


@pytest.mark.parametrize(
    "said",
    [
        (b"\xff\xff",),
        (b"",),
        (start(sequence=2),),
        (start(resumed=True),),
        (start(), start(sequence=2)),
        (
            start(),
            pb.WatchResponse(sequence=2, position="1.6", reset=pb.WatchResponse.Reset()).SerializeToString()[:-2],
        ),
        (
            start(),
            pb.WatchResponse(sequence=2, position="1.7", failure=pb.WatchResponse.Failure(id=3)).SerializeToString(),
        ),
        (start(), pb.WatchResponse(sequence=3, position="1.7", evict=pb.WatchResponse.Evict()).SerializeToString()),
        (
            start(),
            pb.WatchResponse(sequence=2, position="1.7", snapshot=pb.WatchResponse.Snapshot(id=1)).SerializeToString(),
        ),
    ],
    ids=["garbage", "empty", "number", "resumed", "twice", "no body", "nobody asked", "gap", "no entry"],
)
def test_what_the_contract_excludes_ends_the_session_and_another_is_opened(
    dialect: Dialect, said: tuple[bytes, ...]
) -> None:
    with scripted(*said) as (handler, address):
        local = dialect.local(address)
        assert isinstance(local.begin("wait_ready", timeout=0.5).error(), errors.DeadlineExceeded)
        eventually(lambda: handler.streams >= 2)
        assert not local.holds_lease
        local.close()


def test_a_server_that_does_not_open_the_session_is_left(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch_shared, "OPENING_S", 0.2)
    with scripted(hangs=True) as (handler, address):
        local = dialect.local(address)
        local.begin("wait_ready", timeout=1.0).error()
        eventually(lambda: handler.streams >= 2)
        local.close()


def test_goodbye_is_the_last_message_and_names_the_session(dialect: Dialect) -> None:
    with scripted(start()) as (handler, address):
        local = dialect.local(address)
        local.begin("wait_ready", timeout=0.5).error()
        eventually(lambda: len(handler.heard) >= 3)
        local.close()
        eventually(lambda: handler.heard[-1].WhichOneof("body") == "goodbye")
        assert handler.heard[-1].goodbye.session_id == "a session"
        assert [heard.WhichOneof("body") for heard in handler.heard[:3]] == ["hello", "ack", "ask"]


# ---- fork

FORK_OF_THREADS: Final = """
import os, sys
from doorward.threads import LocalAuthorizer
address, credential, secret, project_id = sys.argv[1:]
with LocalAuthorizer(address, credential=credential) as authorizer:
    authorizer.wait_ready(timeout=30)
    while authorizer.check(secret, "jobs:write", project_id=project_id).decided_by != "HERE":
        pass
    child = os.fork()
    if child == 0:
        try:
            assert not authorizer.holds_lease
            try:
                print("decided", authorizer.check(secret, "jobs:write", project_id=project_id), flush=True)
            except RuntimeError as error:
                print("child:", error, flush=True)
            authorizer.close()
            print("child closed", flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    print("parent:", authorizer.check(secret, "jobs:write", project_id=project_id).decided_by, flush=True)
"""
FORK_OF_AIO: Final = """
import asyncio, os, sys
from doorward.aio import LocalAuthorizer
address, credential, secret, project_id = sys.argv[1:]
async def main():
    async with LocalAuthorizer(address, credential=credential) as authorizer:
        await authorizer.wait_ready(timeout=30)
        while (await authorizer.check(secret, "jobs:write", project_id=project_id)).decided_by != "HERE":
            pass
        child = os.fork()
        if child == 0:
            try:
                assert not authorizer.holds_lease
                try:
                    print("decided", asyncio.run(authorizer.check(secret, "jobs:write", project_id=project_id)), flush=True)
                except RuntimeError as error:
                    print("child:", error, flush=True)
                asyncio.run(authorizer.close())
                print("child closed", flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        print("parent:", (await authorizer.check(secret, "jobs:write", project_id=project_id)).decided_by, flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("script", [FORK_OF_AIO, FORK_OF_THREADS], ids=["aio", "threads"])
def test_a_child_of_fork_decides_nothing_and_its_parent_goes_on(
    server: ServerProcess, stubs: Stubs, script: str
) -> None:
    """Fault 27."""
    account = an_account(stubs)
    issued = account.issue(on("job_admin", account.project_ids[0]))
    arguments = [server.address, server.caller_credential, issued.secret, account.project_ids[0]]
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "child: this client was used before fork(); a child process needs a client of its own",
        "child closed",
        "parent: HERE",
    ], ran.stderr
