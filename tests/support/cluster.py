"""Fixtures of the fault tests: real replica processes on one real PostgreSQL, on a clock that the test holds.

def test_…(cluster: Cluster): ...                                  # three replicas a, b, c, shared and made well before each test
def test_…(start_cluster: StartCluster):
    two = start_cluster(2, hold_ms=1000, without=("caplease",))    # of the test's own, ended after it
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from doorward_server.credentials import pepper
from doorward_server.model import OperatorRole
from doorward_server.service.operators import create_operators, new_operator
from doorward_server.storage.pool import Database
from tests.cluster.clients import Client, Kind
from tests.cluster.clusters import Cluster, Deployment
from tests.cluster.kinds import ALWAYS, KINDS
from tests.cluster.lines import Background
from tests.cluster.nursery import Nursery
from tests.support.postgres import scratch_directory
from tests.support.server import bearer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from doorward_server.credentials.pepper import PepperRing
    from tests.cluster.history import Subject
    from tests.support.postgres import PostgresServer
    from tests.support.wire import Metadata

NAMES: Final = ("a", "b", "c")
# Long enough that no time-out of real time is met on a busy machine; waits take steps of true time, not seconds.
HOLD_MS: Final = 4000


class StartCluster(Protocol):
    """Starts a cluster of the test's own; the one before, if it was another kind, ends."""

    def __call__(self, count: int, *, hold_ms: int = HOLD_MS, without: Sequence[str] = ()) -> Cluster: ...


class Deployments:
    """Makes databases with two operators in them, as copies of one that was prepared."""

    def __init__(self, background: Background, server: PostgresServer, template: str, directory: Path) -> None:
        self._background = background
        self._server = server
        self._pepper_file = directory / "pepper.keys"
        self._ring = pepper.create(self._pepper_file)
        self._credentials: list[Metadata] = []
        self._names: list[str] = []
        self._template = background.run(self._prepare(template, self._ring))

    def make(self) -> Deployment:
        """A deployment with a database of its own."""
        name = self._background.run(self._server.create_database(template=self._template))
        self._names.append(name)
        admin, caller = self._credentials
        return Deployment(self._server.url(name), self._pepper_file, admin, caller)

    def close(self) -> None:
        """Drops every database."""
        for name in [*self._names, self._template]:
            self._background.run(self._server.drop_database(name))

    async def _prepare(self, template: str, ring: PepperRing) -> str:
        name = await self._server.create_database(template=template)
        database = Database(self._server.url(name), hold_ms=HOLD_MS)
        await database.open()
        try:
            operators = [new_operator(ring, role, role.name) for role in (OperatorRole.ADMIN, OperatorRole.CALLER)]
            await create_operators(database, operators)
            self._credentials = [bearer(operator.secret.reveal()) for operator in operators]
        finally:
            await database.close()
        return name


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    """The event loop beside the tests' threads."""
    background = Background()
    yield background
    background.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where the replica processes come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def deployments(
    background: Background, postgres_server: PostgresServer, migrated_template: str
) -> Iterator[Deployments]:
    """Databases for clusters."""
    with scratch_directory() as directory:
        deployments = Deployments(background, postgres_server, migrated_template, directory)
        yield deployments
        deployments.close()


@pytest.fixture(scope="session")
def shared_cluster(background: Background, nursery: Nursery, deployments: Deployments) -> Iterator[Cluster]:
    """Three replicas for all tests; each uses accounts of its own and begins with `begin_test`."""
    with tempfile.TemporaryDirectory(prefix="dw-") as directory:
        cluster = Cluster(deployments.make(), background, nursery, Path(directory), hold_ms=HOLD_MS)
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Three replicas a, b and c, all well, and an empty history."""
    shared_cluster.begin_test(NAMES)
    return shared_cluster


class OwnCluster:
    """The cluster of one test that shares none. It stays until another kind is wanted: its twins run one after the other."""

    def __init__(self, background: Background, nursery: Nursery, deployments: Deployments) -> None:
        self._background = background
        self._nursery = nursery
        self._deployments = deployments
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._cluster: Cluster | None = None
        self._wanted: tuple[object, ...] = ()

    def start(self, count: int, *, hold_ms: int = HOLD_MS, without: Sequence[str] = ()) -> Cluster:
        """A cluster of `count` replicas; ends the one that was started before."""
        wanted = (count, hold_ms, tuple(without))
        names = NAMES[:count]
        if self._cluster is not None and self._wanted == wanted and names:
            self._cluster.begin_test(names)
            return self._cluster
        self.close()
        self._wanted = wanted
        self._directory = tempfile.TemporaryDirectory(prefix="dw-")
        self._cluster = Cluster(
            self._deployments.make(),
            self._background,
            self._nursery,
            Path(self._directory.name),
            hold_ms=hold_ms,
            without=without,
        )
        self._cluster.start(*names)
        return self._cluster

    def close(self) -> None:
        """Ends it."""
        if self._cluster is not None:
            self._cluster.close()
        if self._directory is not None:
            self._directory.cleanup()
        self._cluster = self._directory = None


@pytest.fixture(scope="session")
def own_cluster(background: Background, nursery: Nursery, deployments: Deployments) -> Iterator[OwnCluster]:
    """One at a time."""
    own = OwnCluster(background, nursery, deployments)
    yield own
    own.close()


@pytest.fixture
def start_cluster(own_cluster: OwnCluster) -> StartCluster:
    """Starts a cluster of the test's own, with rules taken away or another hold; one at a time."""
    return own_cluster.start


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--every-kind`: each fault for each kind of mutation."""
    parser.addoption("--every-kind", action="store_true", help="put every kind of mutation to every fault")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark of faults that not every kind of mutation can meet."""
    config.addinivalue_line("markers", "needs(what): only kinds of mutation that do not lack `what`")
    config.addinivalue_line("markers", "one_kind: of many alike, so each is put to one kind alone without --every-kind")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--every-kind`, a fault is put to two kinds always and to one of the others, a different one for the next fault.

    One that is marked `one_kind` is put to one, a different one for the next fault.
    """
    faults: dict[str, Kind] = {}
    left_out = []
    for item in items:
        kind = getattr(item, "callspec", None) and item.callspec.params.get("kind")  # type: ignore[attr-defined]
        if not isinstance(kind, Kind):
            continue
        needed = {mark.args[0] for mark in item.iter_markers("needs")}
        always = () if item.get_closest_marker("one_kind") else ALWAYS
        others = [other for other in KINDS if other not in always and not needed & other.lacks]
        # What else it is told: faults of one function are several.
        told = sorted(f"{name} {value}" for name, value in item.callspec.params.items() if name != "kind")  # type: ignore[attr-defined]
        fault = " ".join((item.nodeid.partition("[")[0], *(told if not always else ())))
        only = faults.setdefault(fault, others[len(faults) % len(others)])
        if needed & kind.lacks or not (kind in always or kind is only or config.getoption("--every-kind")):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.rpc)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """The mutation: each that takes something away is put to the same tests."""
    kind = request.param
    assert isinstance(kind, Kind)

    def prepare(client: Client, subject: Subject) -> None:
        kind.prepare(client, subject)

    monkeypatch.setattr(Client, "prepare", prepare)
    return kind
