"""A replica joins, leaves, is pruned or comes back while a change is on its way: it is waited for whenever it could say yes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.history import OK
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.support.cluster import StartCluster


def joins_before_the_commit(cluster: Cluster, kind: Kind) -> Mutation:
    """d registers and holds the subject while the change stands before its COMMIT; then d is cut off."""
    a = cluster["a"]
    subject = a.client.subject()
    d = cluster.begin_start("d", armed=[(Failpoint.REGISTER_BEFORE_COMMIT, "pause", 0)])
    d.reached(Failpoint.REGISTER_BEFORE_COMMIT)
    cluster.stand()
    others = [replica for replica in cluster.replicas.values() if replica is not d]
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    a.arm(Failpoint.BARRIER_AFTER_ROWS)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    d.release(Failpoint.REGISTER_BEFORE_COMMIT)
    cluster.await_ready(d)
    cluster.usable_id(d)
    cluster.warm(subject, d)
    d.line.stall()
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    mutation = cluster.wait_out(cluster.waits(begun, a), a, keeping=others)
    d.client.check(subject)
    return mutation


def test_a_replica_that_joins_before_the_commit_is_waited_for(cluster: Cluster, kind: Kind) -> None:
    mutation = joins_before_the_commit(cluster, kind)
    assert (mutation.confirmed, mutation.expired) == (3, 1)
    assert cluster.history.checks[-1].answered == "UNAVAILABLE"
    verdicts.hold(cluster.history, cluster.rows)


def test_a_replica_that_joins_is_missed_when_the_rows_are_read_before_the_commit(start_cluster: StartCluster) -> None:
    cluster = start_cluster(1, without=("readafter",))
    joins_before_the_commit(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_a_replica_that_joins_after_the_rows_were_read_begins_with_the_change(cluster: Cluster, kind: Kind) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    d = cluster.begin_start("d", armed=[(Failpoint.REGISTER_BEFORE_COMMIT, "pause", 0)])
    d.reached(Failpoint.REGISTER_BEFORE_COMMIT)
    cluster.stand()
    b.arm(Failpoint.APPLY_BEFORE)
    begun = cluster.begin(kind, subject, a)
    d.release(Failpoint.REGISTER_BEFORE_COMMIT)
    cluster.await_ready(d)
    cluster.usable_id(d)
    # Before the change has returned, and for good.
    assert d.client.check(subject) == kind.makes
    b.release(Failpoint.APPLY_BEFORE)
    mutation = cluster.finish(begun, a)
    assert (mutation.answered, mutation.confirmed, mutation.expired) == (OK, 3, 0)
    assert d.client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_a_replica_that_leaves_is_not_waited_for_longer_than_it_takes(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.arm(Failpoint.APPLY_BEFORE)
    begun = cluster.begin(kind, subject, a)
    assert not begun.is_done
    b.terminate()
    b.await_death()
    mutation = cluster.finish(begun, a)
    assert (mutation.answered, mutation.confirmed, mutation.expired) == (OK, 3, 0)
    assert mutation.elapsed_s * 1000 < cluster.hold_ms / 4
    assert [b.client.check(subject), c.client.check(subject)] == ["UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


def test_a_replica_that_is_pruned_by_another_change_is_waited_for_no_longer(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    first, second = a.client.subject(), a.client.subject()
    for subject in (first, second):
        cluster.warm(subject, a, b, c)
    cluster.stand()
    pruned = b.status().replica_id
    b.line.stall()
    begun = cluster.begin(kind, first, c)
    cluster.pass_time(cluster.hold_ms / 2, keeping=(a, c))
    later = cluster.begin(kind, second, a)
    assert cluster.wait_out(begun, c, keeping=(a, c)).expired == 1
    eventually(lambda: pruned not in cluster.row_ids())
    mutation = cluster.poll(later, a)
    # A row that is gone had lost its lease: that it went is as good as its report.
    assert (mutation.answered, mutation.confirmed, mutation.expired) == (OK, 3, 0)
    assert mutation.elapsed_s * 1000 < cluster.hold_ms
    assert [b.client.check(first), b.client.check(second)] == ["UNAVAILABLE", "UNAVAILABLE"]
    verdicts.hold(cluster.history, cluster.rows)


def test_a_replica_that_comes_back_during_the_wait_confirms(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    begun = cluster.begin(kind, subject, a)
    cluster.pass_time(cluster.hold_ms / 2, keeping=(a, c))
    assert not begun.is_done
    b.line.heal()
    mutation = cluster.finish(begun, a)
    assert (mutation.answered, mutation.confirmed, mutation.expired) == (OK, 3, 0)
    assert mutation.elapsed_s * 1000 < cluster.hold_ms * 3 / 4
    cluster.until_usable(b)
    assert b.client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_a_replica_that_registers_anew_during_the_wait_begins_with_the_change(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    former = b.status()
    b.arm(Failpoint.APPLY_BEFORE)
    begun = cluster.begin(kind, subject, a)
    cluster.rows.fetch("DELETE FROM replicas WHERE replica_id = $1", former.replica_id)
    cluster.advance(cluster.hold_ms / 4 + 1)
    eventually(lambda: b.status().generation == former.generation + 1)
    b.release(Failpoint.APPLY_BEFORE)
    mutation = cluster.finish(begun, a)
    assert (mutation.answered, mutation.confirmed, mutation.expired) == (OK, 3, 0)
    cluster.until_usable(b)
    assert b.client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)
