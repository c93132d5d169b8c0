"""Watchers under whatever befalls them, their lines and their replicas: no yes after a change has returned, and it returns.

The faults of the list with numbers are in `test_watcher_faults.py`; here is the rest, and faults in turn under traffic.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest

from doorward_server.failpoints import Failpoint
from tests.cluster import verdicts
from tests.cluster.history import OK
from tests.cluster.kinds import KINDS
from tests.cluster.steps import Step
from tests.cluster.traffic import traffic
from tests.cluster.watched import SOON_S, Watched, WatchedCheck, stand, traffic_of, watching
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.clients import Kind
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Subject
    from tests.cluster.replicas import Replica
    from tests.support.cluster import StartCluster

pytestmark = pytest.mark.needs("held")

DIALECTS: Final = ("aio", "threads")
# Short, for here the holds really pass.
SHORT_MS: Final = 1000


# ---- what befalls it: the watcher, its replica, another replica, what is asked


def _nothing(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    """All is well."""


def _frozen(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.freeze()


def _frozen_in_a_check(step: Step) -> Callable[[Watched, Replica, Replica, Subject], None]:
    def frozen(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
        watcher.arm(step, "freeze")
        watcher.begin_check(subject)
        watcher.reached(step)
        watcher.await_frozen()

    return frozen


def _killed(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.kill()


def _cut(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.line.cut()


def _silent(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.line.stall()


def _deaf(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.line.stall(asks=False)


def _mute(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.line.stall(answers=False)


def _slow(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.arm(Step.WATCH_CLIENT_BEFORE_INSTALL)


def _moves(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    watcher.lead_to(c)
    watcher.warm(subject)


def _replica_frozen(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    b.freeze()


def _replica_killed(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    b.kill()


def _replica_killed_and_moves(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    b.kill()
    watcher.lead_to(c)
    watcher.warm(subject)


def _replica_cut_off(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    b.line.stall()


def _not_granted(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    b.arm(Failpoint.WATCH_BEFORE_GRANT)
    watcher.ask()


def _acks_lost(watcher: Watched, b: Replica, c: Replica, subject: Subject) -> None:
    b.arm(Failpoint.WATCH_DROP_ACKS, "nothing")


FAULTS: Final = {
    "nothing": _nothing,
    "frozen": _frozen,
    "frozen_after_capture": _frozen_in_a_check(Step.CHECK_AFTER_CAPTURE),
    "frozen_after_decide": _frozen_in_a_check(Step.CHECK_AFTER_DECIDE),
    "killed": _killed,
    "cut": _cut,
    "silent": _silent,
    "deaf": _deaf,
    "mute": _mute,
    "slow": _slow,
    "moves": _moves,
    "replica_frozen": _replica_frozen,
    "replica_killed": _replica_killed,
    "replica_killed_and_moves": _replica_killed_and_moves,
    "replica_cut_off": _replica_cut_off,
    "not_granted": _not_granted,
    "acks_lost": _acks_lost,
}


def _is_able(watcher: Watched) -> bool:
    return watcher.is_alive and not watcher.is_frozen


@pytest.mark.one_kind
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_befalls_a_watcher_a_change_that_returned_holds(cluster: Cluster, fault: str, kind: Kind) -> None:
    a, b, c = cluster["a"], cluster["b"], cluster["c"]
    first, second = a.client.subject(), a.client.subject()
    # The dialects take turns.
    dialect = DIALECTS[list(FAULTS).index(fault) % 2]
    with watching(cluster, "b", first, second, dialect=dialect) as watcher:
        stand(cluster, watcher)
        FAULTS[fault](watcher, b, c, first)
        begun = cluster.begin(kind, first, a)
        if _is_able(watcher):
            watcher.check(first, timeout_s=SOON_S)
        others = [replica for replica in (a, c) if replica in cluster.awake]
        if fault == "nothing":
            cluster.finish(begun, a)
        mutation = cluster.wait_out(begun, a, keeping=others)
        # Of one that is frozen it is answered when that wakes.
        after = watcher.begin_check(first, timeout_s=SOON_S) if watcher.is_alive else None
        if watcher.is_frozen:
            watcher.thaw()
        if after is not None:
            after.result()
        # Waited for once: whoever was silent is not counted any more, or its row is gone.
        again = cluster.finish(cluster.begin(kind, second, a), a)
        if watcher.is_alive:
            watcher.check(second, timeout_s=SOON_S)
    assert (mutation.answered, again.answered) == (OK, OK)
    assert again.elapsed_s * 1000 < cluster.hold_ms / 4, (mutation, again)
    assert any(isinstance(check, WatchedCheck) and check.is_here for check in cluster.history.checks)
    if fault == "nothing":
        assert mutation.elapsed_s * 1000 < cluster.hold_ms / 4
    verdicts.hold(cluster.history, cluster.rows)


# ---- faults in turn, under traffic, on clocks that differ


def _heal(cluster: Cluster, watcher: Watched) -> None:
    if watcher.is_frozen:
        watcher.thaw()
    watcher.line.heal()
    watcher.release_all()
    for place in "bc":
        replica = cluster[place]
        if not replica.is_alive:
            cluster.start(place)
            cluster[place].skew(0.9)
            continue
        if replica.is_frozen:
            replica.thaw()
        replica.line.heal()
        replica.release_all()
        cluster.usable_id(replica)
    watcher.line.lead_to(cluster["b"].await_ready())
    watcher.await_lease()


@pytest.mark.parametrize("seed", [1])
def test_under_traffic_and_faults_in_turn_watchers_say_no_stale_yes(start_cluster: StartCluster, seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311 - a sequence of faults that can be had again
    cluster = start_cluster(3, hold_ms=SHORT_MS)
    a = cluster["a"]
    a.skew(1.1)
    for place in "bc":
        cluster[place].skew(0.9)
    kinds = [kind for kind in KINDS if "held" not in kind.lacks and kind.rpc != "ApplyCatalog"]
    names = choice.sample([name for name in FAULTS if name not in {"killed", "frozen_after_capture"}], 7)
    subjects = [a.client.subject()]
    with (
        watching(cluster, "b", subjects[0], rate=0.9) as hurt,
        watching(cluster, "c", subjects[0], rate=0.9, dialect="threads") as well,
        traffic(cluster, subjects),
        traffic_of((hurt, well), subjects),
    ):
        for name in names:
            subject, kind = subjects[-1], choice.choice(kinds)
            del subjects[:-2]
            hurt.warm(subject)
            FAULTS[name](hurt, cluster["b"], cluster["c"], subject)
            record = kind.at(a.client, subject).result()
            assert record.answered == OK, (name, record)
            _heal(cluster, hurt)
            eventually(lambda subject=subject, kind=kind: hurt.check(subject) == kind.makes)  # type: ignore[misc]
            subjects.append(a.client.subject())
    checks = [check for check in cluster.history.checks if isinstance(check, WatchedCheck)]
    here = {(check.replica, check.answered) for check in checks if check.is_here}
    assert {(watcher.name, "ALLOWED") for watcher in (hurt, well)} <= here
    assert sum(check.is_here for check in checks) > len(checks) / 2
    verdicts.hold(cluster.history, cluster.rows)
