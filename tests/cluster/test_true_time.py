"""Time that the tests hold: it stands, passes by steps, and is the same for all who read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cluster.true_time import SkewedClock, TrueTime

if TYPE_CHECKING:
    from pathlib import Path

SECOND_NS = 1_000_000_000


def test_time_that_stands_passes_by_steps_for_all(tmp_path: Path) -> None:
    held, read = TrueTime(tmp_path / "time", create=True), TrueTime(tmp_path / "time")
    held.stand()
    before = held.now_ns()
    assert read.now_ns() == before
    held.advance(1000)
    assert (held.now_ns(), read.now_ns()) == (before + SECOND_NS, before + SECOND_NS)


def test_time_that_runs_goes_on_from_where_it_stood(tmp_path: Path) -> None:
    time = TrueTime(tmp_path / "time", create=True)
    time.stand()
    before = time.now_ns()
    time.run()
    after = time.now_ns()
    assert before <= after <= time.now_ns()


def test_a_skewed_clock_runs_at_its_rate_and_never_jumps(tmp_path: Path) -> None:
    time = TrueTime(tmp_path / "time", create=True)
    time.stand()
    clock = SkewedClock(time, 0.9)
    begun = clock.now_ns()
    time.advance(1000)
    assert clock.now_ns() == begun + SECOND_NS * 9 // 10
    clock.skew(1.1)
    assert clock.now_ns() == begun + SECOND_NS * 9 // 10
    time.advance(1000)
    assert clock.now_ns() == begun + 2 * SECOND_NS


def test_a_span_of_a_clock_is_longer_where_it_is_slow_and_endless_while_time_stands(tmp_path: Path) -> None:
    time = TrueTime(tmp_path / "time", create=True)
    clock = SkewedClock(time, 0.5)
    assert clock.machine_s(SECOND_NS) == 2.0
    time.run(4.0)
    assert clock.machine_s(SECOND_NS) == 0.5
    time.stand()
    assert clock.machine_s(SECOND_NS) is None
