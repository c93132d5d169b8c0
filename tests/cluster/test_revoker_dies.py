"""The replica that makes a change dies, is frozen or loses its line at each step: all or nothing, and a repeat waits in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.history import OK
from tests.cluster.kinds import DELETE_PROJECT
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.support.cluster import StartCluster

# Where it dies, and whether the change is made then.
STEPS: Final = {
    Failpoint.MUTATION_AFTER_AUTHN: False,
    Failpoint.MUTATION_AFTER_LOCK: False,
    Failpoint.MUTATION_BEFORE_COMMIT: False,
    Failpoint.MUTATION_ACK_LOST: True,
    Failpoint.BARRIER_BEFORE_ROWS: True,
    Failpoint.BARRIER_AFTER_ROWS: True,
}


class Outcome(NamedTuple):
    """Of a revoker that died: its call, whether the change was made, what of it was broken, and the repeat at another one."""

    failed: Mutation
    made: bool
    broken: list[str]
    repeated: Mutation


def revoker_that_dies(cluster: Cluster, kind: Kind, step: Failpoint) -> Outcome:
    """19: a is killed at `step`, b is cut off; the call is repeated at c."""
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    end = cluster.end()
    a.arm(step, "crash")
    failed = kind.at(a.client, subject).result()
    a.await_death()
    made = cluster.end() > end
    broken = verdicts.all_or_nothing(cluster.history, cluster.rows)
    repeated = cluster.wait_out(cluster.begin(kind, subject, c), c, keeping=(c,))
    b.client.check(subject)
    c.client.check(subject)
    return Outcome(failed, made, broken, repeated)


@pytest.mark.needs("again")
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.value)
def test_f19_a_revoker_that_dies_leaves_all_or_nothing_and_a_repeat_waits_in_full(
    cluster: Cluster, kind: Kind, step: Failpoint
) -> None:
    failed, made, broken, repeated = revoker_that_dies(cluster, kind, step)
    assert failed.answered == "UNAVAILABLE"
    assert made is STEPS[step]
    assert not broken
    assert repeated.number == cluster.end()
    # Whether a had applied it itself, and said so, before it died is left open.
    assert (repeated.answered, repeated.confirmed + repeated.expired) == (OK, 3)
    assert repeated.expired >= 1
    assert repeated.elapsed_s * 1000 >= cluster.hold_ms
    assert [check.answered for check in cluster.history.checks[-2:]] == ["UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.value)
def test_f19_a_project_that_was_deleted_is_not_found_again_and_its_deletion_can_be_awaited(
    cluster: Cluster, step: Failpoint
) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    a.arm(step, "crash")
    DELETE_PROJECT.at(a.client, subject).result()
    a.await_death()
    assert not verdicts.all_or_nothing(cluster.history, cluster.rows)
    if STEPS[step]:
        assert DELETE_PROJECT.at(c.client, subject).result().answered == "NOT_FOUND"
        c.arm(Failpoint.BARRIER_AFTER_ROWS)
        awaited = cluster.wait_out(cluster.waits(c.client.begin_await(cluster.end()), c), c, keeping=(c,))
    else:
        awaited = cluster.wait_out(cluster.begin(DELETE_PROJECT, subject, c), c, keeping=(c,))
    assert awaited.answered == OK
    assert awaited.elapsed_s * 1000 >= cluster.hold_ms
    assert [b.client.check(subject), c.client.check(subject)] == ["UNAVAILABLE", DELETE_PROJECT.makes]
    verdicts.hold(cluster.history, cluster.rows)


def test_f19_goes_red_when_a_repeat_does_not_wait(start_cluster: StartCluster) -> None:
    cluster = start_cluster(3, without=("repeat",))
    revoker_that_dies(cluster, REVOKE, Failpoint.BARRIER_BEFORE_ROWS)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_all_or_nothing_goes_red_when_the_log_is_written_apart(start_cluster: StartCluster) -> None:
    cluster = start_cluster(3, without=("together",))
    assert revoker_that_dies(cluster, REVOKE, Failpoint.MUTATION_BEFORE_COMMIT).broken


def commit_that_never_arrives(cluster: Cluster, kind: Kind) -> Mutation:
    """a's COMMIT is held on its way, then the line breaks."""
    a = cluster["a"]
    subject = a.client.subject()
    cluster.stand()
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    a.line.stall(answers=False)
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    # The lock is held by a session that says nothing: COMMIT was sent, and is on its way.
    eventually(lambda: a.line.held_back > 0)
    a.arm(Failpoint.BARRIER_BEFORE_ROWS)
    a.line.cut()
    a.line.heal()
    # Only without the rule it gets there; by then every broken connection is known to be.
    eventually(lambda: begun.is_done or a.has_reached(Failpoint.BARRIER_BEFORE_ROWS))
    a.release(Failpoint.BARRIER_BEFORE_ROWS)
    eventually(lambda: begun.is_done or a.status().barriers_asleep > 0)
    cluster.history.committed(begun.record)
    return cluster.wait_out(begun, a)


def test_a_commit_without_an_acknowledgement_is_no_success(cluster: Cluster, kind: Kind) -> None:
    mutation = commit_that_never_arrives(cluster, kind)
    assert (mutation.answered, mutation.why) == ("UNAVAILABLE", "COMMIT_UNKNOWN")
    cluster.until_usable(cluster["a"])
    subject = mutation.subject
    assert subject is not None
    assert cluster["a"].client.check(subject) == "ALLOWED"
    verdicts.hold(cluster.history, cluster.rows)


def test_nothing_acknowledged_is_lost_goes_red_when_silence_counts_as_success(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("ack", "rowsat"))
    commit_that_never_arrives(cluster, REVOKE)
    assert verdicts.nothing_acknowledged_is_lost(cluster.history, cluster.rows)


@pytest.mark.needs("repeat")
def test_a_lost_acknowledgement_is_no_success_either_and_a_repeat_waits_in_full(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    end = cluster.end()
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    a.line.stall(asks=False)
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    cluster.await_end(end + 1)
    a.line.cut()
    mutation = begun.result()
    assert (mutation.answered, mutation.why) == ("UNAVAILABLE", "COMMIT_UNKNOWN")
    repeated = cluster.wait_out(cluster.begin(kind, subject, c), c, keeping=(c,))
    assert (repeated.answered, repeated.number, repeated.expired) == (OK, end + 1, 2)
    assert repeated.elapsed_s * 1000 >= cluster.hold_ms
    assert [b.client.check(subject), c.client.check(subject)] == ["UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


def test_a_commit_that_nobody_answers_is_given_up_after_two_holds(start_cluster: StartCluster) -> None:
    # Two holds of the machine's time: what a connection waits for does not follow the clock of leases.
    cluster = start_cluster(1, hold_ms=1000)
    a = cluster["a"]
    subject = a.client.subject()
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    begun = REVOKE.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    a.line.stall(asks=False)
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    mutation = begun.result()
    assert (mutation.answered, mutation.why) == ("UNAVAILABLE", "COMMIT_UNKNOWN")
    assert a.line.cancel_requests == 0
    a.line.heal()
    eventually(lambda: REVOKE.at(a.client, subject).result().answered == OK)
    verdicts.hold(cluster.history, cluster.rows)


def writer_frozen_with_its_locks(cluster: Cluster, kind: Kind) -> tuple[Mutation, Mutation]:
    """35: a is stopped in its transaction, holding the account's lock; b makes a change in the same account; a wakes."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    other = a.client.another_of(subject)
    cluster.stand()
    others = [replica for replica in cluster.replicas.values() if replica is not a]
    a.arm(Failpoint.MUTATION_AFTER_LOCK, "freeze")
    frozen = REVOKE.at(a.client, other)
    a.reached(Failpoint.MUTATION_AFTER_LOCK)
    a.await_frozen()
    proceeded = cluster.wait_out(cluster.begin(kind, subject, b), b, keeping=others)
    a.thaw()
    return cluster.poll(frozen, a), proceeded


@pytest.mark.needs("account")
def test_f35_a_frozen_writer_holds_nobody_up_longer_than_its_transaction_may_last(cluster: Cluster, kind: Kind) -> None:
    frozen, proceeded = writer_frozen_with_its_locks(cluster, kind)
    assert (proceeded.answered, proceeded.confirmed, proceeded.expired) == (OK, 2, 1)
    assert frozen.answered == "UNAVAILABLE"
    cluster.until_usable(cluster["a"])
    subject = proceeded.subject
    assert subject is not None
    assert cluster["a"].client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_f35_goes_red_when_a_transaction_may_be_idle_for_ever(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("idle",))
    _, proceeded = writer_frozen_with_its_locks(cluster, REVOKE)
    assert proceeded.answered != OK
