"""What was applied, and whether something read elsewhere belongs to it."""

import pytest

from doorward.core.history import TAIL_LENGTH, History, HistoryGap, Position
from doorward.core.revision import Revision


def nonce_of(number: int) -> bytes:
    return b"nonce%03d" % number


@pytest.fixture
def history() -> History:
    """Epoch 3, started at 10, applied up to 12, with a tail of 4."""
    history = History(tail_length=4)
    history.start(3, 10, nonce_of(10))
    history.append(11, nonce_of(11))
    history.append(12, nonce_of(12))
    return history


def test_before_the_first_start_nothing_is_applied() -> None:
    history = History()

    assert (history.generation, history.applied) == (0, None)
    assert not history.knows(0)
    with pytest.raises(HistoryGap):
        _ = history.revision
    with pytest.raises(HistoryGap):
        history.append(1, b"n")


def test_append_moves_the_applied_position(history: History) -> None:
    assert history.applied == Position(12, nonce_of(12))
    assert history.revision == Revision(3, 12)
    assert history.generation == 1


def test_applied_is_another_object_after_each_change(history: History) -> None:
    before = history.applied

    history.append(13, nonce_of(13))

    assert history.applied is not before


@pytest.mark.parametrize("number", [0, 11, 12, 14, 100])
def test_a_change_that_does_not_follow_is_a_gap_and_moves_nothing(history: History, number: int) -> None:
    with pytest.raises(HistoryGap):
        history.append(number, nonce_of(number))

    assert history.revision == Revision(3, 12)
    assert not history.knows(14)


def test_start_begins_a_generation_with_one_entry(history: History) -> None:
    history.start(4, 11, b"another")

    assert (history.generation, history.epoch, history.applied) == (2, 4, Position(11, b"another"))
    assert [number for number in range(20) if history.knows(number)] == [11]


def test_holds_only_the_very_nonce_of_a_remembered_number(history: History) -> None:
    assert history.holds(11, nonce_of(11))
    assert not history.holds(11, nonce_of(12))
    assert not history.holds(13, nonce_of(13))
    assert not history.holds(9, nonce_of(9))


def test_the_tail_keeps_the_newest_and_is_bounded(history: History) -> None:
    for number in range(13, 30):
        history.append(number, nonce_of(number))

    assert [number for number in range(40) if history.knows(number)] == [26, 27, 28, 29]


def test_the_default_tail_holds_ten_thousand() -> None:
    history = History()
    history.start(1, 0, b"n")
    for number in range(1, TAIL_LENGTH + 1):
        history.append(number, b"n")

    assert (history.knows(0), history.knows(1), TAIL_LENGTH) == (False, True, 10_000)


@pytest.mark.parametrize(
    ("epoch", "number", "nonce", "not_below", "contradicted"),
    [
        (3, 12, nonce_of(12), 12, False),
        (3, 11, nonce_of(11), 10, False),
        (3, 11, nonce_of(11), 12, True),  # lower than what was applied when the reading began
        (3, 12, b"another", 10, True),
        (3, 13, b"not applied yet", 12, False),
        (4, 12, nonce_of(12), 12, True),
        (2, 13, nonce_of(13), 12, True),
        (3, 9, b"forgotten", 5, False),
    ],
)
def test_contradicts_names_what_cannot_be_of_this_history(
    history: History, epoch: int, number: int, nonce: bytes, not_below: int, contradicted: bool
) -> None:
    assert history.contradicts(epoch, number, nonce, not_below=not_below) is contradicted


def test_a_tail_has_room_for_an_entry() -> None:
    with pytest.raises(ValueError, match="tail_length"):
        History(tail_length=0)
