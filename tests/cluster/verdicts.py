"""One function for each promise of design section 7: what in a history breaks it, as sentences; nothing if it was kept.

`hold` is what every test ends with. That each can fail is shown by a twin of a test, on a cluster that was started with
one rule taken away (`guards.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.cluster.history import OK, Check, History, Mutation, Subject
from tests.cluster.kept import NOTHING, WHOLE, kept

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.cluster.lines import Rows

__all__ = [
    "all_or_nothing",
    "answers_contain_what_returned_before",
    "hold",
    "mutations_return_within_one_hold",
    "nothing_acknowledged_is_lost",
    "silent_replicas_are_waited_for_in_full",
    "silent_replicas_are_waited_for_once",
    "unavailable_rather_than_wrong",
    "what_is_fully_consistent_contains_what_was_committed",
    "what_was_issued_is_known_everywhere",
]

# How a check may fail: the service cannot decide, or the caller's own deadline or leaving came first.
_UNDECIDED: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})
_UNRECOGNIZED: Final = "TOKEN_UNRECOGNIZED"
# What lies between the acknowledgement, the end of the wait and the answer: round trips and polls, on a busy machine.
_ROUND_TRIPS_S: Final = 1.0


def hold(history: History, rows: Rows) -> None:
    """Every promise that can be read from any history was kept."""
    broken = [
        *answers_contain_what_returned_before(history),
        *what_was_issued_is_known_everywhere(history),
        *unavailable_rather_than_wrong(history),
        *mutations_return_within_one_hold(history),
        *silent_replicas_are_waited_for_in_full(history),
        *what_is_fully_consistent_contains_what_was_committed(history),
        *nothing_acknowledged_is_lost(history, rows),
        *all_or_nothing(history, rows),
    ]
    assert not broken, "\n".join(broken)


def answers_contain_what_returned_before(history: History) -> list[str]:
    """A check that begins after a mutation has returned is answered from a state that contains it, or not at all."""
    broken = []
    for check in _decided(history):
        returned = [mutation for mutation in history.mutations if _returned_before(mutation, check)]
        newest = max((mutation.number or 0 for mutation in returned), default=0)
        if check.number is not None and check.number < newest:
            broken.append(f"{_told(check)}: revision {newest} had returned before it began")
        floor, later = _states(history, check)
        older = {mutation.makes for mutation in _of(history, check.subject)} | {check.subject.initially}
        if check.answered not in {floor, *later} and check.answered in older:
            broken.append(f"{_told(check)}: {floor} since before it began")
    return broken


def what_was_issued_is_known_everywhere(history: History) -> list[str]:
    """Once IssueToken has returned, every replica knows the token."""
    issued = [
        mutation
        for mutation in history.mutations
        if mutation.rpc == "IssueToken" and mutation.returned and not _may_be_unrecognized(history, mutation.subject)
    ]
    return [
        f"{_told(check)}: it had been issued before the check began"
        for check in _decided(history)
        if check.answered == _UNRECOGNIZED
        and any(mutation.subject is check.subject and _returned_before(mutation, check) for mutation in issued)
    ]


def unavailable_rather_than_wrong(history: History) -> list[str]:
    """Whatever is missing, slow or broken: the answer is one that the token's history explains, or UNAVAILABLE."""
    broken = [
        f"{_told(check)}: not a way in which a check may fail"
        for check in history.checks
        if check.ended_ns is not None and not check.is_decided and check.answered not in _UNDECIDED
    ]
    for check in _decided(history):
        floor, later = _states(history, check)
        if check.answered not in {floor, *later}:
            broken.append(f"{_told(check)}: {sorted({floor, *later})} would be right")
    return broken


def mutations_return_within_one_hold(history: History) -> list[str]:
    """While the database answers, a mutation returns within one hold of its acknowledged commit."""
    longest_s = max(history.holds_ms) / 1000 + _ROUND_TRIPS_S
    broken = []
    for mutation in history.mutations:
        if mutation.returned and mutation.elapsed_s > longest_s:
            broken.append(f"{_told(mutation)} waited {mutation.elapsed_s} s")
        elif not mutation.answered and mutation.true_committed_ns is not None:
            waiting_s = (history.true_now_ns() - mutation.true_committed_ns) / 1e9
            if waiting_s > longest_s:
                broken.append(f"{_told(mutation)} still waits, {waiting_s} s after its commit")
    return broken


def silent_replicas_are_waited_for_in_full(history: History) -> list[str]:
    """A replica that does not confirm has lost its lease on any clock: no mutation returns before its hold has passed."""
    shortest_s = min(history.holds_ms) / 1000
    return [
        f"{_told(mutation)} gave up on {mutation.expired} replicas after {mutation.elapsed_s} s"
        for mutation in history.mutations
        if mutation.returned and mutation.expired and mutation.elapsed_s < shortest_s
    ]


def silent_replicas_are_waited_for_once(mutations: Iterable[Mutation]) -> list[str]:
    """Of mutations made one after the other, only the first waits for a replica that died."""
    waited = [mutation for mutation in mutations if mutation.expired]
    return [f"{_told(mutation)} waited again" for mutation in waited[1:]]


def what_is_fully_consistent_contains_what_was_committed(history: History) -> list[str]:
    """A fully consistent check contains whatever was committed before it began, returned or not."""
    broken = []
    for check in _decided(history):
        if not check.is_fully_consistent:
            continue
        before = [
            mutation
            for mutation in _of(history, check.subject)
            if mutation.committed_ns is not None and mutation.committed_ns < check.begun_ns
        ]
        if before and check.answered not in {
            before[-1].makes,
            *(mutation.makes for mutation in _of(history, check.subject) if mutation.begun_ns > before[-1].begun_ns),
        }:
            broken.append(f"{_told(check)}: {before[-1].makes} was committed before it began")
    return broken


def nothing_acknowledged_is_lost(history: History, rows: Rows) -> list[str]:
    """What a mutation said to have done stands in the database, with its place in the log and in the audit."""
    return [
        f"{_told(mutation)} returned, and the database shows {kept(mutation, rows)}"
        for mutation in history.mutations
        if mutation.returned and mutation.subject is not None and kept(mutation, rows) != WHOLE
    ]


def all_or_nothing(history: History, rows: Rows) -> list[str]:
    """A mutation that failed, for whatever reason, is there as a whole or not at all."""
    return [
        f"{_told(mutation)} failed and left {kept(mutation, rows)}"
        for mutation in history.mutations
        if mutation.answered != OK and mutation.subject is not None and kept(mutation, rows) not in {WHOLE, NOTHING}
    ]


# ---- the parts


def _decided(history: History) -> list[Check]:
    return [check for check in history.checks if check.is_decided]


def _may_be_unrecognized(history: History, subject: Subject | None) -> bool:
    """Whether some change made it so: its secret was rotated out."""
    return any(mutation.subject is subject and mutation.makes == _UNRECOGNIZED for mutation in history.mutations)


def _of(history: History, subject: Subject) -> list[Mutation]:
    return [mutation for mutation in history.mutations if mutation.subject is subject]


def _returned_before(mutation: Mutation, check: Check) -> bool:
    return mutation.returned and mutation.ended_ns is not None and mutation.ended_ns < check.begun_ns


def _states(history: History, check: Check) -> tuple[str, set[str]]:
    """What must be answered at least, by what had returned; and what may be, by what was under way or came later."""
    mutations = _of(history, check.subject)
    returned = [mutation for mutation in mutations if _returned_before(mutation, check)]
    newest = max(returned, key=lambda mutation: mutation.number or 0, default=None)
    floor = check.subject.initially if newest is None else newest.makes
    least = 0 if newest is None else newest.number or 0
    later = {
        mutation.makes
        for mutation in mutations
        if not _returned_before(mutation, check)
        and (check.ended_ns is None or mutation.begun_ns < check.ended_ns)
        and (mutation.number is None or mutation.number > least)
    }
    return floor, later


def _told(record: Check | Mutation) -> str:
    if isinstance(record, Check):
        return f"check of {record.subject.token_id} at {record.replica} answered {record.answered} ({record.number})"
    return f"{record.rpc} at {record.replica} ({record.answered or 'under way'} {record.why} {record.number})"
