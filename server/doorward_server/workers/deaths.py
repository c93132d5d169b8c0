"""When workers die again and again: how long to wait before the next is started, and when to give up.

A pure count over readings that are handed in. Called by `parent.py`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["CrashLoop", "Deaths"]

WINDOW_NS: Final = 60_000_000_000
# Beyond one of each worker: what takes all at once may happen once, but not again and again.
MORE_DEATHS: Final = 5
FIRST_PAUSE_S: Final = 0.1


class CrashLoop(Exception):
    """Workers die faster than it makes sense to replace them."""


class Deaths:
    """How many workers died within the last minute."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._times_ns: deque[int] = deque()

    def note(self, now_ns: int) -> float:
        """Counts one; the pause before the next start, in seconds: twice as long each time that more died than there are.

        Raises:
            CrashLoop: too many.
        """
        times = self._times_ns
        times.append(now_ns)
        while times[0] <= now_ns - WINDOW_NS:
            times.popleft()
        more = len(times) - self._workers
        if more > MORE_DEATHS:
            raise CrashLoop(f"{len(times)} workers died within a minute; the log says how")
        return FIRST_PAUSE_S * 2.0 ** (more - 1) if more > 0 else 0.0
