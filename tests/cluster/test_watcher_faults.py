"""The faults of watchers that their replica must see to: whose sub-leases it counts, what it reports, what it grants.

Each scenario's twin runs without the rule that it needs: there the verdict must go red. See `test_watcher_streams.py`, too.

*b* grants, *a* makes the change; a watcher that decides in its process is attached to b. Numbers are those of `docs/faults.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.watched import HERE, SOON_S, stand, watching
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind, Pending
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.support.cluster import StartCluster

# Kinds that change what a watcher holds.
pytestmark = pytest.mark.needs("held")


# ---- 16, 17: the replica goes, and its watcher does not hear of it


def replica_killed_under_a_watcher(cluster: Cluster, kind: Kind, *, its_row_goes: bool = False) -> Mutation:
    """16: the watcher is cut off, b is killed and started again at once, then the change is made."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    with watching(cluster, "b", subject) as watcher:
        stand(cluster, watcher)
        former = b.status().replica_id
        watcher.line.stall()
        b.kill()
        if its_row_goes:
            cluster.rows.fetch("DELETE FROM replicas WHERE replica_id = $1", former)
        cluster.start("b")
        begun = cluster.begin(kind, subject, a)
        assert watcher.decides(subject) == HERE
        mutation = cluster.wait_out(begun, a, keeping=list(cluster.replicas.values()))
        watcher.check(subject, timeout_s=SOON_S)
    return mutation


def test_f16_a_change_waits_for_the_row_of_a_replica_that_was_killed_under_a_watcher(
    cluster: Cluster, kind: Kind
) -> None:
    mutation = replica_killed_under_a_watcher(cluster, kind)
    assert (mutation.confirmed, mutation.expired) == (3, 1)
    assert cluster.history.checks[-1].answered == "DEADLINE_EXCEEDED"
    verdicts.hold(cluster.history, cluster.rows)


def test_f16_goes_red_when_the_row_of_the_dead_goes_at_once(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2)
    replica_killed_under_a_watcher(cluster, REVOKE, its_row_goes=True)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def replica_stopped_under_a_watcher(cluster: Cluster, kind: Kind, *, is_gone: bool = False) -> Mutation:
    """17: the watcher is cut off, b is told to stop (and, in the twin, has ended), then the change is made."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    with watching(cluster, "b", subject) as watcher:
        stand(cluster, watcher)
        watcher.line.stall()
        b.terminate()
        if is_gone:
            b.await_death()
        else:
            eventually(lambda: b.status().lease_left_ms == 0)
        begun = cluster.begin(kind, subject, a)
        assert watcher.decides(subject) == HERE
        others = [replica for replica in cluster.replicas.values() if replica is not b]
        mutation = cluster.wait_out(begun, a, keeping=others)
        watcher.check(subject, timeout_s=SOON_S)
        # It waits for nobody longer than a hold.
        cluster.advance(cluster.hold_ms)
        b.await_death()
    return mutation


@pytest.mark.one_kind
def test_f17_the_row_of_a_stopping_replica_stays_while_a_watcher_decides(cluster: Cluster, kind: Kind) -> None:
    mutation = replica_stopped_under_a_watcher(cluster, kind)
    # As long as the sub-lease on any clock.
    assert mutation.elapsed_s * 1000 > cluster.lease_ms
    assert cluster.history.checks[-1].answered == "DEADLINE_EXCEEDED"
    verdicts.hold(cluster.history, cluster.rows)


def test_f17_goes_red_when_its_row_goes_while_a_sub_lease_is_counted(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("shutwait",))
    replica_stopped_under_a_watcher(cluster, REVOKE, is_gone=True)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


@pytest.mark.one_kind
def test_f17_a_stopping_replica_does_not_wait_for_a_watcher_that_says_goodbye(cluster: Cluster, kind: Kind) -> None:
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    with watching(cluster, "b", subject) as watcher:
        stand(cluster, watcher)
        b.terminate()
        b.await_death()
        mutation = cluster.change(kind, subject, a)
        assert (mutation.confirmed, mutation.expired) == (2, 0)
        watcher.check(subject, timeout_s=SOON_S)
    assert cluster.history.checks[-1].answered in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    verdicts.hold(cluster.history, cluster.rows)


# ---- 22: cut off


def cut_off_on_a_slow_clock(cluster: Cluster, kind: Kind, *, is_confirmed: bool = False) -> Mutation:
    """22: the watcher's clock is slow, b's and a's are fast, the line between watcher and b is silent; the change is made."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    for replica in cluster.replicas.values():
        replica.skew(1.1)
    with watching(cluster, "b", subject, rate=0.9) as watcher:
        stand(cluster, watcher)
        watcher.line.stall()
        begun = cluster.begin(kind, subject, a)
        assert watcher.decides(subject) == HERE
        if is_confirmed:
            # The twin: b counts no longer than this, and is given the time to say so.
            cluster.pass_time(cluster.lease_ms / b.rate + 10, keeping=list(cluster.replicas.values()))
            cluster.finish(begun, a)
        mutation = cluster.wait_out(begun, a, keeping=list(cluster.replicas.values()))
        watcher.check(subject, timeout_s=SOON_S)
    assert b.is_alive
    return mutation


def test_f22_a_watcher_that_is_cut_off_is_counted_for_longer_than_its_slow_clock_shows(
    cluster: Cluster, kind: Kind
) -> None:
    mutation = cut_off_on_a_slow_clock(cluster, kind)
    assert mutation.elapsed_s * 1000 > cluster.lease_ms * 1.1 / 0.9
    assert cluster.history.checks[-1].answered == "DEADLINE_EXCEEDED"
    verdicts.hold(cluster.history, cluster.rows)


def test_f22_goes_red_when_a_sub_lease_is_counted_for_its_own_length(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("margin",))
    cut_off_on_a_slow_clock(cluster, REVOKE, is_confirmed=True)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_f22_goes_red_when_a_count_ends_with_its_stream(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("keepcount",))
    cut_off_on_a_slow_clock(cluster, REVOKE, is_confirmed=True)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_f22_goes_red_when_what_was_sent_counts_as_acknowledged(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("ackafter",))
    cut_off_on_a_slow_clock(cluster, REVOKE, is_confirmed=True)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def two_changes_while_an_evict_waits(cluster: Cluster, kind: Kind) -> Mutation:
    """The evict of the change does not arrive; a second change touches nothing that the watcher holds."""
    a = cluster["a"]
    subject, other = a.client.subject(), a.client.subject()
    with watching(cluster, "b", subject) as watcher:
        stand(cluster, watcher)
        watcher.line.stall()
        begun = cluster.begin(kind, subject, a)
        later = cluster.begin(REVOKE, other, a)
        assert watcher.decides(subject) == HERE
        mutation = cluster.wait_out(begun, a, keeping=list(cluster.replicas.values()))
        watcher.check(subject, timeout_s=SOON_S)
        cluster.poll(later, a)
    return mutation


def test_a_change_that_touches_nothing_held_does_not_pass_one_that_does(cluster: Cluster, kind: Kind) -> None:
    two_changes_while_an_evict_waits(cluster, kind)
    verdicts.hold(cluster.history, cluster.rows)


def test_goes_red_when_a_later_report_covers_what_is_owed(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("cumul",))
    two_changes_while_an_evict_waits(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


# ---- 26: it never acknowledges


def never_acknowledges(cluster: Cluster, kind: Kind) -> tuple[Pending[Mutation], Pending[Mutation]]:
    """26: no acknowledgement of the watcher counts; two changes of what it holds, the second one when the first has returned."""
    a, b = cluster["a"], cluster["b"]
    first, second = a.client.subject(), a.client.subject()
    with watching(cluster, "b", first, second) as watcher:
        stand(cluster, watcher)
        b.arm(Failpoint.WATCH_DROP_ACKS, "nothing")
        everybody = list(cluster.replicas.values())
        begun = cluster.begin(kind, first, a)
        cluster.wait_out(begun, a, keeping=everybody)
        watcher.check(first, timeout_s=SOON_S)
        again = cluster.begin(kind, second, a)
        if b.status().owing == 0:
            cluster.finish(again, a)
        cluster.wait_out(again, a, keeping=everybody)
        watcher.check(second, timeout_s=SOON_S)
    return begun, again


@pytest.mark.one_kind
def test_f26_a_watcher_that_never_acknowledges_is_waited_for_once(cluster: Cluster, kind: Kind) -> None:
    first, second = (begun.result() for begun in never_acknowledges(cluster, kind))
    assert first.elapsed_s * 1000 > cluster.hold_ms / 4
    assert second.expired == 0
    assert second.elapsed_s * 1000 < cluster.hold_ms / 4
    verdicts.hold(cluster.history, cluster.rows)


def test_f26_goes_red_when_it_gets_grants_all_the_same(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("silent",))
    begun = never_acknowledges(cluster, REVOKE)
    assert verdicts.silent_replicas_are_waited_for_once(pending.result() for pending in begun)


# ---- what the replica grants


def grants_under_a_lease_that_is_not_usable(cluster: Cluster, kind: Kind) -> Mutation:
    """b renews and does not apply the change; the watcher asks it for sub-leases to the end."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    with watching(cluster, "b", subject) as watcher:
        stand(cluster, watcher)
        b.arm(Failpoint.APPLY_BEFORE)
        begun = cluster.begin(kind, subject, a)
        cluster.renew(b)
        watcher.ask()
        assert watcher.decides(subject) == HERE
        mutation = cluster.wait_out(begun, a, keeping=[other for other in cluster.replicas.values() if other is not b])
        watcher.check(subject, timeout_s=SOON_S)
    b.release_all()
    return mutation


@pytest.mark.one_kind
def test_a_sub_lease_is_cut_only_from_a_lease_that_is_usable(cluster: Cluster, kind: Kind) -> None:
    mutation = grants_under_a_lease_that_is_not_usable(cluster, kind)
    assert mutation.expired == 1
    verdicts.hold(cluster.history, cluster.rows)


def test_goes_red_when_a_sub_lease_is_cut_from_a_renewal_that_is_not_applied(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("usablegrant",))
    grants_under_a_lease_that_is_not_usable(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def registers_anew_under_a_watcher(cluster: Cluster, kind: Kind) -> Mutation:
    """b's row goes while its apply is stopped before the change; it registers anew, with the change; then it grants again."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    with watching(cluster, "b", subject) as watcher:
        stand(cluster, watcher)
        former = b.status()
        b.arm(Failpoint.APPLY_BEFORE)
        begun = cluster.begin(kind, subject, a)
        # A row goes only when every sub-lease under it has ended.
        cluster.pass_time(
            cluster.hold_ms - 50, keeping=[other for other in cluster.replicas.values() if other is not b]
        )
        cluster.rows.fetch("DELETE FROM replicas WHERE replica_id = $1", former.replica_id)
        cluster.advance(cluster.hold_ms / 4 + 1)
        eventually(lambda: b.status().generation == former.generation + 1)
        b.release(Failpoint.APPLY_BEFORE)
        mutation = cluster.poll(begun, a)
        cluster.until_usable(b)
        eventually(lambda: b.status().watchers > 0)
        watcher.await_session()
        watcher.renew()
        watcher.check(subject)
    return mutation


@pytest.mark.one_kind
def test_a_replica_that_registers_anew_ends_every_session(cluster: Cluster, kind: Kind) -> None:
    registers_anew_under_a_watcher(cluster, kind)
    assert cluster.history.checks[-1].answered == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_goes_red_when_sessions_outlive_a_registration(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("regend",))
    registers_anew_under_a_watcher(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)
