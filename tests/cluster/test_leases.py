"""Whatever becomes of a replica's lease: no check that begins after a mutation has returned is answered from before it.

Each scenario is a function of a cluster and a kind of mutation; its test ends with `verdicts.hold`, and its twin runs the same
on a cluster that was started without the rule, where the verdict must go red. Numbers are those of `docs/faults.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.history import OK
from tests.cluster.steps import Step
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind, Pending
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Check, Mutation
    from tests.support.cluster import StartCluster


def cut_off_with_a_check_after_its_decision(cluster: Cluster, kind: Kind) -> Pending[Check]:
    """1: b is cut off, the change returns, a new check there stops after its decision, b gets a new lease, the check goes on."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    b.line.stall()
    cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,))
    b.arm(Step.CHECK_AFTER_DECIDE)
    check = b.client.begin_check(subject)
    eventually(lambda: check.is_done or b.has_reached(Step.CHECK_AFTER_DECIDE))
    b.line.heal()
    cluster.until_usable(b)
    b.release(Step.CHECK_AFTER_DECIDE)
    check.result()
    return check


def test_f01_cut_off_replica_answers_no_check_begun_after_the_return(cluster: Cluster, kind: Kind) -> None:
    check = cut_off_with_a_check_after_its_decision(cluster, kind)
    assert check.record.answered == "UNAVAILABLE"
    assert check.record.why == "NO_LEASE"
    verdicts.hold(cluster.history, cluster.rows)


def test_f01_goes_red_when_a_check_looks_only_at_the_newest_lease(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("caplease",))
    cut_off_with_a_check_after_its_decision(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_f01_a_check_begun_before_is_not_saved_by_a_newer_lease(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.arm(Step.CHECK_AFTER_DECIDE)
    check = b.client.begin_check(subject)
    b.reached(Step.CHECK_AFTER_DECIDE)
    b.line.stall()
    cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a, c))
    b.line.heal()
    cluster.until_usable(b)
    b.release(Step.CHECK_AFTER_DECIDE)
    assert check.result().answered == "UNAVAILABLE"
    assert b.client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def renewal_without_its_apply(cluster: Cluster, kind: Kind) -> Mutation:
    """7: b's renewal is answered with the change's revision while its apply is stopped; the change returns."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    cluster.renew(a, b)
    b.arm(Failpoint.APPLY_BEFORE)
    begun = cluster.begin(kind, subject, a)
    cluster.renew(b)
    b.client.check(subject)
    mutation = cluster.wait_out(begun, a, keeping=(a,))
    b.client.check(subject)
    return mutation


def test_f07_a_renewal_that_is_not_applied_gives_no_lease(cluster: Cluster, kind: Kind) -> None:
    mutation = renewal_without_its_apply(cluster, kind)
    assert (mutation.confirmed, mutation.expired) == (2, 1)
    during, after = cluster.history.checks[-2:]
    assert (during.answered, after.answered) == ("ALLOWED", "UNAVAILABLE")
    verdicts.hold(cluster.history, cluster.rows)


def test_f07_goes_red_when_a_renewal_is_usable_at_once(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("usable",))
    renewal_without_its_apply(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def renewal_answered_too_late(cluster: Cluster, kind: Kind) -> Mutation:
    """8: b's renewal is sent, b is cut off, the change returns, then the answer of that renewal is taken."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    b.arm(Failpoint.RENEW_BEFORE_ANSWER)
    cluster.advance(cluster.hold_ms / 4 + 1)
    b.reached(Failpoint.RENEW_BEFORE_ANSWER)
    b.line.stall()
    mutation = cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,))
    before = b.status().renewals
    b.release(Failpoint.RENEW_BEFORE_ANSWER)
    eventually(lambda: b.status().renewals > before)
    b.client.check(subject)
    return mutation


def test_f08_a_renewal_answered_later_than_a_lease_gives_none(cluster: Cluster, kind: Kind) -> None:
    mutation = renewal_answered_too_late(cluster, kind)
    assert mutation.expired == 1
    assert cluster.history.checks[-1].answered == "UNAVAILABLE"
    verdicts.hold(cluster.history, cluster.rows)


def test_f08_goes_red_when_a_lease_counts_from_the_answer(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("sent",))
    renewal_answered_too_late(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def frozen_across_the_change(cluster: Cluster, kind: Kind) -> Mutation:
    """10: SIGSTOP of b for longer than a hold across the change; then a check, sent while it stands.

    It is answered before b applies anything.
    """
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    cluster.renew(a, b)
    b.arm(Failpoint.APPLY_BEFORE)
    b.freeze()
    mutation = cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,))
    # Its row may be pruned by now: it must not learn of that before it has answered.
    b.line.stall()
    check = b.client.begin_check(subject)
    b.thaw()
    check.result()
    b.line.heal()
    b.release(Failpoint.APPLY_BEFORE)
    return mutation


def test_f10_a_frozen_replica_allows_nothing_after_it_wakes(cluster: Cluster, kind: Kind) -> None:
    mutation = frozen_across_the_change(cluster, kind)
    assert mutation.expired == 1
    assert cluster.history.checks[-1].answered == "UNAVAILABLE"
    cluster.until_usable(cluster["b"])
    subject = mutation.subject
    assert subject is not None
    assert cluster["b"].client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_f10_goes_red_without_the_barrier(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("barrier",))
    frozen_across_the_change(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_f10_a_check_from_memory_frozen_before_its_last_look_is_not_answered(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.arm(Step.CHECK_AFTER_DECIDE, "freeze")
    check = b.client.begin_check(subject)
    b.reached(Step.CHECK_AFTER_DECIDE)
    b.await_frozen()
    mutation = cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a, c))
    b.thaw()
    assert check.result().answered == "UNAVAILABLE"
    assert mutation.expired == 1
    verdicts.hold(cluster.history, cluster.rows)


def test_f11_a_check_begun_before_may_be_allowed_and_its_deadline_bounds_it(cluster: Cluster, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.arm(Step.CHECK_BEFORE_SEND)
    patient = b.client.begin_check(subject)
    b.reached(Step.CHECK_BEFORE_SEND)
    hasty = b.client.begin_check(subject, timeout_s=0.5)
    assert cluster.change(kind, subject, a).expired == 0
    assert hasty.result().answered == "DEADLINE_EXCEEDED"
    assert not patient.is_done
    b.release(Step.CHECK_BEFORE_SEND)
    assert patient.result().answered == "ALLOWED"
    assert b.client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def slow_replica_and_fast_revoker(cluster: Cluster, kind: Kind) -> Mutation:
    """12: b's clock runs at 0.9 and is cut off right after a renewal; a's runs at 1.1 and waits for it."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    a.skew(1.1)
    b.skew(0.9)
    cluster.renew(a, b)
    b.line.stall()
    mutation = cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,))
    b.client.check(subject)
    return mutation


def test_f12_clocks_that_differ_by_a_tenth_each_let_no_stale_yes_pass(cluster: Cluster, kind: Kind) -> None:
    mutation = slow_replica_and_fast_revoker(cluster, kind)
    assert mutation.expired == 1
    waited_ns = (mutation.true_ended_ns or 0) - (mutation.true_committed_ns or 0)
    assert waited_ns < cluster.hold_ms * 1_000_000
    verdicts.hold(cluster.history, cluster.rows)


def test_f12_goes_red_when_a_lease_is_as_long_as_the_hold(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("rho",))
    slow_replica_and_fast_revoker(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def two_holds_in_one_fleet(cluster: Cluster, kind: Kind) -> Mutation:
    """13: a's hold is 2 s; b, with one of 8 s, is frozen across the change, and then answers before it applies anything."""
    cluster.start("a", hold_ms=2000)
    cluster.start("b", hold_ms=8000)
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    cluster.renew(b)
    b.arm(Failpoint.APPLY_BEFORE)
    b.freeze()
    mutation = cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=(a,), hold_ms=8000)
    # Its row may be pruned by now: it must not learn of that before it has answered.
    b.line.stall()
    check = b.client.begin_check(subject)
    b.thaw()
    check.result()
    b.line.heal()
    b.release(Failpoint.APPLY_BEFORE)
    return mutation


def test_f13_the_hold_that_is_waited_for_stands_in_the_row(start_cluster: StartCluster, kind: Kind) -> None:
    cluster = start_cluster(0)
    mutation = two_holds_in_one_fleet(cluster, kind)
    assert (mutation.answered, mutation.expired) == (OK, 1)
    assert mutation.elapsed_s >= 8
    verdicts.hold(cluster.history, cluster.rows)


def test_f13_goes_red_when_the_revoker_waits_for_a_hold_of_its_own(start_cluster: StartCluster) -> None:
    cluster = start_cluster(0, without=("holdrow",))
    two_holds_in_one_fleet(cluster, REVOKE)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def apply_that_is_stuck(cluster: Cluster, kind: Kind) -> list[Mutation]:
    """45: b applies nothing any more. Three changes, one after the other; the first is waited for while b still renews."""
    a, b = cluster["a"], cluster["b"]
    subjects = [a.client.subject() for _ in range(3)]
    for subject in subjects:
        cluster.warm(subject, a, b)
    cluster.stand()
    others = [replica for replica in cluster.replicas.values() if replica is not b]
    b.arm(Failpoint.APPLY_BEFORE)
    mutations = [cluster.wait_out(cluster.begin(kind, subjects[0], a), a, keeping=others)]
    cluster.pass_time(cluster.hold_ms, others)
    for subject in subjects[1:]:
        mutations.append(cluster.wait_out(cluster.begin(kind, subject, a), a, keeping=others))
        cluster.at_rest(a)
        b.client.check(subject)
    return mutations


def test_f45_a_replica_that_cannot_apply_stops_renewing_and_is_waited_for_once_more(
    cluster: Cluster, kind: Kind
) -> None:
    b = cluster["b"]
    mutations = apply_that_is_stuck(cluster, kind)
    assert [mutation.expired for mutation in mutations] == [1, 1, 0]
    assert not verdicts.silent_replicas_are_waited_for_once(mutations[1:])
    b.release(Failpoint.APPLY_BEFORE)
    cluster.until_usable(b)
    subject = mutations[0].subject
    assert subject is not None
    assert b.client.check(subject) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_f45_goes_red_when_it_goes_on_renewing(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("stuck",))
    mutations = apply_that_is_stuck(cluster, REVOKE)
    assert verdicts.silent_replicas_are_waited_for_once(mutations[1:])
