"""Reads the changes in order and applies each (design section 7, Apply). There is no other way to learn of a change.

Woken by NOTIFY, by each renewal and every quarter of the hold. It calls nobody: whoever waits for a revision looks at
`Holding` again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from doorward.core.history import HistoryGap
from doorward.core.lease import length_ns
from doorward_server import failpoints
from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.storage import changes
from doorward_server.storage.line import Unanswered

if TYPE_CHECKING:
    from doorward_server.replica.holding import Holding
    from doorward_server.storage.changes import ChangeRow
    from doorward_server.storage.line import Line

__all__ = ["Feed"]

log = structlog.get_logger()

RETRY_NS: Final = 50_000_000
# Rows read at once: a replica that comes back after a minute of a thousand changes a second catches up in 60 reads.
BATCH: Final = 1000


class Feed:
    """The one loop that applies changes."""

    def __init__(self, holding: Holding, line: Line, *, listen: bool) -> None:
        self._holding = holding
        self._line = line
        self._listen = listen
        self._notified = False
        self._generation = 0

    async def run(self) -> None:
        """Runs until cancelled; a database that is away is tried again."""
        if self._listen:
            await self._line.listen(changes.CHANNEL, self._on_notify)
        holding, timing = self._holding, self._holding.timing
        quarter_ns = holding.hold_ms * 1_000_000 // 4
        while True:
            due_ns = timing.now_ns() + quarter_ns
            if holding.registration_due is None:
                try:
                    await self._catch_up()
                except (Unavailable, Unanswered) as failure:
                    log.warning("changes_not_read", failure=type(failure).__name__)
                    # Whatever is wanted meanwhile: a database that refuses at once must not be asked without a pause.
                    await timing.sleep_until(timing.now_ns() + min(RETRY_NS, quarter_ns))
                    continue
            while not self._wanted() and timing.now_ns() < due_ns:
                await timing.sleep_until_or(due_ns, holding.moved)

    def _wanted(self) -> bool:
        if self._holding.registration_due is not None:
            return False
        holding = self._holding
        # The first read of a generation also begins to listen.
        is_new = holding.history.generation != self._generation
        return is_new or self._notified or holding.known_end > holding.applied

    def _on_notify(self) -> None:
        if not failpoints.is_armed(Failpoint.NOTIFY_DROP):
            self._notified = True
            self._holding.moved.wake()

    async def _catch_up(self) -> None:
        holding = self._holding
        while True:
            self._notified = False
            generation, number, known_end = holding.history.generation, holding.applied, holding.known_end
            rows = await self._line.call(
                lambda connection, after=number: changes.read_after(connection, after, BATCH),  # type: ignore[misc]
                length_ns(holding.hold_ms) / 1e9,
            )
            for row in rows:
                await failpoints.reach(Failpoint.APPLY_BEFORE)
                if holding.history.generation != generation or holding.registration_due is not None:
                    return
                if not self._apply(row):
                    return
            if not rows and known_end > number:
                # A renewal saw a later revision before this read began, yet its row is not there.
                holding.begin_anew("the change log was truncated past this replica")
            if len(rows) < BATCH:
                self._generation = generation
                return

    def _apply(self, row: ChangeRow) -> bool:
        try:
            self._holding.apply(row.number, row.nonce, row.subjects)
        except HistoryGap:
            self._holding.begin_anew("the change log has a gap")
            return False
        log.debug("change_applied", number=row.number)
        return True
