"""When a lease may be used, and how late it can be at the database: arithmetic on clock readings that are handed in.

`*_ns` are readings of the local clock, `*_us` microseconds of the database's time since the Unix epoch. Whole numbers
only; each rounding errs to the side of no. A lease is cut from a renewal and counts from before it was sent; it is
usable once what the renewal's snapshot contained has been applied here. Used by the lease keeper of a replica and by
a watcher for its sub-lease (design section 7: Lengths, Renew, Check). Reads no clock and waits for nothing.
"""

from dataclasses import dataclass
from typing import Final

from doorward.core.history import History

# The ratio of hold to lease: two clocks that each run within 10 % of true speed differ by at most 1.1/0.9 = 1.222.
RHO: Final = 1.25
_RHO_ABOVE, _RHO_BELOW = RHO.as_integer_ratio()
_RHO_BELOW_US: Final = _RHO_BELOW * 1_000


class DatabaseTimeUnknown(LookupError):
    """No answer of the database has told its time yet."""


def length_ns(hold_ms: int) -> int:
    """The length U = H / RHO of a lease, for what others wait for, H = hold_ms."""
    return hold_ms * 1_000_000 * _RHO_BELOW // _RHO_ABOVE


def stretched_ns(span_ns: int) -> int:
    """RHO * span_ns, rounded up: what another clock may show at most while this one shows span_ns."""
    return -(-span_ns * _RHO_ABOVE // _RHO_BELOW)


@dataclass(frozen=True, slots=True)
class Lease:
    """Good while now < end_ns, once the change with this number and nonce has been applied."""

    end_ns: int
    number: int
    nonce: bytes


class LeaseState:
    """The lease of one registration, and the renewal that is to prolong it as soon as its position is applied."""

    __slots__ = ("_end_ns", "pending")

    def __init__(self) -> None:
        self._end_ns: int | None = None
        self.pending: Lease | None = None

    def answered(self, t0_ns: int, now_ns: int, hold_ms: int, number: int, nonce: bytes) -> bool:
        """Takes a renewal's answer, sent after t0_ns, as pending; returns whether it did.

        An answer later than a lease's length after t0_ns is ignored, and so is one whose lease would not end later than
        the pending one's. Neither touches what is there.
        """
        end_ns = t0_ns + length_ns(hold_ms)
        if now_ns >= end_ns or (self.pending is not None and end_ns <= self.pending.end_ns):
            return False
        self.pending = Lease(end_ns, number, nonce)
        return True

    def promote(self, history: History) -> bool:
        """Makes the pending renewal the lease if its position has been applied; returns whether it did.

        That takes an applied number that is no lower and this very nonce at the number. Of the lease that was and the
        new one the later end wins. What cannot be promoted stays pending, and the former lease good to its own end.
        """
        pending = self.pending
        if pending is None or history.applied is None or history.applied.number < pending.number:
            return False
        if not history.holds(pending.number, pending.nonce):
            return False
        self.pending = None
        self._end_ns = pending.end_ns if self._end_ns is None else max(self._end_ns, pending.end_ns)
        return True

    def capture(self, now_ns: int) -> int | None:
        """The end of the lease that is usable now, for `still_good` at the end of the same check, or None."""
        end_ns = self._end_ns
        return end_ns if end_ns is not None and now_ns < end_ns else None

    @staticmethod
    def still_good(end_ns: int, now_ns: int) -> bool:
        """Whether a check that captured end_ns when it began may still be answered."""
        return now_ns < end_ns

    def drop(self) -> None:
        """Gives up the lease and what is pending."""
        self._end_ns = None
        self.pending = None


class DatabaseTime:
    """The latest time that the database's clock can show, from what its answers told; it never goes backwards.

    From an answer on, the local time since that answer's t0 counts RHO-fold, until the next answer gives a closer bound.
    What was reached before stays the least, so that what has expired once stays expired. Only the newest answer's bound
    grows: a maximum over all of them would run ahead by a quarter of the time that the process has lived.
    """

    __slots__ = ("_bound",)

    def __init__(self) -> None:
        # Least time to show, the database's time in the newest answer, t0 of that answer: one tuple, replaced at once.
        self._bound: tuple[int, int, int] | None = None

    def observe(self, database_us: int, t0_ns: int, now_ns: int) -> None:
        """Takes the database's time from an answer that arrived at now_ns and whose statement was sent after t0_ns."""
        least_us = database_us if self._bound is None else self.latest_us(now_ns)
        self._bound = (least_us, database_us, t0_ns)

    def latest_us(self, now_ns: int) -> int:
        """The latest time that the database's clock can show at now_ns.

        Raises:
            DatabaseTimeUnknown: nothing has been observed yet.
        """
        if self._bound is None:
            raise DatabaseTimeUnknown("no answer of the database has told its time yet")
        least_us, database_us, t0_ns = self._bound
        # The same as stretched_ns, in microseconds and rounded up once: every check asks this.
        latest_us = database_us - (t0_ns - now_ns) * _RHO_ABOVE // _RHO_BELOW_US
        return latest_us if latest_us > least_us else least_us
