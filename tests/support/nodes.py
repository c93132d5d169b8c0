"""PostgreSQL servers as the failover tests need them: started, frozen, killed, promoted, cloned, one by one.

Made of the product's own binaries, on Unix sockets, reachable only for who runs the tests. Used by `pair.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import asyncpg

from doorward_server.embedded.leftovers import find_processes, read_postmaster_file
from doorward_server.embedded.programs import program_environ
from tests.support.server import PATIENCE_S
from tests.support.wire import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.embedded.binaries import Binaries
    from doorward_server.embedded.identity import Identity

ROLE: Final = "doorward"
DATABASE: Final = "doorward"
# Settings that no test changes; what tests do change is set with ALTER SYSTEM, which these would outrank.
PARAMETERS: Final = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "fsync": "off",  # no test here cuts power
    "shared_buffers": "16MB",
    "max_connections": "60",
    "wal_retrieve_retry_interval": "100ms",
    "autovacuum": "off",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",  # in the cluster's directory, so that it goes with it after a kill -9
}
# Of postmaster.pid: the key and the id of a System V segment, which outlives a kill -9.
SHARED_MEMORY_LINE: Final = 6
IPC_RMID: Final = 0
ACCESS: Final = f"local all {ROLE} peer map={ROLE}\nlocal replication {ROLE} peer map={ROLE}\n"


class Node:
    """One PostgreSQL server: its cluster, and the directory of its socket, which both stay when it goes."""

    def __init__(self, directory: Path, binaries: Binaries, identity: Identity) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.name = directory.name
        self.cluster = directory / "cluster"
        self.sockets = directory / "sockets"
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._binaries = binaries
        self.identity = identity
        self._log = directory / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of this server alone."""
        return url_of(self)

    def start(self) -> None:
        """Returns when it takes connections: a primary, or a standby that can be read."""
        parameters = {**PARAMETERS, "unix_socket_directories": str(self.sockets)}
        arguments = [f"--{name}={value}" for name, value in parameters.items()]
        command = self.identity.command(self._binaries.postgres, "-D", str(self.cluster), *arguments)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=program_environ(), cwd="/",
                start_new_session=True,
            )  # fmt: skip
        eventually(self._is_ready, PATIENCE_S)

    def stop(self) -> None:
        """A fast shutdown, with a checkpoint. Waits for nobody but a standby that receives."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of every process, as a machine that loses its power."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP of every process: nothing is received, nothing acknowledged, and no connection ends."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Goes on where it stood."""
        self._signal(signal.SIGCONT)

    def promote(self) -> None:
        """Makes a standby a primary; returns when it takes writes."""
        assert self.value("SELECT pg_promote(true, 60)") is True
        assert self.value("SELECT pg_is_in_recovery()") is False

    def follow(self, primary: Node) -> None:
        """Makes this stopped node, a copy of `primary`, its standby; it is synchronous as soon as it receives."""
        conninfo = f"host={primary.sockets} port=5432 user={ROLE} application_name={self.name}"
        self._configure(f"primary_conninfo = '{conninfo}'")

    def isolate(self) -> None:
        """Makes this stopped standby one that receives from nobody: it keeps what it has."""
        self._configure("primary_conninfo = ''")

    def set_parameter(self, name: str, value: str) -> None:
        """ALTER SYSTEM, in force when this returns."""
        self.fetch(f"ALTER SYSTEM SET {name} = '{value}'")
        self.fetch("SELECT pg_reload_conf()")
        eventually(lambda: self.value("SELECT current_setting($1)", name) == value)

    def clone(self, source: Node) -> None:
        """Makes this node's cluster by pg_basebackup of `source`, which runs."""
        shutil.rmtree(self.cluster, ignore_errors=True)
        self.run("pg_basebackup", "-D", str(self.cluster), "-h", str(source.sockets), "-p", "5432", "-U", ROLE,
                 "--checkpoint=fast", "--no-sync")  # fmt: skip

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's programs to its end."""
        command = self.identity.command(self._binaries.directory / program, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, env=program_environ(), cwd="/", check=False)
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def initialise(self) -> None:
        """Makes an empty cluster that lets in who runs the tests, over its socket."""
        self.run("initdb", "-D", str(self.cluster), f"--username={ROLE}", "--encoding=UTF8", "--locale=C",
                 "--auth=peer", "--no-instructions", "--no-sync")  # fmt: skip
        (self.cluster / "pg_hba.conf").write_text(ACCESS)
        (self.cluster / "pg_ident.conf").write_text(f'{ROLE} "{self.identity.peer_name}" {ROLE}\n')

    def fetch(self, sql: str, *arguments: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of one statement, on a connection of its own."""

        async def fetch() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(url_of(self, database=database), timeout=PATIENCE_S)
            try:
                return [tuple(row) for row in await connection.fetch(sql, *arguments, timeout=PATIENCE_S)]
            finally:
                await connection.close(timeout=PATIENCE_S)

        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(fetch())

    def value(self, sql: str, *arguments: object, database: str = "postgres") -> Any:
        """The first column of the first row."""
        return self.fetch(sql, *arguments, database=database)[0][0]

    def commits_that_wait(self) -> int:
        """How many commits wait for a synchronous standby now."""
        return int(self.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))

    @property
    def is_running(self) -> bool:
        """Whether its postmaster is there."""
        return self._process is not None and self._process.poll() is None

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"PostgreSQL ended: {self._log.read_text(errors='replace')[-2000:]}"
        said = read_postmaster_file(self.cluster)
        return said is not None and said.pid == self._process.pid and said.ready

    def _configure(self, line: str) -> None:
        assert not self.is_running
        (self.cluster / "standby.signal").touch()
        with (self.cluster / "postgresql.auto.conf").open("a") as file:
            file.write(f"{line}\n")

    def _signal(self, number: signal.Signals) -> None:
        for pid in find_processes(self.cluster):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if number == signal.SIGKILL:
            end_at_once(self.cluster)
        else:
            process.send_signal(number)
        process.wait(PATIENCE_S)
        # A child may outlive its postmaster by a moment, and a new one would not start beside it.
        eventually(lambda: not find_processes(self.cluster), PATIENCE_S)


def end_at_once(cluster: Path) -> None:
    """kill -9 of every process that works in `cluster`, whoever started it, and of the memory that they leave behind."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    for pid in find_processes(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not find_processes(cluster), PATIENCE_S)
    if len(lines) > SHARED_MEMORY_LINE and sys.platform == "linux":
        _, _, segment = lines[SHARED_MEMORY_LINE].strip().rpartition(" ")
        ctypes.CDLL(None).shmctl(int(segment), IPC_RMID, None)


def url_of(*nodes: Node, database: str = DATABASE) -> str:
    """One URL that names these servers, in this order."""
    hosts = quote(",".join(str(node.sockets) for node in nodes), safe="/,")
    ports = ",".join("5432" for _ in nodes)
    return f"postgresql:///{database}?host={hosts}&port={ports}&user={ROLE}&sslmode=disable"


def require_synchronous(primary: Node) -> None:
    """Commits at `primary` wait for a standby from here on, and one is there."""
    primary.set_parameter("synchronous_standby_names", "*")
    eventually(lambda: bool(primary.value("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")))
