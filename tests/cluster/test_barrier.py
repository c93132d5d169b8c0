"""How long a mutation waits, and for whom: from the acknowledgement of its commit, each silent replica's hold, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.history import OK, Subject
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind, Pending
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.cluster.replicas import Replica
    from tests.support.cluster import StartCluster


def acknowledgement_held_back(cluster: Cluster, kind: Kind) -> Mutation:
    """9: the answer to COMMIT is held back for more than a hold, while c renews; b applies nothing."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    others = [replica for replica in cluster.replicas.values() if replica not in {a, b}]
    end = cluster.end()
    b.arm(Failpoint.APPLY_BEFORE)
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    a.arm(Failpoint.BARRIER_AFTER_ROWS)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    a.line.stall(asks=False)
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    cluster.await_end(end + 1)
    cluster.pass_time(1.2 * cluster.hold_ms, keeping=others)
    a.line.heal()
    cluster.waits(begun, a)
    return cluster.wait_out(begun, a, keeping=others)


def test_f09_the_wait_begins_when_the_commit_is_acknowledged(cluster: Cluster, kind: Kind) -> None:
    mutation = acknowledgement_held_back(cluster, kind)
    assert (mutation.answered, mutation.expired >= 1) == (OK, True)
    waited_ms = ((mutation.true_ended_ns or 0) - (mutation.true_committed_ns or 0)) / 1e6
    assert waited_ms >= cluster.hold_ms
    verdicts.hold(cluster.history, cluster.rows)


def test_f09_goes_red_when_the_wait_begins_with_the_transaction(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("baseline",))
    acknowledgement_held_back(cluster, REVOKE)
    assert verdicts.silent_replicas_are_waited_for_in_full(cluster.history)


def commit_on_its_way(cluster: Cluster, kind: Kind) -> Mutation:
    """9: COMMIT itself takes more than a hold to arrive, while b renews; then b is cut off."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    others = [replica for replica in cluster.replicas.values() if replica is not a]
    a.arm(Failpoint.MUTATION_BEFORE_COMMIT)
    a.arm(Failpoint.BARRIER_AFTER_ROWS)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.MUTATION_BEFORE_COMMIT)
    cluster.pass_time(1.2 * cluster.hold_ms, keeping=others)
    cluster.renew(b)
    b.line.stall()
    a.release(Failpoint.MUTATION_BEFORE_COMMIT)
    cluster.waits(begun, a)
    mutation = cluster.wait_out(begun, a, keeping=[replica for replica in others if replica is not b])
    b.client.check(subject)
    return mutation


def test_f09_a_commit_that_takes_long_shortens_no_wait(cluster: Cluster, kind: Kind) -> None:
    mutation = commit_on_its_way(cluster, kind)
    assert mutation.expired == 1
    verdicts.hold(cluster.history, cluster.rows)


def test_f09_no_check_is_stale_goes_red_when_the_wait_begins_with_the_transaction(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("baseline",))
    commit_on_its_way(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def dead_replica_and_two_changes(cluster: Cluster, kind: Kind) -> list[Mutation]:
    """20: b is killed; two changes, one after the other."""
    a, b = cluster["a"], cluster["b"]
    subjects = [a.client.subject() for _ in range(2)]
    cluster.stand()
    others = [replica for replica in cluster.replicas.values() if replica is not b]
    b.kill()
    mutations = [cluster.wait_out(cluster.begin(kind, subjects[0], a), a, keeping=others)]
    cluster.at_rest(a)
    mutations.append(cluster.wait_out(cluster.begin(kind, subjects[1], a), a, keeping=others))
    return mutations


def test_f20_a_dead_replica_is_waited_for_once(cluster: Cluster, kind: Kind) -> None:
    first, second = dead_replica_and_two_changes(cluster, kind)
    assert (first.confirmed, first.expired) == (2, 1)
    assert (second.confirmed, second.expired) == (2, 0)
    assert first.elapsed_s * 1000 >= cluster.hold_ms
    assert second.elapsed_s * 1000 < cluster.hold_ms / 4
    assert not verdicts.silent_replicas_are_waited_for_once([first, second])
    verdicts.hold(cluster.history, cluster.rows)


def test_f20_goes_red_when_nobody_prunes(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("prune",))
    assert verdicts.silent_replicas_are_waited_for_once(dead_replica_and_two_changes(cluster, REVOKE))


def test_f20_goes_red_when_time_ends_no_wait(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("expire",))
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.stand()
    b.kill()
    cluster.begin(REVOKE, subject, a)
    cluster.pass_time(2 * cluster.hold_ms, keeping=(a,))
    assert verdicts.mutations_return_within_one_hold(cluster.history)


def all_notifies_dropped(cluster: Cluster, kind: Kind) -> Mutation:
    """21: no NOTIFY wakes anybody; time passes by polls of the barrier alone, then by what a poll of the feed needs."""
    a = cluster["a"]
    subject = a.client.subject()
    for replica in cluster.replicas.values():
        cluster.warm(subject, replica)
        replica.arm(Failpoint.NOTIFY_DROP, "nothing")
    cluster.stand()
    begun = cluster.begin(kind, subject, a)
    cluster.advance(10)
    eventually(lambda: begun.is_done or a.status().barriers_asleep > 0)
    assert not begun.is_done
    cluster.advance(cluster.hold_ms / 4)
    eventually(lambda: begun.is_done or a.status().barriers_asleep > 0)
    # Every feed reads now; without its poll none does, and the hold has to pass.
    return cluster.wait_out(begun, a)


def test_f21_without_any_notify_a_change_is_applied_within_a_quarter_of_the_hold(cluster: Cluster, kind: Kind) -> None:
    mutation = all_notifies_dropped(cluster, kind)
    assert (mutation.confirmed, mutation.expired) == (3, 0)
    assert mutation.elapsed_s * 1000 < cluster.hold_ms / 2
    subject = mutation.subject
    assert subject is not None
    assert [replica.client.check(subject) for replica in cluster.replicas.values()] == [kind.makes] * 3
    verdicts.hold(cluster.history, cluster.rows)


def test_f21_goes_red_when_only_a_notify_wakes_the_feed(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("poll",))
    mutation = all_notifies_dropped(cluster, REVOKE)
    assert (mutation.confirmed, mutation.expired) == (0, 2)


def test_the_database_is_not_needed_once_the_rows_were_read(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    a.arm(Failpoint.BARRIER_AFTER_ROWS)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.BARRIER_AFTER_ROWS)
    cluster.history.committed(begun.record)
    a.line.cut()
    a.release(Failpoint.BARRIER_AFTER_ROWS)
    mutation = cluster.wait_out(begun, a, keeping=(c,))
    assert (mutation.answered, mutation.confirmed + mutation.expired) == (OK, 3)
    assert mutation.elapsed_s * 1000 >= cluster.hold_ms
    assert [b.client.check(subject), c.client.check(subject)] == ["UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


def test_a_new_secret_is_not_lost_with_the_database_line(cluster: Cluster) -> None:
    a, b = cluster["a"], cluster["b"]
    known = a.client.subject()
    subject = Subject(known.account_id, known.project_id, "", "", known.permission, "TOKEN_UNRECOGNIZED")
    cluster.stand()
    a.arm(Failpoint.BARRIER_AFTER_ROWS)
    begun = a.client.begin_issue(subject)
    a.reached(Failpoint.BARRIER_AFTER_ROWS)
    cluster.history.committed(begun.record)
    a.line.cut()
    a.release(Failpoint.BARRIER_AFTER_ROWS)
    assert cluster.wait_out(begun, a).answered == OK
    a.line.heal()
    cluster.until_usable(a, b)
    assert b.client.check(subject) == "ALLOWED"
    verdicts.hold(cluster.history, cluster.rows)


@pytest.mark.needs("repeat")
def test_without_the_rows_there_is_no_success_and_a_repeat_waits(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    a.arm(Failpoint.BARRIER_BEFORE_ROWS)
    begun = kind.at(a.client, subject)
    a.reached(Failpoint.BARRIER_BEFORE_ROWS)
    a.line.cut()
    a.release(Failpoint.BARRIER_BEFORE_ROWS)
    mutation = begun.result()
    assert (mutation.answered, mutation.why) == ("UNAVAILABLE", "PROPAGATION_UNKNOWN")
    assert mutation.number == cluster.end()
    repeated = cluster.wait_out(cluster.begin(kind, subject, c), c, keeping=(c,))
    # Whether a has applied it itself, and said so on a connection that was not cut yet, is left open.
    assert (repeated.number, repeated.confirmed + repeated.expired) == (mutation.number, 3)
    assert repeated.expired >= 1
    assert [a.client.check(subject), b.client.check(subject), c.client.check(subject)] == [
        "UNAVAILABLE",
        "UNAVAILABLE",
        kind.makes,
    ]
    verdicts.hold(cluster.history, cluster.rows)


def test_two_changes_at_once_wait_for_a_silent_replica_beside_each_other(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subjects = [a.client.subject() for _ in range(2)]
    for subject in subjects:
        cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    begun = [cluster.begin(kind, subject, at) for subject, at in zip(subjects, (a, c), strict=True)]
    mutations = _wait_out_both(cluster, begun, (a, c))
    assert [mutation.expired for mutation in mutations] == [1, 1]
    assert cluster.time.now_ns() - (mutations[0].true_committed_ns or 0) < 1.5e6 * cluster.hold_ms
    for subject in subjects:
        assert [b.client.check(subject), c.client.check(subject)] == ["UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


@pytest.mark.needs("repeat")
def test_the_same_change_twice_at_once_succeeds_twice_and_both_wait(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    for replica in (a, c):
        replica.arm(Failpoint.MUTATION_AFTER_AUTHN)
        replica.arm(Failpoint.BARRIER_AFTER_ROWS)
    begun = [kind.at(replica.client, subject) for replica in (a, c)]
    for replica in (a, c):
        replica.reached(Failpoint.MUTATION_AFTER_AUTHN)
    for replica in (a, c):
        replica.release(Failpoint.MUTATION_AFTER_AUTHN)
    for replica, pending in zip((a, c), begun, strict=True):
        cluster.waits(pending, replica)
    mutations = _wait_out_both(cluster, begun, (a, c))
    assert [(mutation.answered, mutation.expired) for mutation in mutations] == [(OK, 1), (OK, 1)]
    assert mutations[0].number == mutations[1].number
    assert all(mutation.elapsed_s * 1000 >= cluster.hold_ms for mutation in mutations)
    assert [b.client.check(subject), c.client.check(subject)] == ["UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


def _wait_out_both(
    cluster: Cluster, begun: list[Pending[Mutation]], replicas: tuple[Replica, Replica]
) -> list[Mutation]:
    return [
        cluster.wait_out(pending, replica, keeping=replicas) for pending, replica in zip(begun, replicas, strict=True)
    ]
