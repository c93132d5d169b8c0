"""A real pair of PostgreSQL servers, primary and synchronous standby, and Doorward processes on it.

    def test_…(pair: Pair):
        a, b = pair.serve(2, pair.primary, pair.standby, hold_s=1.5)    # clients of two servers, whose URL names both
        pair.primary.kill()                                            # kill -9
        pair.standby.promote()
        pair.attach_standby(pair.standby)                              # without one, no commit there is acknowledged
        pair.verify(pair.standby)                                      # every promise was kept

    def test_…(lone: Pair): ...                                        # only the primary, and it replicates to nobody

Made of the product's own binaries, on Unix sockets. The clusters are copies of one that was made once for the session,
with a deployment in it: its first credentials are those of every server here.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import pytest

from doorward_server.embedded.binaries import find_binaries
from doorward_server.embedded.identity import choose_identity
from doorward_server.settings import Settings
from doorward_server.start import first_credentials, open_database, open_ring
from tests.cluster.clients import Client
from tests.cluster.history import History, now_ns
from tests.cluster.lines import Background, Rows
from tests.cluster.verdicts import hold
from tests.support.nodes import DATABASE, Node, require_synchronous, url_of
from tests.support.postgres import scratch_directory
from tests.support.server import ServerProcess, bearer, start_server
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.cluster.history import Subject


LOG_TAIL: Final = 6000


class Servers:
    """Doorward processes with the credentials of one deployment. `history`: what their clients saw."""

    def __init__(self, background: Background, credentials: Path, directory: Path) -> None:
        self.history = History(now_ns)
        self.processes: dict[str, ServerProcess] = {}
        self._background = background
        self._credentials = credentials
        self._directory = directory
        self._clients: list[Client] = []

    def serve(self, count: int, url: str, *, hold_s: float, arguments: Sequence[str] = ()) -> list[Client]:
        """Clients of so many new servers."""
        self.history.holds_ms.add(round(hold_s * 1000))
        begun = len(self.processes)
        names = [chr(ord("a") + number) for number in range(begun, begun + count)]
        pepper_file = self._credentials / "pepper.keys"
        given = ("--database-url", url, "--pepper-file", str(pepper_file), "--hold", str(hold_s), *arguments)
        with ThreadPoolExecutor(count) as starting:
            return list(starting.map(lambda name: self._serve(name, given), names))

    def verify(self, url: str) -> None:
        """Every promise was kept, and the database there has what was acknowledged."""
        rows = Rows(self._background, url)
        try:
            hold(self.history, rows)
        finally:
            rows.close()

    def close(self) -> None:
        """Ends them all."""
        for client in self._clients:
            client.close()
        for server in self.processes.values():
            server.kill()
            # pytest shows it with a test that failed.
            sys.stdout.write(f"---- {server.log}\n{server.log.read_text()[-LOG_TAIL:]}\n")

    def _serve(self, name: str, arguments: Sequence[str]) -> Client:
        data_dir = self._directory / f"doorward-{name}"
        shutil.copytree(self._credentials, data_dir, dirs_exist_ok=True)
        server = start_server(data_dir, data_dir / "scratch", arguments)
        self.processes[name] = server
        admin, caller = bearer(server.operator_credential), bearer(server.caller_credential)
        client = Client(name, server.address, admin, caller, self.history)
        self._clients.append(client)
        return client


class Pair:
    """A primary, a synchronous standby, and what was started on them; `close` ends it all."""

    def __init__(self, seed: Seed, background: Background, directory: Path) -> None:
        self.directory = directory
        self.servers = Servers(background, seed.credentials, directory)
        self._seed = seed
        self._nodes: list[Node] = []
        self.primary = self.node("primary")
        self.standby = self.node("standby")

    def open(self, *, alone: bool = False) -> None:
        """Starts both, replicating synchronously; `alone`: the primary only."""
        shutil.copytree(self._seed.cluster, self.primary.cluster)
        self.primary.start()
        if not alone:
            shutil.copytree(self._seed.cluster, self.standby.cluster)
            self.standby.follow(self.primary)
            self.standby.start()
            require_synchronous(self.primary)

    def node(self, name: str) -> Node:
        """One more PostgreSQL server, without a cluster yet."""
        made = Node(self.directory / name, self._seed.binaries, self._seed.identity)
        self._nodes.append(made)
        return made

    def attach_standby(self, primary: Node, *, into: Node | None = None) -> Node:
        """Builds a new synchronous standby of `primary`, and waits for it. `into`: a dead node whose place it takes."""
        standby = into or self.node(f"standby-{len(self._nodes)}")
        standby.clone(primary)
        standby.follow(primary)
        standby.start()
        require_synchronous(primary)
        return standby

    def serve(self, count: int, *nodes: Node, hold_s: float, arguments: Sequence[str] = ()) -> list[Client]:
        """Clients of so many new servers, whose URL names these nodes in this order."""
        return self.servers.serve(count, url_of(*nodes), hold_s=hold_s, arguments=arguments)

    def verify(self, node: Node) -> None:
        """Every promise was kept, and `node` has what was acknowledged."""
        self.servers.verify(node.url)

    def close(self) -> None:
        """Ends the servers, then PostgreSQL."""
        self.servers.close()
        for node in self._nodes:
            node.kill()


def first_decision(client: Client, subject: Subject, *, fully: bool = False) -> str:
    """The first answer to a check that is one: UNAVAILABLE may come before it, and nothing else may."""
    answers: list[str] = []

    def is_decided() -> bool:
        answers.append(client.check(subject, fully=fully))
        return answers[-1] != "UNAVAILABLE"

    eventually(is_decided)
    return answers[-1]


def await_undecided(client: Client, subject: Subject) -> None:
    """Returns once the server cannot decide."""
    eventually(lambda: client.check(subject) == "UNAVAILABLE")


class Seed:
    """A stopped cluster with a deployment in it, and the credentials that go with that: copied for every test."""

    def __init__(self, directory: Path) -> None:
        self.binaries = find_binaries()
        self.identity, _ = asyncio.run(choose_identity(self.binaries, directory))
        self.credentials = directory / "credentials"
        self.credentials.mkdir(mode=0o700)
        node = Node(directory / "seed", self.binaries, self.identity)
        self.cluster = node.cluster
        node.initialise()
        node.start()
        try:
            node.fetch(f"CREATE DATABASE {DATABASE}")
            asyncio.run(begin_deployment(node.url, self.credentials))
        finally:
            node.stop()


async def begin_deployment(url: str, directory: Path) -> None:
    """Migrates and seeds the database; its pepper keys and first credentials are then in `directory`."""
    settings = Settings(data_dir=directory)
    ring = open_ring(settings)
    database = await open_database(settings, url, ring)
    try:
        await first_credentials(database, ring, directory)
    finally:
        await database.close()


@pytest.fixture(scope="session")
def pair_seed() -> Iterator[Seed]:
    """What every pair of the session is copied from."""
    with scratch_directory() as directory:
        yield Seed(directory)


@pytest.fixture
def pair(pair_seed: Seed, background: Background) -> Iterator[Pair]:
    """A pair of the test's own."""
    yield from _opened(pair_seed, background, alone=False)


@pytest.fixture
def lone(pair_seed: Seed, background: Background) -> Iterator[Pair]:
    """A primary of the test's own, without a standby."""
    yield from _opened(pair_seed, background, alone=True)


def _opened(seed: Seed, background: Background, *, alone: bool) -> Iterator[Pair]:
    with scratch_directory() as directory:
        made = Pair(seed, background, directory)
        try:
            made.open(alone=alone)
            yield made
        finally:
            made.close()
