"""A replica that registers, also one that comes back, begins with nothing of before, and its row stands for it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.support.cluster import StartCluster


def pruned_and_back(cluster: Cluster, kind: Kind) -> None:
    """b is cut off with the subject in its memory, pruned after the change, healed, and asked.

    It learns that its row is gone before it reads the change that it missed.
    """
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    former = b.status().replica_id
    b.line.stall()
    cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,))
    eventually(lambda: former not in cluster.row_ids())
    b.arm(Failpoint.APPLY_BEFORE)
    b.line.heal()
    cluster.until_usable(b)
    b.release(Failpoint.APPLY_BEFORE)
    b.client.check(subject)


def test_f05_a_pruned_replica_comes_back_with_empty_caches(cluster: Cluster, kind: Kind) -> None:
    b = cluster["b"]
    former = b.status()
    pruned_and_back(cluster, kind)
    status = b.status()
    assert status.replica_id != former.replica_id
    assert status.generation == former.generation + 1
    assert cluster.history.checks[-1].answered == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_f05_goes_red_when_a_registration_keeps_what_was_held(start_cluster: StartCluster, kind: Kind) -> None:
    cluster = start_cluster(2, without=("regempty",))
    pruned_and_back(cluster, kind)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def registration_that_stands_before_its_commit(cluster: Cluster, kind: Kind) -> Mutation:
    """6: b registers anew, with an older snapshot, and stops before its COMMIT; the change returns; b goes on.

    It is asked before and after it applies the change.
    """
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    # The first hit is before the transaction, the second in it.
    b.arm(Failpoint.REGISTER_BEFORE_COMMIT, skip=1)
    cluster.rows.fetch("DELETE FROM replicas WHERE replica_id = $1", b.status().replica_id)
    cluster.advance(cluster.hold_ms / 4 + 1)
    b.reached(Failpoint.REGISTER_BEFORE_COMMIT)
    mutation = cluster.finish(cluster.begin(kind, subject, a), a)
    b.client.check(subject)
    b.arm(Failpoint.APPLY_BEFORE)
    before = b.status().renewals
    b.release(Failpoint.REGISTER_BEFORE_COMMIT)
    eventually(lambda: b.status().renewals > before)
    b.client.check(subject)
    b.release(Failpoint.APPLY_BEFORE)
    cluster.until_usable(b)
    b.client.check(subject)
    return mutation


def test_f06_the_first_answer_after_a_registration_contains_what_returned_before_its_commit(
    cluster: Cluster, kind: Kind
) -> None:
    mutation = registration_that_stands_before_its_commit(cluster, kind)
    assert (mutation.confirmed, mutation.expired) == (2, 0)
    assert [check.answered for check in cluster.history.checks[-3:]] == ["UNAVAILABLE", "UNAVAILABLE", kind.makes]
    verdicts.hold(cluster.history, cluster.rows)


def test_f06_goes_red_when_what_was_held_stays_and_a_renewal_is_usable_at_once(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("regempty", "usable"))
    registration_that_stands_before_its_commit(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_f06_a_registration_that_stands_before_its_answer_is_waited_for(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.arm(Failpoint.REGISTER_BEFORE_ANSWER)
    cluster.rows.fetch("DELETE FROM replicas WHERE replica_id = $1", b.status().replica_id)
    cluster.advance(cluster.hold_ms / 4 + 1)
    b.reached(Failpoint.REGISTER_BEFORE_ANSWER)
    mutation = cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a, c))
    assert (mutation.confirmed, mutation.expired) == (2, 1)
    assert b.client.check(subject) == "UNAVAILABLE"
    cluster.at_rest(a)
    # What it is told now stood in a row that was pruned: it has to register once more.
    b.release(Failpoint.REGISTER_BEFORE_ANSWER)
    cluster.until_usable(b)
    assert b.client.check(subject) == kind.makes
    assert cluster.usable_id(b) in cluster.row_ids()
    verdicts.hold(cluster.history, cluster.rows)


def test_a_registration_whose_answer_is_lost_is_waited_for_once(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subjects = [a.client.subject() for _ in range(2)]
    cluster.stand()
    b.arm(Failpoint.REGISTER_BEFORE_COMMIT, skip=1, times=1)
    cluster.rows.fetch("DELETE FROM replicas WHERE replica_id = $1", b.status().replica_id)
    known = cluster.row_ids()
    cluster.advance(cluster.hold_ms / 4 + 1)
    b.reached(Failpoint.REGISTER_BEFORE_COMMIT)
    b.line.stall(asks=False)
    b.release(Failpoint.REGISTER_BEFORE_COMMIT)
    eventually(lambda: len(cluster.row_ids()) == 3)
    (lost,) = cluster.row_ids() - known
    b.line.cut()
    b.line.heal()
    cluster.until_usable(b)
    assert cluster.usable_id(b) != lost
    mutations = []
    for subject in subjects:
        mutations.append(cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a, b, c)))
        cluster.at_rest(a)
    assert [(mutation.confirmed, mutation.expired) for mutation in mutations] == [(3, 1), (3, 0)]
    assert lost not in cluster.row_ids()
    verdicts.hold(cluster.history, cluster.rows)


def reports_that_are_blocked_and_a_late_prune(cluster: Cluster, kind: Kind) -> list[Mutation]:
    """14: b renews and applies but does not report; its row is to be pruned late; then b is cut off from a second change."""
    a, b = cluster["a"], cluster["b"]
    first, second = a.client.subject(), a.client.subject()
    cluster.warm(first, a, b)
    cluster.warm(second, a, b)
    cluster.stand()
    everybody = list(cluster.replicas.values())
    b.arm(Failpoint.REPORT_BEFORE_SEND)
    a.arm(Failpoint.PRUNE_BEFORE)
    mutations = [cluster.wait_out(cluster.begin(kind, first, a), a, keeping=everybody)]
    a.reached(Failpoint.PRUNE_BEFORE)
    cluster.renew(b)
    b.line.stall()
    a.release(Failpoint.PRUNE_BEFORE)
    cluster.at_rest(a)
    others = [replica for replica in everybody if replica is not b]
    mutations.append(cluster.wait_out(cluster.begin(kind, second, a), a, keeping=others))
    b.client.check(second)
    return mutations


def test_f14_a_row_that_renews_survives_a_late_prune(cluster: Cluster, kind: Kind) -> None:
    mutations = reports_that_are_blocked_and_a_late_prune(cluster, kind)
    assert [mutation.expired for mutation in mutations] == [1, 1]
    assert cluster.history.checks[-1].answered == "UNAVAILABLE"
    verdicts.hold(cluster.history, cluster.rows)


def test_f14_goes_red_when_a_row_is_pruned_that_did_not_stand_still(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("cas",))
    reports_that_are_blocked_and_a_late_prune(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def two_pruners_and_a_registration(cluster: Cluster, kind: Kind) -> Mutation:
    """15: a and c have both waited for b and are about to prune it; one does, b registers anew, then the other one does.

    Then b is cut off, and a third change must wait for it.
    """
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subjects = [a.client.subject() for _ in range(3)]
    for subject in subjects:
        cluster.warm(subject, a, b, c)
    cluster.stand()
    b.line.stall()
    for pruner in (a, c):
        pruner.arm(Failpoint.PRUNE_BEFORE)
    begun = [(pruner, cluster.begin(kind, subject, pruner)) for pruner, subject in zip((a, c), subjects, strict=False)]
    for pruner, pending in begun:
        cluster.wait_out(pending, pruner, keeping=(a, c))
        pruner.reached(Failpoint.PRUNE_BEFORE)
    a.release(Failpoint.PRUNE_BEFORE)
    cluster.at_rest(a)
    b.line.heal()
    cluster.until_usable(b)
    cluster.usable_id(b)
    cluster.warm(subjects[2], b)
    b.line.stall()
    c.release(Failpoint.PRUNE_BEFORE)
    cluster.at_rest(c)
    mutation = cluster.wait_out(cluster.begin(kind, subjects[2], a), a, keeping=(a, c))
    b.client.check(subjects[2])
    return mutation


def test_f15_a_new_row_survives_the_prune_of_the_one_before(cluster: Cluster, kind: Kind) -> None:
    mutation = two_pruners_and_a_registration(cluster, kind)
    assert mutation.expired == 1
    assert [earlier.expired for earlier in cluster.history.mutations[-3:-1]] == [1, 1]
    verdicts.hold(cluster.history, cluster.rows)


def test_f15_goes_red_when_a_registration_keeps_its_id(start_cluster: StartCluster) -> None:
    cluster = start_cluster(3, without=("newid", "anyrow"))
    two_pruners_and_a_registration(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def renewal_older_than_what_is_applied(cluster: Cluster, kind: Kind) -> None:
    """37: b's renewal is answered before the change and taken after b has applied it."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    b.arm(Failpoint.RENEW_BEFORE_ANSWER, times=1)
    cluster.advance(cluster.hold_ms / 4 + 1)
    b.reached(Failpoint.RENEW_BEFORE_ANSWER)
    cluster.change(kind, subject, a)
    before = b.status().renewals
    b.release(Failpoint.RENEW_BEFORE_ANSWER)
    eventually(lambda: b.status().renewals > before or not b.status().is_registered or b.status().generation > 1)


def test_f37_an_older_answer_to_a_renewal_empties_nothing(cluster: Cluster, kind: Kind) -> None:
    b = cluster["b"]
    former = b.status()
    renewal_older_than_what_is_applied(cluster, kind)
    status = b.status()
    assert (status.replica_id, status.generation) == (former.replica_id, former.generation)
    assert status.lease_left_ms > 0
    verdicts.hold(cluster.history, cluster.rows)


def test_f37_goes_red_when_it_is_compared_with_what_is_applied_now(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("notbelow",))
    former = cluster["b"].status()
    renewal_older_than_what_is_applied(cluster, REVOKE)
    eventually(lambda: cluster["b"].status().generation == former.generation + 1)


def log_truncated_past_a_cut_off_replica(cluster: Cluster, kind: Kind, *, whole: bool) -> None:
    """44: two changes while b is cut off; its row stays, but the log loses the first of them, or both."""
    a, b = cluster["a"], cluster["b"]
    subjects = [a.client.subject() for _ in range(2)]
    for subject in subjects:
        cluster.warm(subject, a, b)
    cluster.stand()
    b.line.stall()
    a.arm(Failpoint.PRUNE_BEFORE)
    mutations = [cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,)) for subject in subjects]
    last = (mutations[1] if whole else mutations[0]).number
    columns = "revision, nonce, kind, account_id, subjects, commit_time"
    lost = cluster.rows.fetch(f"DELETE FROM changes WHERE revision <= $1 RETURNING {columns}", last)  # noqa: S608
    b.line.heal()
    cluster.until_usable(b)
    for subject in subjects:
        b.client.check(subject)
    for row in lost:
        cluster.rows.fetch(f"INSERT INTO changes ({columns}) VALUES ($1, $2, $3, $4, $5, $6)", *row)  # noqa: S608


@pytest.mark.parametrize("whole", [False, True], ids=["a_gap", "nothing_left"])
def test_f44_a_replica_past_which_the_log_was_truncated_starts_anew(cluster: Cluster, kind: Kind, whole: bool) -> None:
    b = cluster["b"]
    former = b.status()
    log_truncated_past_a_cut_off_replica(cluster, kind, whole=whole)
    assert b.status().generation == former.generation + 1
    assert [check.answered for check in cluster.history.checks[-2:]] == [kind.makes] * 2
    verdicts.hold(cluster.history, cluster.rows)


def test_f44_goes_red_when_a_gap_is_read_over(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("gap",))
    log_truncated_past_a_cut_off_replica(cluster, REVOKE, whole=False)
    assert verdicts.answers_contain_what_returned_before(cluster.history)
