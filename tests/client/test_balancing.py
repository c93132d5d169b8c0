"""A client of several replicas goes where it is answered: past one without a lease, past one that is killed. Both dialects.

Real replicas on one database; what is under test is gRPC's service config, so that nothing of it is taken for granted.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from doorward import errors
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Subject
    from tests.cluster.replicas import Replica
    from tests.support.dialects import Called, Dialect

CALLERS = 6


class Traffic:
    """Checks that go on until the block is left, from several callers at once."""

    def __init__(self, client: Called, subject: Subject) -> None:
        self._client = client
        self._subject = subject
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"traffic {number}") for number in range(CALLERS)]
        self.allowed = 0
        self.failures: list[Exception] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.await_more()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def await_more(self, number: int = 100) -> None:
        """Returns once so many more checks were allowed."""
        goal = self.allowed + number
        eventually(lambda: self.allowed >= goal)

    def _run(self) -> None:
        asked = self._subject
        while not self._ended.is_set():
            try:
                decision = self._client.check(asked.secret, asked.permission, project_id=asked.project_id)
            except Exception as error:  # noqa: BLE001 - it is what is counted
                self.failures.append(error)
                continue
            assert decision
            self.allowed += 1


def an_authorizer(
    dialect: Dialect, cluster: Cluster, *names: str, coalesce: bool = True, retries: bool = True
) -> Called:
    """A client of these replicas; without retries every attempt that fails is seen."""
    ((_, bearer),) = cluster.deployment.caller
    return dialect.client(
        "Authorizer",
        [address_of(cluster[name]) for name in names],
        credential=bearer.removeprefix("Bearer "),
        timeout=20.0,
        coalesce=coalesce,
        # What one test learned of these addresses is nothing to the next.
        options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", int(retries))],
    )


def address_of(replica: Replica) -> str:
    return replica.await_ready()


@contextlib.contextmanager
def health_of(replica: Replica) -> Iterator[Callable[[], int]]:
    """Asks the replica whether it serves checks."""
    with grpc.insecure_channel(address_of(replica)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="doorward.v1.Authorizer")
        yield lambda: int(stub.Check(request, timeout=10).status)


def goes_to(replica: Replica, client: Called, subject: Subject) -> bool:
    """Whether any of the client's next checks begins at this replica.

    Replicas count those that are not answered from memory at once, and these have a demand that takes them off that path.
    """
    before = replica.status().checks_begun
    for _ in range(12):
        asked = subject
        assert client.check(asked.secret, asked.permission, project_id=asked.project_id, fully_consistent=True)
    return replica.status().checks_begun > before


def all_allowed(client: Called, subject: Subject) -> bool:
    """Whether each of the client's next checks is answered at its first attempt."""
    try:
        for _ in range(20):
            assert client.check(subject.secret, subject.permission, project_id=subject.project_id)
    except errors.Unavailable:
        return False
    return True


def test_checks_go_to_every_replica(dialect: Dialect, cluster: Cluster) -> None:
    subject = cluster["a"].client.subject()
    client = an_authorizer(dialect, cluster, "a", "b", "c")
    with Traffic(client, subject) as traffic:
        for replica in cluster.replicas.values():
            eventually(partial(goes_to, replica, client, subject))
    assert traffic.failures == []


def test_a_replica_without_a_lease_is_left_and_come_back_to_and_no_check_fails(
    dialect: Dialect, cluster: Cluster
) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    client = an_authorizer(dialect, cluster, "a", "b")
    once = an_authorizer(dialect, cluster, "a", "b", retries=False)
    with Traffic(client, subject) as traffic, health_of(b) as health:
        eventually(lambda: goes_to(b, client, subject) and goes_to(b, once, subject))
        b.line.stall()
        eventually(lambda: health() == health_pb2.HealthCheckResponse.NOT_SERVING)
        eventually(lambda: all_allowed(once, subject))
        assert not goes_to(b, client, subject)
        traffic.await_more()
        b.line.heal()
        eventually(lambda: health() == health_pb2.HealthCheckResponse.SERVING)
        eventually(lambda: goes_to(b, client, subject))
    assert traffic.failures == []


def test_a_replica_that_is_killed_costs_no_check(dialect: Dialect, cluster: Cluster) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    client = an_authorizer(dialect, cluster, "a", "b")
    with Traffic(client, subject) as traffic:
        eventually(lambda: goes_to(b, client, subject))
        b.kill()
        traffic.await_more(300)
    assert traffic.failures == []


def test_a_replica_that_is_killed_costs_no_check_that_goes_alone(dialect: Dialect, cluster: Cluster) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    client = an_authorizer(dialect, cluster, "a", "b", coalesce=False)
    with Traffic(client, subject) as traffic:
        eventually(lambda: goes_to(b, client, subject))
        b.kill()
        traffic.await_more(300)
    assert traffic.failures == []


def test_a_replica_that_stops_in_order_costs_no_check(dialect: Dialect, cluster: Cluster) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    client = an_authorizer(dialect, cluster, "a", "b")
    with Traffic(client, subject) as traffic:
        eventually(lambda: goes_to(b, client, subject))
        b.terminate()
        b.await_death()
        traffic.await_more(100)
    assert traffic.failures == []
