"""Removes what is kept no longer, and makes the audit's coming months, while the server runs (design section 6, Retention).

Every replica looks, at intervals; what there is to do one of them does, in small batches with pauses, so that nobody waits
for it. What is removed is bounded by settings, of which 0 keeps for ever. The audit's months go with an event that tells of
it. Started by `app.py`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from doorward_server.errors import Refused
from doorward_server.model import AuditEvent
from doorward_server.service.operators import DIRECT_ACTOR
from doorward_server.storage import audit, audit_retention, idempotency, retention
from doorward_server.storage.audit_chain import DROPPED
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.failures import StatementRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward_server.model import Json
    from doorward_server.replica.timing import Timing
    from doorward_server.settings import Settings
    from doorward_server.storage.audit_chain import Run
    from doorward_server.storage.audit_retention import Month
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Retention"]

log = structlog.get_logger()

BATCH: Final = 500
# Between two batches, so that they never make up more than a part of what the database does.
PAUSE_NS: Final = 20_000_000


class Retention:
    """The part that does it."""

    def __init__(self, settings: Settings, database: Database, timing: Timing) -> None:
        self._database = database
        self._timing = timing
        self._interval_ns = int(settings.retention_interval * 1e9)
        self._audit_months = settings.retention_audit_months
        self._revoked = timedelta(days=settings.retention_revoked_days)
        self._refusals = timedelta(days=settings.retention_refusals_days)
        self._changes = timedelta(seconds=settings.retention_changes)

    async def run(self) -> None:
        """Looks at intervals, for ever. A database that is away is asked again the next time."""
        while True:
            await self._timing.sleep_until(self._timing.now_ns() + self._interval_ns)
            for work in (self.keep_audit, self.keep_changes, self.keep_tokens, self.keep_refusals, self.keep_answers):
                try:
                    await work()
                except Refused as refused:
                    log.warning("retention_postponed", work=work.__name__, reason=refused.reason)
                except StatementRefused:
                    log.exception("retention_failed", work=work.__name__)

    async def keep_audit(self) -> None:
        """Makes the partitions of the coming months, and drops those of months that are over for long."""
        async with self._database.reading() as connection:
            await audit.ensure_partitions(connection)
        while self._audit_months:
            async with self._database.reading() as connection:
                month = await audit_retention.find_oldest_month(connection, self._audit_months)
            if month is None or not await self._drop(month, await audit_retention.read_runs(self._database, month)):
                return

    async def keep_changes(self) -> None:
        """Shortens the change log."""
        await self._in_batches("changes", lambda connection: retention.delete_changes(connection, self._changes, BATCH))

    async def keep_tokens(self) -> None:
        """Deletes the records of tokens that were revoked long ago."""
        if not self._revoked:
            return
        last, deleted = retention.FROM_START, 0
        while True:
            async with self._database.reading() as connection:
                last = await retention.delete_tokens(connection, self._revoked, BATCH, last)
            deleted += last.deleted
            if last.seen < BATCH:
                break
            await self._pause()
        if deleted:
            log.info("retention_deleted", what="tokens", count=deleted)

    async def keep_refusals(self) -> None:
        """Deletes old refusals."""
        if self._refusals:
            await self._in_batches(
                "refusals", lambda connection: retention.delete_refusals(connection, self._refusals, BATCH)
            )

    async def keep_answers(self) -> None:
        """Deletes sealed answers that have expired: nobody gets them any more."""
        await self._in_batches("answers", lambda connection: idempotency.delete_expired(connection, BATCH))

    async def _in_batches(self, what: str, delete: Callable[[Connection], Awaitable[int]]) -> None:
        deleted = 0
        while True:
            async with self._database.reading() as connection:
                count = await delete(connection)
            deleted += count
            if count < BATCH:
                break
            await self._pause()
        if deleted:
            log.info("retention_deleted", what=what, count=deleted)

    async def _drop(self, month: Month, runs: tuple[Run, ...]) -> bool:
        """Drops the month and says so in the audit, in one transaction; False: not now."""

        async def decide(tx: Transaction) -> Decided[None]:
            await audit_retention.take_turn(tx, month, self._audit_months)
            event = _dropped(month, runs, await audit_retention.dropped_with(tx, runs))
            await audit_retention.drop_month(tx, month)
            return Decided(None, None, event)

        try:
            await commit(self._database, decide)
        except audit_retention.Busy:
            log.info("retention_postponed", work="keep_audit", partition=month.partition)
            return False
        except ValueError:
            log.error("audit_chain_broken", why="the event that tells what was dropped before is not what was written")
            return False
        log.info("retention_deleted", what=month.partition, count=_count(runs))
        return True

    async def _pause(self) -> None:
        await self._timing.sleep_until(self._timing.now_ns() + PAUSE_NS)


def _dropped(month: Month, runs: tuple[Run, ...], all_runs: tuple[Run, ...]) -> AuditEvent:
    told: list[Json] = [{"first": run.first, "last": run.last, "chain": run.chain.hex()} for run in all_runs]
    return AuditEvent(
        actor=DIRECT_ACTOR,
        on_behalf_of="retention",
        action=DROPPED,
        subject=f"audit:{month.from_time:%Y-%m}",
        account_id=None,
        before={"events": _count(runs)},
        after={"dropped": told},
    )


def _count(runs: tuple[Run, ...]) -> int:
    return sum(run.last - run.first + 1 for run in runs)
