"""The caller of a mutation goes away, or its deadline ends: nothing is interrupted, and the error tells what stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

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

# Where the caller leaves: before anything is locked, under the locks, with all written, committed, and while it waits.
STEPS: Final = (
    Failpoint.MUTATION_AFTER_AUTHN,
    Failpoint.MUTATION_AFTER_LOCK,
    Failpoint.MUTATION_BEFORE_COMMIT,
    Failpoint.MUTATION_ACK_LOST,
    Failpoint.BARRIER_BEFORE_ROWS,
    Failpoint.BARRIER_AFTER_ROWS,
)
# More than the tip that a barrier leaves, less than a hold.
DEADLINE_S: Final = 3.0
TIP_S: Final = 0.1


def caller_that_leaves(cluster: Cluster, kind: Kind, step: Failpoint) -> bool:
    """a stops at `step`, its caller leaves, a goes on; whether the change is made."""
    a = cluster["a"]
    subject = a.client.subject()
    for replica in cluster.replicas.values():
        cluster.warm(subject, replica)
    cluster.stand()
    end = cluster.end()
    a.arm(step)
    begun = kind.at(a.client, subject)
    a.reached(step)
    begun.leave()
    begun.result()
    # So that the server has learned of it too: what it is asked afterwards on the same connection is answered.
    a.client.check(subject)
    a.release(step)
    cluster.at_rest_by_polls(a)
    return cluster.end() > end


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.value)
def test_a_caller_that_leaves_cancels_neither_commit_nor_wait(cluster: Cluster, kind: Kind, step: Failpoint) -> None:
    assert caller_that_leaves(cluster, kind, step)
    subject = cluster.history.mutations[-1].subject
    assert subject is not None
    assert [replica.client.check(subject) for replica in cluster.replicas.values()] == [kind.makes] * 3
    assert cluster["a"].line.cancel_requests == 0
    verdicts.hold(cluster.history, cluster.rows)


def test_a_caller_that_leaves_goes_red_when_the_mutation_is_its_own(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("task",))
    assert not caller_that_leaves(cluster, REVOKE, Failpoint.MUTATION_AFTER_LOCK)


def test_f32_a_caller_that_disconnects_during_commit_sends_no_cancel_request(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    end = cluster.end()
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    a.line.stall(asks=False)
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    cluster.await_end(end + 1)
    begun.leave()
    assert begun.result().answered == "CANCELLED"
    # What the server is asked after the disconnection is answered after it, too.
    a.client.check(subject)
    a.line.heal()
    cluster.at_rest_by_polls(a)
    assert a.line.cancel_requests == 0
    awaited = c.client.begin_await(end + 1)
    assert cluster.poll(awaited, c).answered == OK
    assert [replica.client.check(subject) for replica in (a, b, c)] == [kind.makes] * 3
    verdicts.hold(cluster.history, cluster.rows)


@pytest.mark.parametrize(
    "repeated",
    [False, pytest.param(True, marks=pytest.mark.needs("repeat"))],
    ids=["await_propagation", "a_repeat"],
)
def test_a_deadline_that_ends_during_the_wait_tells_the_revision_and_what_goes_on_waits(
    cluster: Cluster, kind: Kind, repeated: bool
) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    cluster.renew(a, b, c)
    b.line.stall()
    begun = cluster.begin(kind, subject, a, timeout_s=DEADLINE_S)
    cluster.pass_time((DEADLINE_S - TIP_S) * 1000, keeping=(a, c))
    missed = cluster.poll(begun, a)
    assert (missed.answered, missed.why, missed.number) == (
        "DEADLINE_EXCEEDED",
        "PROPAGATION_NOT_AWAITED",
        cluster.end(),
    )
    # Not awaited: who did not confirm may still answer from before.
    assert b.client.check(subject) == "ALLOWED"
    c.arm(Failpoint.BARRIER_AFTER_ROWS)
    going_on = kind.at(c.client, subject) if repeated else c.client.begin_await(missed.number or 0)
    awaited = cluster.wait_out(cluster.waits(going_on, c), c, keeping=(a, c))
    assert (awaited.answered, awaited.number) == (OK, missed.number)
    # Its row may have been pruned by the first wait, which went on: a hold after the commit, not before.
    assert (awaited.true_ended_ns or 0) - (missed.true_committed_ns or 0) >= cluster.hold_ms * 1_000_000
    assert [replica.client.check(subject) for replica in (a, b, c)] == [kind.makes, "UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


def dead_replica_and_hasty_callers(cluster: Cluster, kind: Kind) -> list[Mutation]:
    """b is cut off, and nobody who calls has as much time as its hold: a change, then AwaitPropagation a hold later."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.stand()
    others = [replica for replica in cluster.replicas.values() if replica is not b]
    b.line.stall()
    begun = cluster.begin(kind, subject, a, timeout_s=DEADLINE_S)
    cluster.pass_time((DEADLINE_S - TIP_S) * 1000, keeping=others)
    missed = cluster.poll(begun, a)
    cluster.pass_time(cluster.hold_ms, keeping=others)
    cluster.at_rest_by_polls(a)
    a.arm(Failpoint.BARRIER_AFTER_ROWS)
    awaiting = cluster.waits(a.client.begin_await(missed.number or 0, DEADLINE_S), a)
    cluster.pass_time((DEADLINE_S - TIP_S) * 1000, keeping=others, is_over=lambda: awaiting.is_done)
    return [missed, cluster.poll(awaiting, a)]


def test_a_dead_replica_is_waited_for_to_the_end_also_when_no_caller_is(cluster: Cluster, kind: Kind) -> None:
    missed, awaited = dead_replica_and_hasty_callers(cluster, kind)
    assert (missed.answered, missed.why) == ("DEADLINE_EXCEEDED", "PROPAGATION_NOT_AWAITED")
    assert (awaited.answered, awaited.confirmed, awaited.expired) == (OK, 2, 0)
    verdicts.hold(cluster.history, cluster.rows)


def test_a_dead_replica_stays_in_everybodys_way_when_a_wait_ends_with_its_caller(start_cluster: StartCluster) -> None:
    _, awaited = dead_replica_and_hasty_callers(start_cluster(2, without=("late",)), REVOKE)
    assert awaited.answered == "DEADLINE_EXCEEDED"


def test_a_deadline_that_leaves_no_time_to_tell_makes_no_change(cluster: Cluster, kind: Kind) -> None:
    a = cluster["a"]
    subject = a.client.subject()
    end = cluster.end()
    record = kind.at(a.client, subject, TIP_S / 2).result()
    assert record.answered == "DEADLINE_EXCEEDED"
    eventually(lambda: a.status().tasks == 0)
    assert cluster.end() == end
    assert a.client.check(subject) == "ALLOWED"
    verdicts.hold(cluster.history, cluster.rows)
