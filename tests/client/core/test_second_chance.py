"""The bounded map keeps what is used, and all of it is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward.core.second_chance import SecondChanceMap

KEYS = st.sampled_from("abcdefgh")


def filled(capacity: int) -> SecondChanceMap[int, str]:
    entries: SecondChanceMap[int, str] = SecondChanceMap(capacity)
    for key in range(capacity):
        assert entries.put(key, str(key)) is None
    return entries


def test_the_oldest_that_was_not_touched_goes_first() -> None:
    entries = filled(3)
    entries.find(0)

    assert entries.put(3, "3") == (1, "1")
    assert [entries.peek(key) for key in range(4)] == ["0", None, "2", "3"]


def test_a_touch_is_one_more_chance_and_not_more() -> None:
    entries = filled(2)
    entries.find(0)

    assert entries.put(2, "2") == (1, "1")
    assert entries.put(3, "3") == (0, "0")


def test_peek_is_no_touch() -> None:
    entries = filled(2)
    entries.peek(0)

    assert entries.put(2, "2") == (0, "0")


def test_a_put_under_a_key_that_is_there_evicts_nothing() -> None:
    entries = filled(2)

    assert entries.put(1, "one") is None
    assert (entries.peek(0), entries.peek(1)) == ("0", "one")


def test_with_everything_touched_one_goes_all_the_same_and_few_are_passed_over() -> None:
    entries = filled(1_000)
    for key in range(1_000):
        entries.find(key)

    assert entries.put(1_000, "new") == (64, "64")
    assert len(entries._touched) == 1_000 - 65


def test_flags_of_what_is_gone_do_not_pile_up() -> None:
    entries = filled(10)
    entries._touched.update(range(1_000, 2_000))  # as by a thread that reads what is evicted meanwhile

    entries.put(10, "10")

    assert len(entries._touched) <= 10


def test_pop_takes_out_value_and_flag() -> None:
    entries = filled(2)
    entries.find(0)

    assert entries.pop(0) == "0"
    assert entries.pop(0) is None
    entries.put(0, "again")
    assert entries.put(2, "2") == (1, "1")
    assert entries.put(3, "3") == (0, "again")


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        SecondChanceMap(0)


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from(["put", "find", "pop", "clear"]), KEYS), max_size=60))
def test_it_is_a_map_that_forgets_and_tells_what(capacity: int, steps: list[tuple[str, str]]) -> None:
    entries: SecondChanceMap[str, int] = SecondChanceMap(capacity)
    naive: dict[str, int] = {}
    for number, (step, key) in enumerate(steps):
        if step == "put":
            evicted = entries.put(key, number)
            naive[key] = number
            if evicted is not None:
                assert naive.pop(evicted[0]) == evicted[1]
        elif step == "find":
            assert entries.find(key) == naive.get(key)
        elif step == "pop":
            assert entries.pop(key) == naive.pop(key, None)
        elif number % 5 == 0:  # an emptied map tells little
            entries.clear()
            naive.clear()
        assert len(entries) == len(naive) <= capacity == entries.capacity
        assert {name: entries.peek(name) for name in naive} == naive
