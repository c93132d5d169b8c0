"""The verdicts themselves, on histories made by hand: each sees what breaks its promise, and nothing else."""

from __future__ import annotations

import pytest

from tests.cluster import verdicts
from tests.cluster.history import OK, Check, History, Mutation, Subject

HOLD_MS = 4000
DENIED = "TOKEN_REVOKED"


def a_subject() -> Subject:
    return Subject("acc", "acc-p", "token", "", "develop:write", "ALLOWED")


def a_history() -> History:
    history = History(lambda: 100_000_000_000)
    history.holds_ms.add(HOLD_MS)
    return history


def a_revocation(history: History, subject: Subject, begun: int, ended: int | None, **fields: object) -> Mutation:
    mutation = Mutation("a", "RevokeToken", subject, DENIED, begun, begun, ended_ns=ended, true_ended_ns=ended)
    if ended is not None:
        mutation.answered, mutation.number = OK, 7
    for name, value in fields.items():
        setattr(mutation, name, value)
    history.mutations.append(mutation)
    return mutation


def a_check(history: History, subject: Subject, begun: int, ended: int, answered: str, number: int | None = 7) -> Check:
    check = Check("b", subject, begun, ended_ns=ended, answered=answered)
    check.is_decided = answered.isupper() and answered not in {"UNAVAILABLE", "INTERNAL"}
    check.number = number if check.is_decided else None
    history.checks.append(check)
    return check


@pytest.mark.parametrize(
    ("begun", "ended", "answered", "is_stale"),
    [
        (5, 8, "ALLOWED", False),  # before
        (15, 18, "ALLOWED", False),  # beside it
        (15, 40, "ALLOWED", False),  # begun beside it, answered after the return
        (15, 18, DENIED, False),
        (25, 28, DENIED, False),
        (25, 28, "UNAVAILABLE", False),
        (25, 28, "ALLOWED", True),
    ],
)
def test_only_a_check_that_began_after_the_return_is_stale(
    begun: int, ended: int, answered: str, is_stale: bool
) -> None:
    history, subject = a_history(), a_subject()
    a_revocation(history, subject, 10, 20)
    a_check(history, subject, begun, ended, answered)
    assert bool(verdicts.answers_contain_what_returned_before(history)) is is_stale
    assert bool(verdicts.unavailable_rather_than_wrong(history)) is is_stale


def test_an_answer_from_an_older_revision_is_stale_whatever_it_says() -> None:
    history, subject = a_history(), a_subject()
    a_revocation(history, subject, 10, 20)
    a_check(history, subject, 25, 28, DENIED, number=6)
    assert verdicts.answers_contain_what_returned_before(history)


def test_a_change_that_failed_may_have_been_made_or_not() -> None:
    history, subject = a_history(), a_subject()
    a_revocation(history, subject, 10, 20, answered="UNAVAILABLE", number=None)
    a_check(history, subject, 25, 28, "ALLOWED", number=6)
    a_check(history, subject, 35, 38, DENIED)
    assert not verdicts.answers_contain_what_returned_before(history)
    assert not verdicts.unavailable_rather_than_wrong(history)


@pytest.mark.parametrize(("begun", "ended", "answered"), [(2, 5, DENIED), (2, 5, "TOKEN_EXPIRED"), (2, 5, "INTERNAL")])
def test_what_nothing_explains_is_wrong(begun: int, ended: int, answered: str) -> None:
    history, subject = a_history(), a_subject()
    a_revocation(history, subject, 10, 20)
    a_check(history, subject, begun, ended, answered)
    assert verdicts.unavailable_rather_than_wrong(history)


def test_a_token_that_was_issued_must_be_known() -> None:
    history, subject = a_history(), a_subject()
    subject.initially = "TOKEN_UNRECOGNIZED"
    a_revocation(history, subject, 10, 20, rpc="IssueToken", makes="ALLOWED")
    a_check(history, subject, 15, 18, "TOKEN_UNRECOGNIZED")
    assert not verdicts.what_was_issued_is_known_everywhere(history)
    a_check(history, subject, 25, 28, "TOKEN_UNRECOGNIZED")
    assert verdicts.what_was_issued_is_known_everywhere(history)


def test_a_wait_has_a_longest_and_a_shortest_time() -> None:
    history, subject = a_history(), a_subject()
    a_revocation(history, subject, 10, 20, elapsed_s=4.01, expired=1)
    a_revocation(history, subject, 10, 20, elapsed_s=0.01, expired=0)
    assert not verdicts.mutations_return_within_one_hold(history)
    assert not verdicts.silent_replicas_are_waited_for_in_full(history)
    a_revocation(history, subject, 10, 20, elapsed_s=9.0, expired=1)
    a_revocation(history, subject, 10, 20, elapsed_s=3.9, expired=1)
    assert len(verdicts.mutations_return_within_one_hold(history)) == 1
    assert len(verdicts.silent_replicas_are_waited_for_in_full(history)) == 1


def test_a_change_that_still_waits_is_late_after_a_hold() -> None:
    history, subject = a_history(), a_subject()
    waiting = a_revocation(history, subject, 10, None)
    assert not verdicts.mutations_return_within_one_hold(history)
    waiting.true_committed_ns = 97_000_000_000
    assert not verdicts.mutations_return_within_one_hold(history)
    waiting.true_committed_ns = 90_000_000_000
    assert verdicts.mutations_return_within_one_hold(history)


def test_who_died_is_waited_for_once() -> None:
    history, subject = a_history(), a_subject()
    first = a_revocation(history, subject, 10, 20, expired=1)
    second = a_revocation(history, subject, 30, 40, expired=0)
    assert not verdicts.silent_replicas_are_waited_for_once([first, second])
    assert verdicts.silent_replicas_are_waited_for_once([first, second, first])


def test_what_is_fully_consistent_contains_what_was_committed() -> None:
    history, subject = a_history(), a_subject()
    a_revocation(history, subject, 10, None, committed_ns=15)
    for begun, is_stale in ((12, False), (18, True)):
        a_check(history, subject, begun, 30, "ALLOWED").is_fully_consistent = True
        assert bool(verdicts.what_is_fully_consistent_contains_what_was_committed(history)) is is_stale
