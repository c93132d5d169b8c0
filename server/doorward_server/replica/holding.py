"""What this replica holds: its place in the change log, its caches, its lease, the database's time (design section 7).

One value that the parts of `replica/` share. It is written only in the event loop, and each method is one step: nothing
in here awaits, so nobody sees it half done. `lease_keeper` and `feed` write it; recognition, checks and the barrier read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from doorward.core.history import History
from doorward.core.lease import DatabaseTime, LeaseState
from doorward.core.proofs import Proofs
from doorward_server import metrics
from doorward_server.replica.timing import Signal
from doorward_server.replica.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward.core.revision import Revision
    from doorward.core.token_table import Tables
    from doorward_server.replica.timing import Timing

__all__ = ["Holding"]

log = structlog.get_logger()


class Holding:
    """The replica's state. Without a registration it has no lease, and without a lease nothing is decided."""

    def __init__(self, timing: Timing, *, hold_ms: int, tables: Tables, proofs: int, max_watchers: int = 500) -> None:
        """`proofs` bounds the remembered proofs of tokens, and those of operators; `max_watchers` the open sessions."""
        self.timing = timing
        # The clock's own reading: every check takes two.
        self._now_ns = timing.clock.now_ns
        self.hold_ms = hold_ms
        self.tables = tables
        self.token_proofs = Proofs(proofs)
        self.operator_proofs = Proofs(proofs)
        self.history = History()
        self.lease = LeaseState()
        self.database_time = DatabaseTime()
        self.replica_id: str | None = None
        # What this replica's row said was applied when it was made: everything behind it is to be reported.
        self.registered_number = -1
        # Why this replica must register (again); None while it is registered.
        self.registration_due: str | None = "started"
        # The newest revision that a renewal told of, and since when it has been waiting to be applied.
        self.known_end = 0
        self.unapplied_since_ns: int | None = None
        # When each token was last used, in microseconds of the database's time: every check of a recognized secret stores
        # one; `usage.py` takes them out.
        self.used: dict[str, int] = {}
        # Something above changed: applied, lease, registration. Look again.
        self.moved = Signal()
        self.watchers = Watchers(self, most=max_watchers)

    @property
    def applied(self) -> int:
        """The number of the newest change that was applied; -1 before the first registration."""
        position = self.history.applied
        return -1 if position is None else position.number

    @property
    def revision(self) -> Revision:
        """The state that an answer given now comes from. Only meaningful under a lease."""
        return self.history.revision

    def begin_anew(self, reason: str) -> None:
        """Drops the lease: what is held may belong to another history, or to a row that is gone."""
        self.lease.drop()
        self.watchers.forsake()
        if self.registration_due is None:
            self.registration_due = reason
            log.warning("registration_lost", reason=reason, replica_id=self.replica_id)
        self.moved.wake()

    def registered(self, replica_id: str, epoch: int, number: int, nonce: bytes) -> None:
        """The acknowledged answer of a registration: everything held before is forgotten, in one step."""
        # Those of before this generation, whose positions mean nothing in it.
        self.watchers.forsake()
        self.history.start(epoch, number, nonce)
        self.tables.clear()
        self.lease.drop()
        self.replica_id = replica_id
        self.registration_due = None
        self.registered_number = self.known_end = number
        self.unapplied_since_ns = None
        metrics.REGISTRATIONS.inc()
        log.info("replica_registered", replica_id=replica_id, revision=str(self.history.revision))
        self.moved.wake()

    def renewed(self, t0_ns: int, number: int, nonce: bytes, database_us: int) -> None:
        """The answer of a renewal sent at `t0_ns`: a pending lease, good once `number` is applied."""
        now_ns = self.timing.now_ns()
        self.database_time.observe(database_us, t0_ns, now_ns)
        self.lease.answered(t0_ns, now_ns, self.hold_ms, number, nonce)
        self.lease.promote(self.history)
        self.known_end = max(self.known_end, number)
        if self.unapplied_since_ns is None and number > self.applied:
            self.unapplied_since_ns = now_ns
        self.moved.wake()

    def apply(self, number: int, nonce: bytes, subjects: Sequence[str]) -> None:
        """Applies one change, in one step: evict here and at the watchers, fence, append, promote.

        Raises:
            HistoryGap: `number` is not the next one; nothing was done.
        """
        # A gap is found before anything is touched; nobody sees the two lines between half done.
        self.history.append(number, nonce)
        self.tables.apply(subjects)
        for subject in subjects:
            kind, _, subject_id = subject.partition(":")
            if kind == "token":
                self.token_proofs.forget(subject_id)
            elif kind == "operator":
                self.operator_proofs.forget(subject_id)
        self.watchers.apply(number, subjects)
        self.lease.promote(self.history)
        if number >= self.known_end:
            self.unapplied_since_ns = None
        self.moved.wake()

    def begin(self) -> tuple[int, int] | None:
        """`capture` and `latest_us` of one reading, for a check that begins now; None: it cannot be decided."""
        now_ns = self._now_ns()
        end_ns = self.lease.capture(now_ns)
        return None if end_ns is None else (end_ns, self.database_time.latest_us(now_ns))

    def capture(self) -> int | None:
        """The end (a clock reading) of the usable lease, for a check that begins now; None: it cannot be decided."""
        return self.lease.capture(self._now_ns())

    def still_good(self, end_ns: int) -> bool:
        """Whether the lease captured at the start is good: the last look before an answer leaves."""
        return self.lease.still_good(end_ns, self._now_ns())

    def latest_us(self) -> int:
        """The latest time that the database's clock can show now, in microseconds since the Unix epoch.

        Raises:
            DatabaseTimeUnknown: before the first renewal; whoever has captured a lease is behind it.
        """
        return self.database_time.latest_us(self._now_ns())
