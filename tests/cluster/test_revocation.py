"""The promise itself: when RevokeToken has returned, no replica says yes any more; checks go on all the time.

Begin here: then `test_leases.py`, `test_loads.py` and the others, one fault after the other, on a clock that stands.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.clients import REVOKE
from tests.cluster.history import OK
from tests.cluster.kinds import ALWAYS
from tests.cluster.traffic import traffic
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.cluster.replicas import Replica
    from tests.support.cluster import StartCluster

# Short, for here the holds really pass.
SHORT_MS: Final = 1000


def change_under_traffic(cluster: Cluster, kind: Kind) -> None:
    """A change at each replica in turn, with checks at all of them before, during and after it."""
    subjects = [cluster["a"].client.subject() for _ in cluster.replicas]
    with traffic(cluster, subjects):
        for subject, replica in zip(subjects, cluster.replicas.values(), strict=True):
            _await_answers(cluster, subject.initially, "ALLOWED")
            kind.at(replica.client, subject).result()
            _await_answers(cluster, kind.makes)


def _await_answers(cluster: Cluster, *answers: str) -> None:
    """Returns when every replica has given one of these since now, or cannot decide."""
    before = len(cluster.history.checks)
    awaited = {*answers, "UNAVAILABLE", "DEADLINE_EXCEEDED"}

    def all_have() -> bool:
        told = {check.replica for check in cluster.history.checks[before:] if check.answered in awaited}
        return told >= set(cluster.replicas)

    eventually(all_have)


def test_when_a_change_has_returned_no_replica_says_yes(cluster: Cluster, kind: Kind) -> None:
    change_under_traffic(cluster, kind)
    changes = [mutation for mutation in cluster.history.mutations if mutation.rpc == kind.rpc and mutation.subject]
    assert [(mutation.answered, mutation.confirmed, mutation.expired) for mutation in changes] == [(OK, 3, 0)] * 3
    assert {check.answered for check in cluster.history.checks} >= {"ALLOWED", kind.makes}
    verdicts.hold(cluster.history, cluster.rows)


def test_no_replica_says_yes_goes_red_without_the_barrier(start_cluster: StartCluster) -> None:
    cluster = start_cluster(2, without=("barrier",))
    subject = cluster["a"].client.subject()
    eventually(lambda: cluster["b"].client.check(subject) == "ALLOWED")
    # What is a matter of milliseconds otherwise, made visible: b learns of it late.
    cluster["b"].arm(Failpoint.APPLY_BEFORE)
    REVOKE.at(cluster["a"].client, subject).result()
    cluster["b"].client.check(subject)
    assert verdicts.answers_contain_what_returned_before(cluster.history)
    assert verdicts.unavailable_rather_than_wrong(cluster.history)


def test_when_issue_token_has_returned_every_replica_knows_the_token(cluster: Cluster) -> None:
    for replica in cluster.replicas.values():
        subject = replica.client.subject()
        assert {other.client.check(subject) for other in cluster.replicas.values()} == {"ALLOWED"}
    verdicts.hold(cluster.history, cluster.rows)


def _broken_line(replica: Replica) -> None:
    replica.line.cut()


def _silent_line(replica: Replica) -> None:
    replica.line.stall()


def _deaf_line(replica: Replica) -> None:
    replica.line.stall(asks=False)


def _mute_line(replica: Replica) -> None:
    replica.line.stall(answers=False)


def _frozen(replica: Replica) -> None:
    replica.freeze()


def _killed(replica: Replica) -> None:
    replica.kill()


def _no_notify(replica: Replica) -> None:
    replica.arm(Failpoint.NOTIFY_DROP, "nothing")


FAULTS: Final = (_broken_line, _silent_line, _deaf_line, _mute_line, _frozen, _killed, _no_notify)


@pytest.mark.parametrize("seed", [1])
def test_whatever_happens_to_the_others_a_change_that_returned_holds(start_cluster: StartCluster, seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311 - a sequence of faults that can be had again
    cluster = start_cluster(3, hold_ms=SHORT_MS)
    a = cluster["a"]
    # As far apart as clocks may be, to the disadvantage of the promise: who waits is fast, who may say yes is slow.
    a.skew(1.1)
    for place in "bc":
        cluster[place].skew(0.9)
    faults = choice.sample(FAULTS, len(FAULTS))
    subjects = [a.client.subject()]
    with traffic(cluster, subjects):
        for fault in faults:
            # The newest, and the one before, which must stay what it became.
            subject, kind, place = subjects[-1], choice.choice(ALWAYS), choice.choice("bc")
            del subjects[:-2]
            _await_answers(cluster, "ALLOWED")
            fault(cluster[place])
            record = kind.at(a.client, subject).result()
            assert record.answered == OK, (fault, record)
            _await_answers(cluster, kind.makes)
            _heal(cluster, place)
            subjects.append(a.client.subject())
    verdicts.hold(cluster.history, cluster.rows)


def _heal(cluster: Cluster, place: str) -> None:
    replica = cluster[place]
    if not replica.is_alive:
        cluster.start(place)
        cluster[place].skew(0.9)
        return
    if replica.is_frozen:
        replica.thaw()
    replica.line.heal()
    replica.release_all()
    cluster.usable_id(replica)
