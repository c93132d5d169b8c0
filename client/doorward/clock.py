"""The clock that leases are measured with: one that goes on while the machine is suspended. The only clock that is read.

A lease that did not count a suspension would outlive what others wait for (design section 7, assumption 1). No reading
is ever compared with another machine's. Tests replace it by anything with `now_ns`.
"""

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock(Protocol):
    """Something that tells the time since an arbitrary start, suspended time included."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never less than at an earlier call in this process."""
        ...


class SystemClock:
    """This machine's clock that counts suspended time.

    `now_ns()` is nanoseconds since an arbitrary start, suspended time included; no Python is run for it, since every
    check reads it.

    Raises:
        RuntimeError: on construction, on a platform where no such clock is known.
    """

    __slots__ = ("now_ns",)

    def __init__(self) -> None:
        clock_id = _suspend_aware_clock_id()
        self.now_ns: Callable[[], int] = (
            time.monotonic_ns if clock_id is None else partial(time.clock_gettime_ns, clock_id)
        )


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
