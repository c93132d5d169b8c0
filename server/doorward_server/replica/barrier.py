"""Waits until nobody anywhere can still say yes from a state before a change (design section 7, Barrier).

Called after the change is committed *and acknowledged*. Once the rows of the replicas were read, the database is not
needed any more: a replica that is not heard of has lost its lease, on any clock, when its hold has passed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from doorward_server import failpoints, metrics
from doorward_server.errors import DeadlineExceeded, Refused, Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.model import Propagation
from doorward_server.storage import replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from doorward.core.revision import Revision
    from doorward_server.model import ReplicaRow
    from doorward_server.replica.timing import Signal, Timing
    from doorward_server.storage.pool import Database

__all__ = ["Barrier", "Outcome"]

log = structlog.get_logger()

# The first looks come fast, since all well means a few milliseconds; the last is repeated.
POLLS_NS = (1_000_000, 2_000_000, 5_000_000, 10_000_000)
# After the first, every connection is a new one; more of them lead where it did.
ATTEMPTS: Final = 3
# The answer must get out before the caller's deadline.
TIP_NS = 100_000_000


class Outcome:
    """How one wait ended, and the rows that may be pruned now."""

    __slots__ = ("expired", "propagation")

    def __init__(self, propagation: Propagation, expired: list[ReplicaRow]) -> None:
        self.propagation = propagation
        self.expired = expired


class _Wait:
    """The set of rows that one wait is for: fixed when it was read."""

    def __init__(self, rows: Iterable[ReplicaRow], revision: Revision, c0_ns: int) -> None:
        self._revision = revision
        self._c0_ns = c0_ns
        self.waiting: dict[str, ReplicaRow] = {row.replica_id: row for row in rows}
        self.expired: list[ReplicaRow] = []
        self.confirmed = 0
        self.watchers = 0

    def confirm(self, rows: Iterable[ReplicaRow]) -> None:
        """`rows` is what the database shows now of those waited for: confirmed are those that report R, or are gone."""
        shown = {row.replica_id: row for row in rows}
        for replica_id in list(self.waiting):
            row = shown.get(replica_id)
            if row is None:
                del self.waiting[replica_id]
                self.confirmed += 1
            elif row.epoch == self._revision.epoch and row.applied_revision >= self._revision.number:
                del self.waiting[replica_id]
                self.confirmed += 1
                self.watchers += row.watchers

    def expire(self, now_ns: int) -> None:
        """Lets go of the rows whose hold has passed since they were read."""
        for replica_id, row in list(self.waiting.items()):
            if now_ns >= self._c0_ns + row.hold_ms * 1_000_000:
                del self.waiting[replica_id]
                self.expired.append(row)

    def next_end_ns(self) -> int:
        """When the next of them expires."""
        return self._c0_ns + min(row.hold_ms for row in self.waiting.values()) * 1_000_000


class Barrier:
    """Waits for revisions, on the clock of this replica."""

    def __init__(self, database: Database, timing: Timing) -> None:
        self._database = database
        self._timing = timing

    def require_time(self, until_ns: int | None) -> None:
        """Whether there is any time to wait before the caller's deadline (a clock reading); asked before a change begins.

        Raises:
            DeadlineExceeded: DEADLINE_TOO_SHORT.
        """
        if until_ns is not None and self._timing.now_ns() >= until_ns - TIP_NS:
            raise DeadlineExceeded(
                "DEADLINE_TOO_SHORT",
                f"nothing was done: the deadline leaves less than the {TIP_NS // 1_000_000} ms that it takes to say how a "
                "change went; call again with a later one",
            )

    async def until_late(self, until_ns: int, ended: Signal) -> None:
        """Returns when a caller with this deadline must be answered, or at the next wake of `ended`."""
        await self._timing.sleep_until_or(until_ns - TIP_NS, ended)

    async def passed(
        self,
        revision: Revision,
        until_ns: int | None,
        nonce: bytes | None = None,
        *,
        on_late: Callable[[DeadlineExceeded], None] | None = None,
    ) -> Outcome:
        """Returns once every check that begins from now on is answered from a state ≥ `revision`, or not at all.

        Within the longest hold of a registered replica, and in milliseconds when all confirm. `until_ns` is the caller's
        deadline (a clock reading); `nonce` is the revision's, where it is known. `on_late` is told instead of the caller
        when the deadline is near, and the wait goes on: else a dead replica would never be pruned where all are hasty.

        Raises:
            Unavailable: PROPAGATION_UNKNOWN, the replicas could not be read; the change stands.
            DeadlineExceeded: PROPAGATION_NOT_AWAITED, the caller's deadline is near; the change stands.
        """
        began_ns = self._timing.now_ns()
        await failpoints.reach(Failpoint.BARRIER_BEFORE_ROWS)
        try:
            rows = await self._rows(revision, nonce)
        except Refused as refused:
            metrics.BARRIERS.labels("unknown").inc()
            raise Unavailable(
                "PROPAGATION_UNKNOWN",
                "the change is committed, but its propagation was not awaited: the replicas could not be read; "
                "call AwaitPropagation with this revision, or repeat the call",
                metadata={"revision": str(revision)},
            ) from refused
        c0_ns = self._timing.now_ns()
        await failpoints.reach(Failpoint.BARRIER_AFTER_ROWS)
        wait = _Wait(rows, revision, c0_ns)
        wait.confirm(rows)
        polls = 0
        while True:
            wait.expire(self._timing.now_ns())
            if not wait.waiting:
                break
            if until_ns is not None and self._timing.now_ns() >= until_ns - TIP_NS:
                self._late(revision, on_late)
                until_ns = None
            await self._pause(wait, polls, until_ns)
            polls += 1
            await self._look(wait, revision, nonce, until_ns)
        elapsed_s = (self._timing.now_ns() - began_ns) / 1e9
        metrics.BARRIER_SECONDS.observe(elapsed_s)
        metrics.BARRIERS.labels("expired" if wait.expired else "confirmed").inc()
        propagation = Propagation(revision, wait.confirmed, len(wait.expired), wait.watchers, elapsed_s)
        return Outcome(propagation, wait.expired)

    async def prune(self, outcome: Outcome) -> None:
        """Deletes the rows that expired and have stood still since, so that the next mutation does not wait for them."""
        if not outcome.expired:
            return
        await failpoints.reach(Failpoint.PRUNE_BEFORE)
        try:
            async with self._database.reading() as connection:
                for row in outcome.expired:
                    number = outcome.propagation.revision.number
                    if await replicas.prune(connection, row.replica_id, row.renewals, number):
                        log.warning("replica_pruned", replica_id=row.replica_id, address=row.address)
        except Refused as refused:
            log.warning("replica_not_pruned", reason=refused.reason)

    @staticmethod
    def not_awaited(revision: Revision) -> DeadlineExceeded:
        """What a caller is told whose deadline is near: PROPAGATION_NOT_AWAITED, the change stands."""
        return DeadlineExceeded(
            "PROPAGATION_NOT_AWAITED",
            f"the change is committed at revision {revision}, but some replica has not confirmed it yet; "
            "call AwaitPropagation with this revision, or repeat the call",
            metadata={"revision": str(revision)},
        )

    def _late(self, revision: Revision, on_late: Callable[[DeadlineExceeded], None] | None) -> None:
        metrics.BARRIERS.labels("deadline").inc()
        if on_late is None:
            raise self.not_awaited(revision)
        on_late(self.not_awaited(revision))

    async def _pause(self, wait: _Wait, polls: int, until_ns: int | None) -> None:
        next_ns = min(self._timing.now_ns() + POLLS_NS[min(polls, len(POLLS_NS) - 1)], wait.next_end_ns())
        await self._timing.sleep_until(next_ns if until_ns is None else min(next_ns, until_ns - TIP_NS))

    async def _rows(
        self, revision: Revision, nonce: bytes | None, replica_ids: Sequence[str] | None = None
    ) -> list[ReplicaRow]:
        """The rows, from a server that has the change. A pooled connection may lead to a deposed primary, where a replica
        that registered since is missing, and counts neither as there nor as gone.
        """
        for _ in range(ATTEMPTS):
            async with self._database.reading() as connection:
                rows = await replicas.read_rows_at(connection, revision.number, nonce, replica_ids)
            if rows is not None:
                return rows
            log.warning("rows_from_another_history", revision=str(revision))
            await self._database.expire()
        raise Unavailable("DATABASE_UNAVAILABLE", "the database that was reached lacks the change; try again")

    async def _look(self, wait: _Wait, revision: Revision, nonce: bytes | None, until_ns: int | None) -> None:
        """Looks at the rows once more, no longer than the wait itself lasts: time alone ends it with a silent database."""
        end_ns = wait.next_end_ns() if until_ns is None else min(wait.next_end_ns(), until_ns - TIP_NS)
        try:
            async with asyncio.timeout(max(end_ns - self._timing.now_ns(), 0) / 1e9):
                wait.confirm(await self._rows(revision, nonce, list(wait.waiting)))
        except (Refused, TimeoutError) as failure:
            log.debug("barrier_blind", failure=type(failure).__name__)
