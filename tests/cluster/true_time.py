"""True time, held by the test and shared with every replica process: it runs, stands, or is advanced by a test's step.

One file in memory holds it, so that all processes see a step at the same moment, also one that is stopped and wakes
later. A replica's clock is made from it by a rate of its own, as two real clocks would differ (design section 7, Lengths).
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Final

from doorward.clock import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SkewedClock", "TrueTime"]

# A count that is odd while the rest is being written; then a reading of the machine's clock, true time at that reading,
# and how fast it runs from there, in parts per million.
_LAYOUT: Final = struct.Struct("=QQQQ")
_MILLION: Final = 1_000_000
# Far from 0, as a real clock is.
_BEGIN_NS: Final = 1_000_000_000_000


class TrueTime:
    """Nanoseconds that pass at the rate the test chose; 0 when it stands. One process writes, all read."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """`create` makes the file, with time running."""
        self._machine = SystemClock()
        if create:
            path.write_bytes(_LAYOUT.pack(0, self._machine.now_ns(), _BEGIN_NS, _MILLION))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)

    def now_ns(self) -> int:
        """The true time."""
        read_ns, at_ns, ppm = self._read()
        return at_ns + (self._machine.now_ns() - read_ns) * ppm // _MILLION

    @property
    def rate(self) -> float:
        """How fast it runs against the machine's clock."""
        return self._read()[2] / _MILLION

    def run(self, rate: float = 1.0) -> None:
        """From now on it passes at `rate`."""
        self._write(self.now_ns(), round(rate * _MILLION))

    def stand(self) -> None:
        """It passes only by `advance`."""
        self.run(0.0)

    def advance(self, milliseconds: float) -> None:
        """That much passes now."""
        self._write(self.now_ns() + round(milliseconds * _MILLION), self._read()[2])

    def _read(self) -> tuple[int, int, int]:
        while True:
            count, read_ns, at_ns, ppm = _LAYOUT.unpack_from(self._memory)
            if count % 2 == 0 and _LAYOUT.unpack_from(self._memory)[0] == count:
                return read_ns, at_ns, ppm

    def _write(self, at_ns: int, ppm: int) -> None:
        count = _LAYOUT.unpack_from(self._memory)[0]
        rest = (self._machine.now_ns(), at_ns, ppm)
        struct.pack_into("=Q", self._memory, 0, count + 1)
        _LAYOUT.pack_into(self._memory, 0, count + 1, *rest)
        struct.pack_into("=Q", self._memory, 0, count + 2)


class SkewedClock:
    """A replica's clock: true time at a rate of its own. A change of rate makes no jump."""

    def __init__(self, time: TrueTime, rate: float = 1.0) -> None:
        self._time = time
        self._from_ns = time.now_ns()
        self._base_ns = self._from_ns
        self._ppm = round(rate * _MILLION)

    def now_ns(self) -> int:
        """The reading."""
        return self._base_ns + (self._time.now_ns() - self._from_ns) * self._ppm // _MILLION

    def skew(self, rate: float) -> None:
        """From now on it runs at `rate` against true time."""
        true_ns = self._time.now_ns()
        self._base_ns += (true_ns - self._from_ns) * self._ppm // _MILLION
        self._from_ns, self._ppm = true_ns, round(rate * _MILLION)

    def machine_s(self, span_ns: int) -> float | None:
        """How long `span_ns` of this clock takes on the machine's; None while true time stands."""
        rate = self._time.rate * self._ppm / _MILLION
        return None if rate == 0 else span_ns / 1e9 / rate
