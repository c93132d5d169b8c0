"""The faults of streams, which the watcher must see to: what is on the wire, what it holds, when it moves, forks and leaves.

Each scenario's twin runs without the rule that it needs: there the verdict must go red. See `test_watcher_faults.py`, too.

*b* grants, *a* makes the change; a watcher that decides in its process is attached to b. Numbers are those of `docs/faults.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.kinds import OPERATOR
from tests.cluster.steps import Step
from tests.cluster.watched import HERE, SOON_S, stand, watching
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Mutation
    from tests.support.cluster import StartCluster

# Kinds that change what a watcher holds.
pytestmark = pytest.mark.needs("held")


# ---- 23: to another replica


def moves_to_a_lagging_replica(cluster: Cluster, kind: Kind, without: Sequence[str] = ()) -> Mutation:
    """23: c does not learn of the change; the watcher, which knows nothing of its subject, moves there from b, and asks it."""
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject, known = a.client.subject(), a.client.subject()
    cluster.warm(subject, b, c)
    with watching(cluster, "b", known, without=without) as watcher:
        stand(cluster, watcher)
        c.line.stall()
        begun = cluster.begin(kind, subject, a)
        cluster.pass_time(cluster.lease_ms - 50, keeping=(a, b))
        # For as long as ever possible.
        watcher.renew()
        watcher.lead_to(c)
        watcher.warm(subject)
        mutation = cluster.wait_out(begun, a, keeping=(a, b))
        watcher.check(subject, timeout_s=SOON_S)
    return mutation


def test_f23_a_watcher_that_moves_to_a_lagging_replica_has_no_more_than_that_has(cluster: Cluster, kind: Kind) -> None:
    mutation = moves_to_a_lagging_replica(cluster, kind)
    assert (mutation.confirmed, mutation.expired) == (2, 1)
    assert cluster.history.checks[-1].answered in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    verdicts.hold(cluster.history, cluster.rows)


def test_f23_goes_red_when_a_sub_lease_outlives_its_stream(start_cluster: StartCluster) -> None:
    cluster = start_cluster(3)
    moves_to_a_lagging_replica(cluster, REVOKE, without=("dropsl",))
    assert verdicts.answers_contain_what_returned_before(cluster.history)


@pytest.mark.one_kind
def test_f23_a_check_that_waits_for_a_resolve_is_not_answered_from_the_older_state(
    cluster: Cluster, kind: Kind
) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    subject, known = a.client.subject(), a.client.subject()
    cluster.warm(subject, c)
    with watching(cluster, "b", known) as watcher:
        stand(cluster, watcher)
        b.arm(Failpoint.LOAD_BEFORE_SNAPSHOT)
        waits = watcher.begin_check(subject)
        b.reached(Failpoint.LOAD_BEFORE_SNAPSHOT)
        c.line.stall()
        begun = cluster.begin(kind, subject, a)
        watcher.lead_to(c)
        watcher.arm(Step.WATCH_CLIENT_BEFORE_INSTALL)
        late = watcher.begin_check(subject)
        cluster.wait_out(begun, a, keeping=(a, b))
        watcher.release_all()
        b.release_all()
        # What the older state allowed was answered before the change returned, if at all.
        for check in (waits.result(), late.result()):
            assert check.answered != "ALLOWED" or (check.ended_ns or 0) < (begun.record.ended_ns or 0)
        watcher.check(subject, timeout_s=SOON_S)
    verdicts.hold(cluster.history, cluster.rows)


def comes_back_with_what_it_held(cluster: Cluster, kind: Kind, without: Sequence[str] = ()) -> Mutation:
    """The watcher's stream breaks, and the next one leads to b again; then the change is made."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    with watching(cluster, "b", subject, without=without) as watcher:
        stand(cluster, watcher)
        watcher.lead_to(b)
        watcher.await_lease()
        # The former session is counted, for all that b knows: so is this one, to the end of that.
        mutation = cluster.wait_out(
            cluster.begin(kind, subject, a), a, keeping=[*cluster.replicas.values()], watchers=(watcher,)
        )
        watcher.check(subject)
    return mutation


def test_a_watcher_that_comes_back_begins_with_nothing(cluster: Cluster, kind: Kind) -> None:
    comes_back_with_what_it_held(cluster, kind)
    assert cluster.history.checks[-1].answered == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_goes_red_when_a_stream_begins_with_what_was_held(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2)
    comes_back_with_what_it_held(cluster, REVOKE, without=("emptycache",))
    assert verdicts.answers_contain_what_returned_before(cluster.history)


# ---- 24, 25: on the wire


def grant_held_while_it_asks_again(cluster: Cluster, kind: Kind, without: Sequence[str] = ()) -> Mutation:
    """24: a grant is held on the wire; the watcher asks again, and is given that one; then it hears nothing any more."""
    a, b = cluster["a"], cluster["b"]
    subject = a.client.subject()
    with watching(cluster, "b", subject, rate=0.9, without=without) as watcher:
        stand(cluster, watcher)
        held_back = watcher.line.held_back
        watcher.line.stall(asks=False)
        first = watcher.ask()
        eventually(lambda: watcher.line.held_back > held_back)
        watcher.line.stall()
        # Less than a watcher may leave unacknowledged.
        cluster.pass_time(cluster.hold_ms / 4 - 100, keeping=list(cluster.replicas.values()))
        watcher.ask()
        watcher.line.stall(answers=False)
        eventually(lambda: first not in watcher.status().asks)
        watcher.line.stall()
        begun = cluster.begin(kind, subject, a)
        assert watcher.decides(subject) == HERE
        # b counts from its grant, and is given the time to say that this is past.
        cluster.pass_time(cluster.hold_ms * 3 / 4 + 110, keeping=list(cluster.replicas.values()))
        cluster.finish(begun, a)
        mutation = cluster.wait_out(begun, a, keeping=list(cluster.replicas.values()))
        watcher.check(subject, timeout_s=SOON_S)
    assert b.is_alive
    return mutation


def test_f24_a_grant_counts_from_the_ask_that_it_answers(cluster: Cluster, kind: Kind) -> None:
    grant_held_while_it_asks_again(cluster, kind)
    assert cluster.history.checks[-1].answered == "DEADLINE_EXCEEDED"
    verdicts.hold(cluster.history, cluster.rows)


def test_f24_goes_red_when_a_grant_counts_from_the_newest_ask(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2)
    grant_held_while_it_asks_again(cluster, REVOKE, without=("echo",))
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def resolve_paused_across_the_change(cluster: Cluster, kind: Kind, *, is_cached: bool) -> Mutation:
    """25: what the watcher asks b for is on its way to memory, or was found there, and stops; the change returns; it goes on."""
    a, b = cluster["a"], cluster["b"]
    subject, known = a.client.subject(), a.client.subject()
    with watching(cluster, "b", known) as watcher:
        if is_cached:
            cluster.warm(subject, b)
        stand(cluster, watcher)
        b.arm(Failpoint.LOAD_BEFORE_INSTALL)
        waits = watcher.begin_check(subject)
        b.reached(Failpoint.LOAD_BEFORE_INSTALL)
        mutation = cluster.change(kind, subject, a)
        b.release_all()
        waits.result()
        watcher.check(subject)
        watcher.check(subject)
    return mutation


def test_f25_a_resolve_that_is_paused_across_a_change_contains_it(cluster: Cluster, kind: Kind) -> None:
    mutation = resolve_paused_across_the_change(cluster, kind, is_cached=False)
    assert mutation.expired == 0
    assert cluster.history.checks[-1].answered == kind.makes
    verdicts.hold(cluster.history, cluster.rows)


def test_f25_goes_red_when_a_snapshot_is_queued_later_than_it_was_looked_up(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("atomic",))
    # In the twin also what `watching` warms goes through the two steps; nothing stops it there.
    resolve_paused_across_the_change(cluster, REVOKE, is_cached=True)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


def test_goes_red_when_a_message_is_acknowledged_before_it_is_applied(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2)
    a = cluster["a"]
    subject = a.client.subject()
    with watching(cluster, "b", subject, without=("order",)) as watcher:
        stand(cluster, watcher)
        cluster.change(REVOKE, subject, a)
        watcher.check(subject)
    assert verdicts.answers_contain_what_returned_before(cluster.history)


# ---- 27, 28: it forks, it leaves


def forks(cluster: Cluster, without: Sequence[str] = ()) -> dict[str, object]:
    """27: what the child of a watcher that holds a sub-lease says."""
    subject = cluster["a"].client.subject()
    with watching(cluster, "b", subject, without=without) as watcher:
        stand(cluster, watcher)
        told = watcher.fork(subject)
        assert watcher.decides(subject) == HERE
    return told


def test_f27_a_child_of_fork_has_no_lease(cluster: Cluster) -> None:
    assert forks(cluster) == {"holds_lease": False, "decides": False}
    verdicts.hold(cluster.history, cluster.rows)


def test_f27_goes_red_when_the_child_keeps_what_its_parent_had(start_cluster: StartCluster) -> None:
    assert forks(start_cluster(2), without=("fork",)) == {"holds_lease": True, "decides": True}


def says_goodbye_with_a_check_in_flight(cluster: Cluster, kind: Kind, without: Sequence[str] = ()) -> Mutation:
    """28: a check waits for a resolve, the watcher says goodbye, the change is made."""
    a, b = cluster["a"], cluster["b"]
    subject, other = a.client.subject(), a.client.another_of(a.client.subject())
    with watching(cluster, "b", subject, without=without) as watcher:
        stand(cluster, watcher)
        b.arm(Failpoint.LOAD_BEFORE_SNAPSHOT)
        # In the twin nothing but its time ends it.
        waits = watcher.begin_check(other, timeout_s=4 * SOON_S)
        b.reached(Failpoint.LOAD_BEFORE_SNAPSHOT)
        goodbye = watcher.begin_goodbye()
        eventually(lambda: b.status().counted == 0)
        mutation = cluster.change(kind, subject, a)
        watcher.check(subject, timeout_s=SOON_S)
        b.release_all()
        watcher.end_goodbye(goodbye)
        watcher.check(subject, timeout_s=SOON_S)
        waits.result()
    return mutation


@pytest.mark.one_kind
def test_f28_who_said_goodbye_decides_nothing_and_nobody_waits_for_it(cluster: Cluster, kind: Kind) -> None:
    mutation = says_goodbye_with_a_check_in_flight(cluster, kind)
    assert mutation.expired == 0
    assert mutation.elapsed_s * 1000 < cluster.hold_ms / 4
    assert {check.answered for check in cluster.history.checks[-3:]} == {"CANCELLED"}
    verdicts.hold(cluster.history, cluster.rows)


def test_f28_goes_red_when_goodbye_is_said_before_giving_up(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2)
    says_goodbye_with_a_check_in_flight(cluster, REVOKE, without=("goodafter",))
    assert verdicts.answers_contain_what_returned_before(cluster.history)


# ---- 40: its credential


def test_f40_a_watcher_whose_credential_is_revoked_is_ended_and_refused(cluster: Cluster) -> None:
    a = cluster["a"]
    subject = a.client.subject()
    OPERATOR.prepare(a.client, subject)
    with watching(cluster, "b", subject) as watcher:
        stand(cluster, watcher)
        session_id = watcher.status().session_id
        assert cluster.change(OPERATOR, subject, a).expired == 0
        eventually(lambda: watcher.status().session_id != session_id)
        assert watcher.check(subject) == "UNAUTHENTICATED"
        assert watcher.status().lease_left_ms == 0
    verdicts.hold(cluster.history, cluster.rows)
