"""What a caller asks for besides the promise: a check that contains everything committed before it, or a revision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind, Pending
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Check
    from tests.support.cluster import StartCluster


def fully_consistent_with_an_older_renewal_under_way(cluster: Cluster, kind: Kind) -> Pending[Check]:
    """43: a renewal of b, begun before the change, is answered only after a fully consistent check has arrived there.

    b has applied nothing, and the change has not returned.
    """
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    b.arm(Failpoint.RENEW_BEFORE_ANSWER, times=1)
    cluster.advance(cluster.hold_ms / 4 + 1)
    b.reached(Failpoint.RENEW_BEFORE_ANSWER)
    b.arm(Failpoint.APPLY_BEFORE)
    begun = cluster.begin(kind, subject, a)
    before = b.status().renewals
    check = cluster.begin_check(b, subject, fully=True)
    b.release(Failpoint.RENEW_BEFORE_ANSWER)
    eventually(lambda: check.is_done or b.status().renewals >= before + 2)
    b.release(Failpoint.APPLY_BEFORE)
    check.result()
    cluster.finish(begun, a)
    return check


def test_f43_a_fully_consistent_check_waits_for_a_renewal_begun_after_it(cluster: Cluster, kind: Kind) -> None:
    assert fully_consistent_with_an_older_renewal_under_way(cluster, kind).record.answered == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_f43_goes_red_when_it_takes_the_next_answer(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("fresh",))
    fully_consistent_with_an_older_renewal_under_way(cluster, REVOKE)
    assert verdicts.what_is_fully_consistent_contains_what_was_committed(cluster.history)


def test_f43_a_fully_consistent_check_is_unavailable_while_the_database_is_silent(
    start_cluster: StartCluster, kind: Kind
) -> None:
    # It is waited for a hold of the machine's time, so a short one.
    cluster = start_cluster(2, hold_ms=1000)
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    cluster.warm(subject, a, b)
    cluster.stand()
    b.line.stall()
    begun = cluster.begin(kind, subject, a)
    # b holds a lease, and so answers from before: nothing has returned.
    assert b.client.check(subject) == "ALLOWED"
    check = b.client.begin_check(subject, fully=True).result()
    assert (check.answered, check.why) == ("UNAVAILABLE", "REVISION_NOT_REACHED")
    b.line.heal()
    cluster.finish(begun, a)
    # A renewal that failed is tried again after a pause, which time that stands does not end.
    cluster.renew(a, b)
    assert b.client.check(subject, fully=True) == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_a_check_that_names_the_revision_of_a_change_contains_it_before_that_returns(
    cluster: Cluster, kind: Kind
) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject = a.client.subject()
    cluster.warm(subject, a, b, c)
    cluster.stand()
    b.arm(Failpoint.APPLY_BEFORE)
    begun = cluster.begin(kind, subject, a)
    check = b.client.begin_check(subject, at_least=cluster.end())
    assert b.client.check(subject) == "ALLOWED"
    assert not check.is_done
    b.release(Failpoint.APPLY_BEFORE)
    assert check.result().answered == kind.makes
    cluster.finish(begun, a)
    verdicts.hold(cluster.history, cluster.rows)
