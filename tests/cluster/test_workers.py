"""`doorward serve --workers N` as real processes: N replicas on one port, replaced when they die and when asked to."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest

from doorward.v1.authorizer_pb2 import CheckRequest, CheckResponse
from doorward.v1.system_admin_pb2 import ListReplicasRequest
from doorward.v1.token_admin_pb2 import RevokeTokenRequest
from tests.support.server import ServerProcess, Stubs, clean_environment, start_server, stubs_on
from tests.support.wire import OwnAccount, an_account, ask, check, eventually, on, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers share a port on Linux only")

WORKERS: Final = 2
# Longer than anything here waits: a row that goes within the patience of a test went by its parent's hand.
HOLD_S: Final = 60
PATIENCE_S: Final = 40.0
RETRIES: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


# ---- processes, as /proc shows them


@dataclass(frozen=True)
class Seen:
    """A process; its start tells it from a later one with the same id."""

    pid: int
    parent: int
    started: int
    command: str

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, reaped or not."""
        return self not in processes()


def processes() -> set[Seen]:
    """Every process that has not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                _, _, rest = (entry / "stat").read_text().rpartition(")")
                state, parent, *others = rest.split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if state not in "ZX":
                    found.add(Seen(int(entry.name), int(parent), int(others[17]), command))
    return found


def descendants(pid: int) -> set[Seen]:
    """What it started, and what those started."""
    everything = processes()
    found: set[Seen] = set()
    while more := {one for one in everything if one.parent in {pid, *(known.pid for known in found)}} - found:
        found |= more
    return found


def workers_of(server: ServerProcess) -> set[int]:
    """The process ids of its workers."""
    return {seen.pid for seen in descendants(server.process.pid) if "doorward_server.workers.worker" in seen.command}


def connections_to(server: ServerProcess, pid: int) -> set[int]:
    """The ports of the clients whose connections that process has accepted."""
    port = int(server.address.rpartition(":")[2])
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    # gRPC listens on an IPv6 socket where there is one, also for an IPv4 address.
    tables = [Path(name).read_text().splitlines()[1:] for name in ("/proc/net/tcp", "/proc/net/tcp6")]
    found = set()
    for line in itertools.chain(*tables):
        _, local, remote, state, *others = line.split()
        is_established = state == "01"
        if is_established and int(local.rpartition(":")[2], 16) == port and others[5] in inodes:
            found.add(int(remote.rpartition(":")[2], 16))
    return found


# ---- servers and clients


def start(base: Path, *arguments: str, listen: str = "127.0.0.1:0") -> ServerProcess:
    """A server all of whose workers serve."""
    several = ["--workers", str(WORKERS), "--log-format", "json"]
    return start_server(base / "data", base / "scratch", [*several, *arguments], listen=listen)


@contextlib.contextmanager
def running(base: Path, *arguments: str, listen: str = "127.0.0.1:0") -> Iterator[ServerProcess]:
    """One that is ended with the block, if the test did not end it; nothing of it is left then."""
    server = start(base, *arguments, listen=listen)
    left = descendants(server.process.pid)
    try:
        yield server
    finally:
        left |= descendants(server.process.pid)
        server.stop()
        eventually(lambda: all(seen.is_gone for seen in left), PATIENCE_S)


def events(server: ServerProcess, name: str) -> list[dict[str, Any]]:
    """What it logged under that name, in order."""
    return [event for event in told(server) if event["event"] == name]


def told(server: ServerProcess) -> list[dict[str, Any]]:
    """Everything that it logged, in order; whole lines, whoever wrote them. gRPC's own have another form."""
    *lines, _ = server.log.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.startswith("{")]


@contextlib.contextmanager
def connected(server: ServerProcess) -> Iterator[Stubs]:
    """Stubs on a connection of their own, with retries."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", RETRIES))
    with grpc.insecure_channel(server.address, options=options) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        yield stubs_on(channel, server)


@contextlib.contextmanager
def connected_to_each(server: ServerProcess) -> Iterator[dict[int, Stubs]]:
    """Stubs on a connection to each worker, by process id. The system chooses, so more are opened until it has."""
    with contextlib.ExitStack() as stack:
        found: dict[int, Stubs] = {}
        for _ in range(64):
            before = {pid: connections_to(server, pid) for pid in workers_of(server)}
            stubs = stack.enter_context(connected(server))
            # It is not counted as accepted before it was answered.
            ask(stubs.system.ListReplicas, ListReplicasRequest(), stubs.admin)
            (pid,) = [pid for pid in before if connections_to(server, pid) - before[pid]]
            found.setdefault(pid, stubs)
            if set(found) == set(before):
                break
        yield found


def replica_ids(stubs: Stubs) -> set[str]:
    """The rows that a mutation waits for."""
    listed = ask(stubs.system.ListReplicas, ListReplicasRequest(), stubs.admin).replicas
    return {replica.replica_id for replica in listed}


def refused(arguments: list[str]) -> str:
    """What a server says that cannot start."""
    command = [sys.executable, "-m", "doorward_server.cli.main", "serve", *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean_environment(), timeout=PATIENCE_S
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    return ended.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests that leave it with all its workers."""
    with running(tmp_path_factory.mktemp("workers"), "--hold", str(HOLD_S)) as server:
        yield server


@pytest.fixture
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    """Stubs on a connection of this test's own, to a server all of whose workers are registered."""
    with connected(server) as stubs:
        eventually(lambda: len(replica_ids(stubs)) == len(workers_of(server)) == WORKERS, PATIENCE_S)
        yield stubs


# ---- N replicas, one port


def test_each_worker_is_a_replica_of_its_own(server: ServerProcess, stubs: Stubs) -> None:
    replicas = ask(stubs.system.ListReplicas, ListReplicasRequest(), stubs.admin).replicas

    assert len({replica.replica_id for replica in replicas}) == WORKERS
    assert {replica.address for replica in replicas} == {server.address}


def test_what_a_worker_logs_carries_its_number(server: ServerProcess, stubs: Stubs) -> None:
    registered = {event["replica_id"]: event["worker"] for event in events(server, "replica_registered")}

    assert sorted(registered[replica_id] for replica_id in replica_ids(stubs)) == list(range(1, WORKERS + 1))
    assert all("worker" not in event for event in events(server, "embedded_postgres_started"))


def test_connections_are_spread_over_the_workers_and_each_answers(server: ServerProcess, stubs: Stubs) -> None:
    account = an_account(stubs, projects=1)
    (project_id,) = account.project_ids
    secret = account.issue(on("developer", project_id)).secret

    with connected_to_each(server) as by_process:
        assert set(by_process) == workers_of(server)
        for own in by_process.values():
            assert verdict(check(own, secret, "develop:write", project_id=project_id)) == "ALLOWED"


def test_the_banner_comes_once(server: ServerProcess) -> None:
    assert server.output.read_text().count("Doorward listens on") == 1


# ---- a port belongs to one server


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_server_on_the_port_is_refused(server: ServerProcess, tmp_path: Path, workers: str) -> None:
    said = refused(["--listen", server.address, "--data-dir", str(tmp_path / "data"), "--workers", workers])

    assert f"cannot listen on {server.address}: the address is in use" in said
    assert "--listen" in said


def test_several_workers_are_refused_the_port_of_a_single_process(tmp_path: Path) -> None:
    single = start_server(tmp_path / "data", tmp_path / "scratch")
    try:
        said = refused(["--listen", single.address, "--data-dir", str(tmp_path / "other"), "--workers", "2"])
    finally:
        assert single.stop() == 0

    assert f"cannot listen on {single.address}: the address is in use" in said
    assert not (tmp_path / "other").exists()


def test_a_unix_socket_is_not_shared(tmp_path: Path) -> None:
    assert "several workers cannot share a Unix socket" in refused(
        ["--listen", f"unix:{tmp_path / 'socket'}", "--data-dir", str(tmp_path / "data"), "--workers", "2"]
    )


# ---- a worker dies


def test_a_killed_workers_row_goes_at_once_and_another_takes_its_place(server: ServerProcess, stubs: Stubs) -> None:
    account = an_account(stubs, projects=1)
    (project_id,) = account.project_ids
    issued = account.issue(on("developer", project_id))
    before, old, died = replica_ids(stubs), workers_of(server), len(events(server, "worker_died"))

    with connected_to_each(server) as by_process:
        victim, survivor = sorted(by_process)
        for own in by_process.values():
            assert verdict(check(own, issued.secret, "develop:write", project_id=project_id)) == "ALLOWED"
        os.kill(victim, signal.SIGKILL)
        # By the survivor; within a deadline that is shorter than the hold of the row that the victim left.
        own = by_process[survivor]
        request = RevokeTokenRequest(token_id=issued.token.token_id, reason="leaked")
        propagation = ask(own.tokens.RevokeToken, request, own.admin, PATIENCE_S).propagation
        assert propagation.replicas_expired == 0
        assert verdict(check(own, issued.secret, "develop:write", project_id=project_id)) == "TOKEN_REVOKED"

        eventually(lambda: len(replica_ids(own)) == len(workers_of(server)) == WORKERS, PATIENCE_S)
        assert len(replica_ids(own) - before) == 1
        assert workers_of(server) - old
        assert victim not in workers_of(server)
    assert [event["status"] for event in events(server, "worker_died")[died:]] == [-signal.SIGKILL]
    with connected_to_each(server) as by_process:
        for own in by_process.values():
            assert verdict(check(own, issued.secret, "develop:write", project_id=project_id)) == "TOKEN_REVOKED"


def test_a_killed_workers_row_goes_without_any_mutation(server: ServerProcess, stubs: Stubs) -> None:
    with connected_to_each(server) as by_process:
        victim, survivor = sorted(by_process)
        before = replica_ids(by_process[survivor])
        (number,) = {event["worker"] for event in events(server, "worker_started") if event["process"] == victim}
        registered = [event for event in events(server, "replica_registered") if event["worker"] == number]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: registered[-1]["replica_id"] not in replica_ids(by_process[survivor]), PATIENCE_S)

    assert registered[-1]["replica_id"] in before


def test_workers_that_die_again_and_again_end_the_parent(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        before = descendants(server.process.pid)

        def kill_all() -> bool:
            for pid in workers_of(server):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return server.process.poll() is not None

        eventually(kill_all, 100.0)

        assert server.process.returncode == 1
        assert "workers died within a minute" in server.log.read_text()
        assert len(events(server, "worker_died")) > WORKERS
        eventually(lambda: all(seen.is_gone for seen in before), PATIENCE_S)


@contextlib.contextmanager
def without_keys(server: ServerProcess) -> Iterator[None]:
    """For the block nothing starts on its data directory: the pepper keys are away."""
    keys, away = server.data_dir / "pepper.keys", server.data_dir / "pepper.away"
    keys.rename(away)
    try:
        yield
    finally:
        away.rename(keys)


def test_a_worker_that_cannot_start_is_tried_again_while_others_serve(server: ServerProcess, stubs: Stubs) -> None:
    unable = len([event for event in events(server, "worker_died") if event["status"] == 2])
    with connected_to_each(server) as by_process:
        victim, survivor = sorted(by_process)
        with without_keys(server):
            os.kill(victim, signal.SIGKILL)
            eventually(
                lambda: len([event for event in events(server, "worker_died") if event["status"] == 2]) > unable + 1,
                PATIENCE_S,
            )
            assert len(replica_ids(by_process[survivor])) == WORKERS - 1
        eventually(lambda: len(replica_ids(by_process[survivor])) == WORKERS, PATIENCE_S)


# ---- a rolling restart


@dataclass
class Load:
    """Checks of two tokens, in turn, by a client with retries; `wrong` is what was not as it must be."""

    server: ServerProcess
    account: OwnAccount
    kept: str
    revoked: str
    has_returned: threading.Event
    stop: threading.Event
    turns: int = 0
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Until it is stopped."""
        project_id, account_id = self.account.project_ids[0], self.account.account_id
        kept = CheckRequest(secret=self.kept, permission="develop:write", project_id=project_id)
        other = CheckRequest(secret=self.kept, permission="billing:read", account_id=account_id)
        revoked = CheckRequest(secret=self.revoked, permission="develop:write", project_id=project_id)
        with connected(self.server) as stubs:
            while not self.stop.is_set():
                # Looked at before the checks begin.
                ends = {"TOKEN_REVOKED"} if self.has_returned.is_set() else {"TOKEN_REVOKED", "ALLOWED"}
                asked = [(kept, {"ALLOWED"}), (other, {"PERMISSION_NOT_GRANTED"}), (revoked, ends)]
                # Several at once on one connection, so that there is never a moment without one on its way.
                calls = [
                    (stubs.authorizer.Check.future(request, timeout=PATIENCE_S, metadata=stubs.caller), right)
                    for request, right in asked * 4
                ]
                for call, right in calls:
                    self._judge(call, right)
                self.turns += 1

    def _judge(self, call: grpc.Future[CheckResponse], right: set[str]) -> None:
        try:
            answer = verdict(call.result())
        except grpc.RpcError as error:
            answer = f"{error.code()}: {error.details()}"
        if answer not in right:
            self.wrong.append(f"{answer}, not one of {sorted(right)}")


@contextlib.contextmanager
def under_load(server: ServerProcess, stubs: Stubs, clients: int = 3) -> Iterator[tuple[list[Load], OwnAccount, str]]:
    """Clients that check while the block runs; the account, and the id of a token that the block may revoke."""
    account = an_account(stubs, projects=1)
    kept, revoked = (account.issue(on("developer", *account.project_ids)) for _ in range(2))
    has_returned, stop = threading.Event(), threading.Event()
    loads = [Load(server, account, kept.secret, revoked.secret, has_returned, stop) for _ in range(clients)]
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    try:
        yield loads, account, revoked.token.token_id
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)


def go_on(loads: list[Load]) -> None:
    """Returns once every client has asked everything anew."""
    before = [load.turns for load in loads]
    eventually(lambda: all(load.turns > turns + 1 for load, turns in zip(loads, before, strict=True)), PATIENCE_S)


def test_a_rolling_restart_loses_no_call_and_answers_none_wrongly(server: ServerProcess, stubs: Stubs) -> None:
    old, rows = workers_of(server), replica_ids(stubs)
    rolled = len(events(server, "rolling_restart_done"))

    with under_load(server, stubs) as (loads, account, token_id):
        go_on(loads)
        server.process.send_signal(signal.SIGUSR2)
        # In the middle: the first successor serves beside a worker that was not replaced yet, or is about to be.
        eventually(lambda: bool(workers_of(server) - old), PATIENCE_S)
        propagation = account.revoke(token_id, "leaked").propagation
        loads[0].has_returned.set()
        eventually(lambda: len(events(server, "rolling_restart_done")) > rolled, PATIENCE_S)
        go_on(loads)

    assert [wrong for load in loads for wrong in load.wrong] == []
    assert propagation.replicas_expired == 0
    assert not workers_of(server) & old
    assert len(workers_of(server)) == len(replica_ids(stubs)) == WORKERS
    assert not replica_ids(stubs) & rows


def test_each_successor_serves_before_its_predecessor_is_told_to_stop(server: ServerProcess, stubs: Stubs) -> None:
    old = workers_of(server)
    seen = len(told(server))

    server.process.send_signal(signal.SIGUSR2)
    eventually(lambda: not workers_of(server) & old and len(replica_ids(stubs)) == WORKERS, PATIENCE_S)
    eventually(lambda: len(workers_of(server)) == WORKERS, PATIENCE_S)

    order = ("worker_started", "replica_registered", "worker_serves", "server_stopping", "worker_ended")
    assert [(event["event"], event["worker"]) for event in told(server)[seen:] if event["event"] in order] == [
        (name, number) for number in range(1, WORKERS + 1) for name in order
    ]


def test_a_rolling_restart_stops_where_a_successor_cannot_start(server: ServerProcess, stubs: Stubs) -> None:
    old, rows = workers_of(server), replica_ids(stubs)
    stopped = len(events(server, "rolling_restart_stopped"))

    with without_keys(server):
        server.process.send_signal(signal.SIGUSR2)
        eventually(lambda: len(events(server, "rolling_restart_stopped")) > stopped, PATIENCE_S)

    assert (workers_of(server), replica_ids(stubs)) == (old, rows)


# ---- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_parent_ends_with_all_its_workers(tmp_path: Path, number: signal.Signals) -> None:
    server = start(tmp_path)
    left = descendants(server.process.pid)
    assert len(workers_of(server)) == WORKERS

    server.process.send_signal(number)

    assert server.process.wait(PATIENCE_S) == 0
    # It waited for them: none is left by now. PostgreSQL's came last.
    assert [seen for seen in left if not seen.is_gone] == []
    assert sorted(event["worker"] for event in events(server, "server_stopped")) == list(range(1, WORKERS + 1))
    assert [event["status"] for event in events(server, "worker_ended")] == [0] * WORKERS


def test_a_server_starts_again_at_once_on_its_port_and_waits_for_no_row_of_before(tmp_path: Path) -> None:
    first = start(tmp_path, "--hold", str(HOLD_S))
    with connected(first) as stubs:
        before = replica_ids(stubs)
        # The end that closes first keeps the port for a minute (TIME_WAIT): that is the server's.
        assert first.stop() == 0

    with running(tmp_path, listen=first.address) as again, connected(again) as stubs:
        assert len(replica_ids(stubs)) == WORKERS
        assert not replica_ids(stubs) & before


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    server = start(tmp_path)
    left = descendants(server.process.pid)
    assert len(workers_of(server)) == WORKERS

    server.kill()

    eventually(lambda: all(seen.is_gone for seen in left), PATIENCE_S)
    assert sorted(event["worker"] for event in events(server, "parent_gone")) == list(range(1, WORKERS + 1))
