"""When a worker's place is filled again, and when that is given up."""

from __future__ import annotations

import itertools

import pytest

from doorward_server.workers.deaths import MORE_DEATHS, WINDOW_NS, CrashLoop, Deaths

SECOND_NS = 1_000_000_000


def test_each_worker_may_die_once_without_a_pause() -> None:
    deaths = Deaths(3)
    assert [deaths.note(SECOND_NS) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_from_then_on_each_pause_is_twice_the_last() -> None:
    deaths = Deaths(2)
    pauses = [deaths.note(SECOND_NS) for _ in range(2 + MORE_DEATHS)][2:]
    assert pauses[0] > 0
    assert [later / sooner for sooner, later in itertools.pairwise(pauses)] == [2.0] * (MORE_DEATHS - 1)


def test_one_more_within_a_minute_is_a_crash_loop() -> None:
    deaths = Deaths(2)
    for _ in range(2 + MORE_DEATHS):
        deaths.note(SECOND_NS)
    with pytest.raises(CrashLoop, match="8 workers died within a minute"):
        deaths.note(SECOND_NS + WINDOW_NS - 1)


def test_what_was_a_minute_ago_is_forgotten() -> None:
    deaths = Deaths(2)
    for _ in range(2 + MORE_DEATHS):
        deaths.note(SECOND_NS)
    assert deaths.note(SECOND_NS + WINDOW_NS) == 0.0


def test_seldom_deaths_go_on_for_ever() -> None:
    deaths = Deaths(1)
    assert {deaths.note(number * 61 * SECOND_NS) for number in range(100)} == {0.0}
