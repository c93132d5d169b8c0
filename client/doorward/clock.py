"""The clock that leases are measured with: one that goes on while the machine is suspended. The only clock that is read.

A lease that did not count a suspension would outlive what others wait for (design section 7, assumption 1). No reading
is ever compared with another machine's. Tests replace it by anything with `now_ns`.
"""

import sys
import time
from typing import Protocol


class Clock(Protocol):
    """Something that tells the time since an arbitrary start, suspended time included."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never less than at an earlier call in this process."""
        ...


class SystemClock:
    """This machine's clock that counts suspended time.

    Raises:
        RuntimeError: on construction, on a platform where no such clock is known.
    """

    __slots__ = ("_clock_id",)

    def __init__(self) -> None:
        self._clock_id = _suspend_aware_clock_id()

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start, suspended time included."""
        if self._clock_id is None:
            return time.monotonic_ns()
        return time.clock_gettime_ns(self._clock_id)


def _suspend_aware_clock_id() -> int | None:
    """The id for `clock_gettime`; None stands for `monotonic_ns`."""
    boot_time: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    if boot_time is not None:
        return boot_time
    if sys.platform == "darwin":  # there it goes on during sleep, and CLOCK_UPTIME_RAW is the one that does not
        return time.CLOCK_MONOTONIC_RAW
    if sys.platform == "win32":  # both clocks that CPython has used for it count sleep and hibernation
        return None
    raise RuntimeError(f"no clock that counts suspended time is known on {sys.platform}")
