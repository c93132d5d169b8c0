"""A replica that is told to stop: its lease goes first, then its row, and nothing new passes in between or afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.steps import Step
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.support.cluster import StartCluster


def stopped_with_its_row_gone(cluster: Cluster, kind: Kind) -> Mutation:
    """18: SIGTERM of b; right after its row's DELETE the change is made; then b is asked."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    b.arm(Failpoint.APPLY_BEFORE)
    b.arm(Step.SHUTDOWN_AFTER_DELETE)
    b.terminate()
    b.reached(Step.SHUTDOWN_AFTER_DELETE)
    mutation = cluster.finish(cluster.begin(kind, subject, a), a)
    b.client.check(subject)
    b.release_all()
    b.await_death()
    return mutation


def test_f18_a_stopping_replica_allows_nothing_once_its_row_is_gone(cluster: Cluster, kind: Kind) -> None:
    mutation = stopped_with_its_row_gone(cluster, kind)
    assert (mutation.confirmed, mutation.expired) == (2, 0)
    assert cluster.history.checks[-1].answered == "UNAVAILABLE"
    assert cluster["b"].process.returncode == 0
    verdicts.hold(cluster.history, cluster.rows)


def test_f18_goes_red_when_the_row_goes_before_the_lease(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("dereg",))
    stopped_with_its_row_gone(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_f18_while_it_drains_the_row_stands_and_nothing_new_passes(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    own_id = b.status().replica_id
    b.arm(Step.CHECK_BEFORE_SEND)
    draining = b.client.begin_check(subject)
    b.reached(Step.CHECK_BEFORE_SEND)
    b.arm(Failpoint.APPLY_BEFORE)
    b.terminate()
    eventually(lambda: b.status().lease_left_ms == 0)
    begun = cluster.begin(kind, subject, a)
    assert b.client.check(subject) == "UNAVAILABLE"
    assert own_id in cluster.row_ids()
    b.release_all()
    # It began before the change, and its replica had a lease then.
    assert draining.result().answered == "ALLOWED"
    mutation = cluster.finish(begun, a)
    assert (mutation.confirmed, mutation.expired) == (3, 0)
    b.await_death()
    assert own_id not in cluster.row_ids()
    verdicts.hold(cluster.history, cluster.rows)


def test_a_change_that_runs_is_awaited_before_its_replica_stops(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.arm(Failpoint.APPLY_BEFORE)
    begun = cluster.begin(kind, subject, a)
    a.terminate()
    eventually(lambda: a.status().lease_left_ms == 0)
    assert b.client.check(subject) == "ALLOWED"
    assert not begun.is_done
    b.release(Failpoint.APPLY_BEFORE)
    mutation = cluster.finish(begun, a)
    assert (mutation.answered, mutation.confirmed) == ("OK", 3)
    a.await_death()
    assert [b.client.check(subject), c.client.check(subject)] == [kind.makes, kind.makes]
    verdicts.hold(cluster.history, cluster.rows)
