"""PostgreSQL under Patroni, with an etcd of its own: started, asked, switched over, killed, ended.

Everything listens on loopback, on ports that were free, and PostgreSQL asks for passwords made for this run. Patroni runs
in an environment of its own (`DOORWARD_PATRONI` names its program); its PostgreSQL is the product's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from doorward_server.embedded.binaries import find_binaries
from doorward_server.embedded.identity import choose_identity
from doorward_server.embedded.programs import program_environ
from tests.support.nodes import end_at_once
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from doorward_server.embedded.identity import Identity

VARIABLE: Final = "DOORWARD_PATRONI"
DATABASE: Final = "doorward"
# The shortest that Patroni takes: a leader that is not heard of for so long is deposed.
TTL_S: Final = 20
SETTINGS: Final[Mapping[str, object]] = {
    "ttl": TTL_S,
    "loop_wait": 2,
    "retry_timeout": 3,
    "synchronous_mode": True,
    # A primary without a synchronous standby acknowledges nothing, rather than what a failover could lose.
    "synchronous_mode_strict": True,
    "postgresql": {
        "use_pg_rewind": True,
        "parameters": {
            "max_connections": 60,
            "shared_buffers": "16MB",
            "wal_keep_size": "64MB",
            "jit": "off",
            "dynamic_shared_memory_type": "mmap",  # so that a kill -9 leaves nothing outside of the directory
        },
    },
}
PATIENCE_S: Final = 120.0


@dataclass(frozen=True)
class Programs:
    """What is run."""

    patroni: Path
    etcd: Path


def find_programs() -> Programs | str:
    """Patroni and etcd; a sentence that says what is missing."""
    patroni, etcd = os.environ.get(VARIABLE) or shutil.which("patroni"), shutil.which("etcd")
    if patroni is None or not os.access(patroni, os.X_OK):
        return f"Patroni is not installed: pip install 'patroni[etcd3]' 'psycopg[binary]' somewhere, {VARIABLE}=…/bin/patroni"
    if etcd is None:
        return "etcd is not installed: apt-get install etcd-server"
    return Programs(Path(patroni).absolute(), Path(etcd))


@dataclass
class Member:
    """One Patroni with its PostgreSQL."""

    name: str
    directory: Path
    port: int
    rest_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def cluster(self) -> Path:
        """PostgreSQL's data directory."""
        return self.directory / "cluster"


class Patronis:
    """Three members and their etcd; `close` ends it all."""

    def __init__(self, programs: Programs, directory: Path) -> None:
        self.directory = directory
        self._programs = programs
        self._binaries = find_binaries()
        self._identity: Identity = asyncio.run(choose_identity(self._binaries, directory))[0]
        self._passwords = {name: secrets.token_urlsafe(16) for name in ("postgres", "replicator", "rewinder", DATABASE)}
        self._etcd: subprocess.Popen[bytes] | None = None
        ports = _free_ports(8)
        self._etcd_ports = ports[0], ports[1]
        self.members = {
            name: Member(name, directory / name, ports[2 + 2 * number], ports[3 + 2 * number])
            for number, name in enumerate(("one", "two", "three"))
        }

    def open(self) -> None:
        """Starts everything; returns when a deployment can be begun in the database."""
        self._start_etcd()
        for member in self.members.values():
            member.directory.mkdir(mode=0o700)
            self.start(member)
        self.await_whole()
        self._execute(f"CREATE ROLE {DATABASE} LOGIN PASSWORD '{self._passwords[DATABASE]}'")
        self._execute(f"CREATE DATABASE {DATABASE} OWNER {DATABASE}")

    @property
    def url(self) -> str:
        """The URL that names all three."""
        places = ",".join(f"127.0.0.1:{member.port}" for member in self.members.values())
        return f"postgresql://{DATABASE}:{self._passwords[DATABASE]}@{places}/{DATABASE}?sslmode=disable"

    def url_of_leader(self) -> str:
        """The URL of the primary alone."""
        port = self.members[self.leader()].port
        return f"postgresql://{DATABASE}:{self._passwords[DATABASE]}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"

    # ---- what Patroni says

    def leader(self) -> str:
        """The name of the primary; empty if there is none now."""
        return next((name for name, role, state in self._states() if role == "leader" and state == "running"), "")

    def synchronous(self) -> str:
        """The name of the synchronous standby that receives; empty if there is none now."""
        found = (name for name, role, state in self._states() if role == "sync_standby" and state == "streaming")
        return next(found, "")

    def await_leader(self, *, but: str) -> str:
        """Returns once another one than `but` is the primary and has a synchronous standby."""
        eventually(lambda: self.leader() not in {"", but} and bool(self.synchronous()), PATIENCE_S)
        return self.leader()

    def await_whole(self) -> None:
        """Returns once all three are there: one primary, two that follow it, one of them synchronously."""
        states = {"running", "streaming"}
        eventually(
            lambda: (
                len([state for _, _, state in self._states() if state in states]) == len(self.members)
                and bool(self.leader() and self.synchronous())
            ),
            PATIENCE_S,
        )

    # ---- what is done to it

    def switch_over(self) -> None:
        """Asks for the synchronous standby to become the primary, as before maintenance."""
        leader = self.leader()
        self._ask(self.members[leader], "/switchover", {"leader": leader, "candidate": self.synchronous()})

    def kill(self, name: str) -> None:
        """kill -9 of a member's Patroni and of every process of its PostgreSQL, as a machine that loses its power."""
        member = self.members[name]
        assert member.process is not None
        member.process.kill()
        member.process.wait(PATIENCE_S)
        end_at_once(member.cluster)

    def start(self, member: Member) -> None:
        """Starts a member, which joins the others, by pg_rewind if it must."""
        (member.directory / "sockets").mkdir(mode=0o700, exist_ok=True)
        configuration = member.directory / "patroni.json"
        configuration.write_text(json.dumps(self._configuration(member)))
        configuration.chmod(0o600)
        command = self._identity.command(self._programs.patroni, str(configuration))
        member.process = _run(command, member.directory / "patroni.log")

    def close(self) -> None:
        """Ends Patroni, which ends its PostgreSQL, then whatever is left."""
        running = [member for member in self.members.values() if member.process and member.process.poll() is None]
        for member in running:
            assert member.process is not None
            member.process.kill()
            member.process.wait(PATIENCE_S)
        for member in self.members.values():
            end_at_once(member.cluster)
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait(PATIENCE_S)

    # ---- the parts

    def _configuration(self, member: Member) -> dict[str, Any]:
        passwords, addresses = self._passwords, ("listen", "connect_address")
        users = {"superuser": "postgres", "replication": "replicator", "rewind": "rewinder"}
        return {
            "scope": DATABASE,
            "name": member.name,
            "restapi": dict.fromkeys(addresses, f"127.0.0.1:{member.rest_port}"),
            "etcd3": {"hosts": f"127.0.0.1:{self._etcd_ports[0]}"},
            "bootstrap": {"dcs": SETTINGS, "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"]},
            "postgresql": {
                **dict.fromkeys(addresses, f"127.0.0.1:{member.port}"),
                "data_dir": str(member.cluster),
                "bin_dir": str(self._binaries.directory),
                "pgpass": str(member.directory / "pgpass"),
                "authentication": {use: {"username": name, "password": passwords[name]} for use, name in users.items()},
                "parameters": {"unix_socket_directories": str(member.directory / "sockets")},
                "pg_hba": [
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication all 127.0.0.1/32 scram-sha-256",
                ],
            },
        }

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._etcd_ports)
        command = [
            str(self._programs.etcd), "--name=one", f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=one={peer}",
        ]  # fmt: skip
        self._etcd = _run(command, self.directory / "etcd.log")
        eventually(lambda: _answers(f"{client}/health"))

    def _states(self) -> list[tuple[str, str, str]]:
        """Name, role and state of each member, as whichever Patroni is asked knows them."""
        for member in self.members.values():
            if member.process is None or member.process.poll() is not None:
                continue
            with contextlib.suppress(OSError, ValueError):
                told = self._ask(member, "/cluster", None)
                return [(known["name"], known["role"], known["state"]) for known in json.loads(told)["members"]]
        return []

    @staticmethod
    def _ask(member: Member, path: str, body: dict[str, str] | None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{member.rest_port}{path}", data=data)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return bytes(answer.read())

    def _execute(self, statement: str) -> None:
        async def execute() -> None:
            port = self.members[self.leader()].port
            connection = await asyncpg.connect(
                host="127.0.0.1", port=port, user="postgres", password=self._passwords["postgres"], database="postgres"
            )
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(execute())


def _run(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=program_environ(), cwd="/",
            start_new_session=True,
        )  # fmt: skip


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
