"""The clock goes on, counts suspended time, and is refused where none does."""

import sys
import time

import pytest

from doorward.clock import Clock, SystemClock


def test_readings_never_go_backwards() -> None:
    clock: Clock = SystemClock()

    readings = [clock.now_ns() for _ in range(1_000)]

    assert readings == sorted(readings)
    assert readings[0] < readings[-1]


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no such clock on this platform, see the tests below")
def test_it_is_the_clock_that_counts_suspended_time() -> None:
    clock = SystemClock()

    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    reading = clock.now_ns()
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    assert before <= reading <= after


def test_on_macos_it_is_the_raw_clock_which_goes_on_during_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(time, "CLOCK_MONOTONIC_RAW", -77, raising=False)
    monkeypatch.setattr(time, "clock_gettime_ns", {-77: 123}.__getitem__)
    monkeypatch.setattr(sys, "platform", "darwin")

    assert SystemClock().now_ns() == 123


def test_on_windows_it_is_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 456)
    monkeypatch.setattr(sys, "platform", "win32")

    assert SystemClock().now_ns() == 456


def test_where_no_such_clock_is_known_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(sys, "platform", "plan9")

    with pytest.raises(RuntimeError, match="no clock that counts suspended time is known on plan9"):
        SystemClock()
