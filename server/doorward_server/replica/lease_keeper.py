"""Keeps this replica's row: registers, renews its lease, reports what was applied (design section 7).

`LeaseKeeper` and `Reporter` are long-lived parts with connections of their own, so that neither a report nor a read can
delay a renewal. An unanswered statement is abandoned by terminating its connection: a cancel could undo a commit and
report success.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import structlog

from doorward.core.lease import length_ns
from doorward_server import failpoints
from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.storage import replicas
from doorward_server.storage.line import Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward_server.replica.holding import Holding
    from doorward_server.storage.line import Line

__all__ = ["LeaseKeeper", "Reporter"]

log = structlog.get_logger()

# The first pause after a failure: short enough that a database that restarts is found before a lease of 400 ms ends.
RETRY_NS = 50_000_000


class LeaseKeeper:
    """Registers, then renews every quarter of the hold, so that three renewals may be lost before the lease ends."""

    def __init__(
        self, holding: Holding, line: Line, address: str, on_registering: Callable[[str], None] | None = None
    ) -> None:
        """`on_registering` is told each replica_id before anything is sent of it; its Unavailable puts that off."""
        self._holding = holding
        self._line = line
        # Where this replica listens, for display; a port of 0 is known better once it is bound.
        self.address = address
        self._on_registering = on_registering
        # Sent, and not answered yet: there may be a row of it, but there was never a lease.
        self._registering: str | None = None
        self._failures = 0
        self._hurry = False
        self._begun = 0
        self._answered = 0
        self._answered_number = 0

    async def run(self) -> None:
        """Runs until cancelled. The lease is dropped then: from there on no check passes."""
        try:
            while True:
                await self._turn()
        finally:
            self._holding.lease.drop()

    async def leave(self) -> None:
        """Deletes this replica's row, after `run` has ended and the lease was dropped; nobody needs to wait for it.

        Unless a watcher's sub-lease is still counted: then it is left to be pruned. Also the row that a registration makes
        that `run` ended in the middle of.
        """
        replica_id, registering, hold_ms = self._holding.replica_id, self._registering, self._holding.hold_ms
        if replica_id is None and registering is None:
            return
        await failpoints.reach(Failpoint.SHUTDOWN_BEFORE_DELETE)
        try:
            if counted := self._holding.watchers.counted():
                log.warning("replica_row_left", counted_sub_leases=counted)
            elif replica_id is not None:
                await self._line.call(lambda connection: replicas.delete(connection, replica_id), hold_ms / 1000)
            if registering is not None:
                await self._line.call(
                    lambda connection: replicas.withdraw(connection, registering, hold_ms), hold_ms / 1000
                )
        except (Unavailable, Unanswered) as failure:
            # The row is pruned by the next mutation that has waited for it.
            log.warning("replica_row_left", failure=type(failure).__name__)

    async def fresh_renewal(self) -> int:
        """The revision of a renewal that began after this call (shared by all who wait): the log's end, or newer.

        The caller bounds the wait, and then awaits that this revision is applied.
        """
        wanted = self._begun + 1
        self.hurry()
        await self._holding.moved.until(lambda: self._answered >= wanted)
        return self._answered_number

    def hurry(self) -> None:
        """Renews now instead of when it is due."""
        self._hurry = True
        self._holding.moved.wake()

    @property
    def _hold_ns(self) -> int:
        return self._holding.hold_ms * 1_000_000

    async def _turn(self) -> None:
        began_ns = self._holding.timing.now_ns()
        self._hurry = False
        try:
            if self._holding.registration_due is not None:
                await self._register()
                return
            await self._renew()
        except (Unavailable, Unanswered) as failure:
            self._failures += 1
            if self._failures == 1:
                log.warning("lease_not_renewed", failure=type(failure).__name__)
        else:
            if self._failures:
                log.info("lease_renewed_again", failures=self._failures)
            self._failures = 0
        await self._pause(began_ns)

    async def _pause(self, began_ns: int) -> None:
        """Until the next renewal is due, one is asked for, or the replica must register."""
        timing, holding = self._holding.timing, self._holding
        quarter_ns = self._hold_ns // 4
        pause_ns = min(quarter_ns, RETRY_NS << min(self._failures - 1, 10)) if self._failures else quarter_ns
        due_ns = began_ns + pause_ns
        while timing.now_ns() < due_ns and not (self._failures == 0 and (self._hurry or holding.registration_due)):
            await timing.sleep_until_or(due_ns, holding.moved)

    async def _register(self) -> None:
        holding = self._holding
        # Random for every registration, so that a row of before can never be taken for this one.
        replica_id = str(uuid.uuid4())
        if self._on_registering is not None:
            self._on_registering(replica_id)
        await failpoints.reach(Failpoint.REGISTER_BEFORE_COMMIT)
        self._registering = replica_id
        answer = await self._line.call(
            lambda connection: replicas.register(connection, replica_id, holding.hold_ms, self.address),
            self._hold_ns / 1e9,
        )
        await self._line.found_primary()
        await failpoints.reach(Failpoint.REGISTER_BEFORE_ANSWER)
        holding.registered(replica_id, answer.epoch, answer.number, answer.nonce)
        self._registering = None

    async def _renew(self) -> None:
        holding = self._holding
        if self._apply_is_stuck():
            return
        replica_id = holding.replica_id
        assert replica_id is not None, "registered before"  # noqa: S101 - the loop registers first
        # No await until t0, what was applied then, and the count are noted.
        self._begun += 1
        begun, t0_ns, not_below = self._begun, holding.timing.now_ns(), holding.applied
        await failpoints.reach(Failpoint.RENEW_BEFORE_SEND)
        answer = await self._line.call(
            lambda connection: replicas.renew(connection, replica_id), length_ns(holding.hold_ms) / 1e9
        )
        if answer is not None:  # else nothing was written
            await self._line.found_primary()
        await failpoints.reach(Failpoint.RENEW_BEFORE_ANSWER)
        if holding.registration_due is not None:
            return
        if answer is None:
            holding.begin_anew("the row of this replica is gone")
            return
        if holding.history.contradicts(answer.epoch, answer.number, answer.nonce, not_below=not_below):
            holding.begin_anew("the database has another history")
            return
        self._answered, self._answered_number = begun, answer.number
        holding.renewed(t0_ns, answer.number, answer.nonce, answer.database_us)

    def _apply_is_stuck(self) -> bool:
        """A replica that cannot apply what a renewal told of within H stops renewing, so that nobody waits for it twice."""
        holding = self._holding
        since_ns = holding.unapplied_since_ns
        return since_ns is not None and holding.timing.now_ns() - since_ns > self._hold_ns


class Reporter:
    """Tells the database what was applied: at once, one report in flight, the next one carries the newest.

    Not before the watchers allow it: whatever is reported, nobody here decides from a state without it.
    """

    def __init__(self, holding: Holding, line: Line, keeper: LeaseKeeper) -> None:
        self._holding = holding
        self._line = line
        self._keeper = keeper

    async def run(self) -> None:
        """Runs until cancelled."""
        holding = self._holding
        generation, reported = -1, -1
        while True:
            if holding.history.generation != generation:
                generation, reported = holding.history.generation, holding.registered_number
            # No await until the wait: what is looked at here is what the next wake is waited for.
            number = holding.watchers.reportable()
            nonce = holding.history.find_nonce(number)
            # Without its nonce, which a watcher has outlasted, a newer one must do: one comes when that watcher is past.
            if holding.registration_due is not None or number <= reported or nonce is None:
                await holding.moved.wait()
                continue
            assert holding.replica_id is not None, "registered before"  # noqa: S101
            if await self._report(holding.replica_id, number, nonce):
                reported = number

    async def _report(self, replica_id: str, number: int, nonce: bytes) -> bool:
        holding = self._holding
        watchers = holding.watchers.acknowledged_by(number)
        await failpoints.reach(Failpoint.REPORT_BEFORE_SEND)
        try:
            taken = await self._line.call(
                lambda connection: replicas.report(connection, replica_id, number, nonce, watchers),
                holding.hold_ms / 1000,
            )
        except (Unavailable, Unanswered) as failure:
            log.warning("report_not_sent", failure=type(failure).__name__, number=number)
            timing = holding.timing
            await timing.sleep_until(timing.now_ns() + RETRY_NS)
            return False
        if not taken:
            # The row is gone or the history is another one: a renewal tells which.
            self._keeper.hurry()
        return True
