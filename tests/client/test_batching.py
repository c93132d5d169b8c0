"""Which waiting checks go into the next batch: examples, and every order of events against a naive list."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from doorward._batching import DEFAULT_BOUNDS, STRANGERS, Batch, Bounds, Familiar, Line, Waiting

BOUNDS = Bounds(most_items=3, most_bytes=20, most_in_flight=2, most_waiting=5)


def a_line(**changed: int) -> Line[str]:
    return Line(replace(BOUNDS, **changed))


def a_check(name: str = "x", *, size: int = 1, until: float = 10.0) -> Waiting[str]:
    return Waiting(b"." * size, until, name)


def names_of(batch: Batch[str] | None) -> list[str]:
    return [] if batch is None else [member.receiver for member in batch.members]


def joined(line: Line[str], *names: str) -> list[Waiting[str]]:
    checks = [a_check(name) for name in names]
    for check in checks:
        line.join(check)
    return checks


def test_a_check_that_meets_nobody_may_go_alone() -> None:
    line = a_line()
    answers = [line.may_go_alone]
    line.go_alone()
    answers.append(line.may_go_alone)
    line.came_back()
    answers.append(line.may_go_alone)
    assert answers == [True, False, True]


def test_a_check_joins_those_that_wait_and_no_batch_that_was_sent() -> None:
    line = a_line(most_in_flight=1)
    joined(line, "first")
    sent = line.next_batch()
    joined(line, "second")
    assert names_of(sent) == ["first"]
    assert line.next_batch() is None
    assert sent is not None
    line.ended(sent)
    assert names_of(line.next_batch()) == ["second"]


def test_while_there_is_room_a_check_does_not_wait() -> None:
    line = a_line()
    line.go_alone()
    joined(line, "second")
    assert names_of(line.next_batch()) == ["second"]


def test_what_went_alone_takes_room_too() -> None:
    line = a_line(most_in_flight=1)
    line.go_alone()
    joined(line, "second")
    assert line.next_batch() is None
    line.came_back()
    assert names_of(line.next_batch()) == ["second"]


def test_after_a_crowd_the_next_one_does_not_go_alone_and_after_that_it_may() -> None:
    line = a_line()
    joined(line, "a", "b")
    crowd = line.next_batch()
    assert crowd is not None
    line.ended(crowd)
    assert not line.may_go_alone
    joined(line, "c")
    single = line.next_batch()
    assert single is not None
    line.ended(single)
    assert line.may_go_alone


def test_first_come_first_sent_up_to_the_bound() -> None:
    line = a_line()
    joined(line, "a", "b", "c", "d")
    assert names_of(line.next_batch()) == ["a", "b", "c"]
    assert names_of(line.next_batch()) == ["d"]


def test_a_batch_ends_before_it_has_too_many_bytes() -> None:
    line = a_line()
    for name, size in (("a", 12), ("b", 8), ("c", 1)):
        line.join(a_check(name, size=size))
    assert names_of(line.next_batch()) == ["a", "b"]


def test_what_is_too_large_by_itself_goes_by_itself() -> None:
    line = a_line(most_in_flight=9)
    for name, size in (("a", 1), ("large", 21), ("b", 1)):
        line.join(a_check(name, size=size))
    assert [names_of(line.next_batch()) for _ in range(3)] == [["a"], ["large"], ["b"]]


def test_who_has_left_is_not_sent() -> None:
    line = a_line()
    first, *_ = joined(line, "a", "b")
    assert line.leave(first) is None
    assert names_of(line.next_batch()) == ["b"]


def test_nobody_left_means_nothing_to_send() -> None:
    line = a_line()
    (only,) = joined(line, "a")
    line.leave(only)
    assert line.next_batch() is None
    assert line.is_empty


def test_a_batch_is_given_up_once_nobody_waits_for_it() -> None:
    line = a_line()
    first, second = joined(line, "a", "b")
    batch = line.next_batch()
    assert line.leave(first) is None
    assert line.leave(first) is None
    assert line.leave(second) is batch


def test_a_batch_that_has_ended_is_not_given_up() -> None:
    line = a_line()
    (only,) = joined(line, "a")
    batch = line.next_batch()
    assert batch is not None
    line.ended(batch)
    assert line.leave(only) is None


def test_a_batch_waits_as_long_as_the_most_patient_of_its_callers() -> None:
    line = a_line()
    for until in (3.0, 9.0, 5.0):
        line.join(a_check(until=until))
    batch = line.next_batch()
    assert batch is not None
    assert batch.until == 9.0


def test_one_more_than_may_wait_is_refused_and_one_that_left_makes_room() -> None:
    line = a_line()
    checks = joined(line, *"abcde")
    assert line.is_full
    line.leave(checks[2])
    assert not line.is_full


def test_those_that_left_do_not_pile_up_while_nothing_can_be_sent() -> None:
    line = a_line(most_in_flight=0)
    for _ in range(10_000):
        (check,) = joined(line, "a")
        line.leave(check)
    assert len(line._queue) < 100


def test_everybody_who_waits_is_outstanding_sent_or_not() -> None:
    line = a_line(most_in_flight=1)
    checks = joined(line, *"abcd")
    line.next_batch()
    line.leave(checks[1])
    assert [one.receiver for one in line.outstanding()] == ["a", "c", "d"]


def test_no_batch_can_be_refused_for_its_size() -> None:
    for bounds in (DEFAULT_BOUNDS, STRANGERS):
        assert bounds.most_items <= 200  # what a server decides in one go; the contract allows 1,000
        assert bounds.most_bytes <= 1 << 20  # beside the metadata, far from the 4 MiB of a message


def test_a_familiar_secret_is_one_that_was_added_lately() -> None:
    familiar = Familiar(most=2)
    for secret in ("one", "two", "three"):
        familiar.add(secret)
    assert "three" in familiar
    assert "one" in familiar
    familiar.add("four")
    familiar.add("five")
    assert "one" not in familiar
    assert "five" in familiar


def test_familiar_keeps_no_secret() -> None:
    familiar = Familiar()
    familiar.add("a secret")
    assert all(isinstance(kept, int) for kept in familiar._recent | familiar._older)


@given(st.lists(st.text(max_size=3)), st.integers(1, 5))
def test_familiar_is_bounded(secrets: list[str], most: int) -> None:
    familiar = Familiar(most)
    for secret in secrets:
        familiar.add(secret)
        assert secret in familiar
        assert len(familiar._recent) <= most
        assert len(familiar._older) <= most


# ---- every order of events, beside a list that does the same without any cleverness


@dataclass
class Naive:
    """Checks in the order in which they came; each with whether it was sent, and whether its caller has left."""

    waiting: list[Waiting[int]] = field(default_factory=list)
    under_way: list[list[Waiting[int]]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    lone: int = 0

    def live(self) -> list[Waiting[int]]:
        return [check for check in self.waiting if check.receiver not in self.gone]

    def take(self) -> list[Waiting[int]]:
        """What must go into a batch now."""
        if self.lone + len(self.under_way) >= BOUNDS.most_in_flight:
            return []
        taken: list[Waiting[int]] = []
        for check in self.live():
            size = sum(len(one.part) for one in [*taken, check])
            if len(taken) == BOUNDS.most_items or (taken and size > BOUNDS.most_bytes):
                break
            taken.append(check)
        return taken


class LineMachine(RuleBasedStateMachine):
    """Joins, sends, ends, leaves and lone calls in any order."""

    checks: Bundle[Waiting[int]] = Bundle("checks")
    batches: Bundle[Batch[int]] = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.line: Line[int] = Line(BOUNDS)
        self.naive = Naive()
        self.number = 0
        self.ever_sent: set[int] = set()

    @rule(target=checks, size=st.integers(0, 25), until=st.floats(0, 100))
    def join(self, size: int, until: float) -> MultipleResults[Waiting[int]] | Waiting[int]:
        if self.line.is_full:
            assert len(self.naive.live()) >= BOUNDS.most_waiting
            return multiple()
        self.number += 1
        check = Waiting(b"." * size, until, self.number)
        self.line.join(check)
        self.naive.waiting.append(check)
        return check

    @rule(target=batches)
    def send(self) -> MultipleResults[Batch[int]] | Batch[int]:
        expected = self.naive.take()
        batch = self.line.next_batch()
        if batch is None:
            assert expected == []
            return multiple()
        assert batch.members == expected
        assert batch.until == max(one.until for one in expected)
        for one in expected:
            assert one.receiver not in self.ever_sent, "sent twice"
            self.ever_sent.add(one.receiver)
            self.naive.waiting.remove(one)
        self.naive.under_way.append(expected)
        return batch

    @rule(batch=consumes(batches))
    def end(self, batch: Batch[int]) -> None:
        self.line.ended(batch)
        self.naive.under_way.remove(batch.members)

    @rule(check=checks)
    def leave(self, check: Waiting[int]) -> None:
        mine = [batch for batch in self.naive.under_way if check in batch]
        was_gone = check.receiver in self.naive.gone
        self.naive.gone.add(check.receiver)
        nobody = not was_gone and bool(mine) and all(one.receiver in self.naive.gone for one in mine[0])
        abandoned = self.line.leave(check)
        assert (abandoned is not None) is nobody
        if abandoned is not None:
            assert abandoned.members == mine[0]

    @rule()
    def go_alone(self) -> None:
        if self.line.may_go_alone:
            assert not self.naive.live()
            assert not self.naive.under_way
            assert not self.naive.lone
            self.line.go_alone()
            self.naive.lone += 1

    @precondition(lambda self: self.naive.lone)
    @rule()
    def come_back(self) -> None:
        self.line.came_back()
        self.naive.lone -= 1

    @invariant()
    def both_say_who_is_outstanding(self) -> None:
        naive = [one for batch in self.naive.under_way for one in batch] + self.naive.waiting
        expected = [one.receiver for one in naive if one.receiver not in self.naive.gone]
        assert sorted(one.receiver for one in self.line.outstanding()) == sorted(expected)

    @invariant()
    def both_say_whether_anything_is_there(self) -> None:
        assert self.line.is_empty is not bool(self.naive.live() or self.naive.under_way or self.naive.lone)

    @invariant()
    def nothing_is_beyond_the_bounds(self) -> None:
        assert self.naive.lone + len(self.naive.under_way) <= BOUNDS.most_in_flight
        assert len(self.naive.live()) <= BOUNDS.most_waiting


TestLine = LineMachine.TestCase
