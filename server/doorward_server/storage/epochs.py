"""Begins a new epoch on a database that was restored: what was known of its former life counts no more (design section 7).

One transaction: nobody registers, renews or reports while it lasts, and whoever has a lease from before has lost it when
it commits. Undone whole if it is not committed, so that a repeat finds the rows, and the holds in them, as they were.
Called by `service/epochs.py`, for `doorward db new-epoch`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward.core.revision import Revision
from doorward_server.storage import audit
from doorward_server.storage.failures import DatabaseUnusable, unseeded
from doorward_server.storage.transaction import Bounds, transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from doorward_server.model import AuditEvent
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["LeasesEnded", "begin_epoch"]

NONCE_BYTES: Final = 8
# The longest hold that a row can say is 300 s. A process that stops in its wait is thrown out a little after it.
BOUNDS: Final = Bounds(idle_ms=30_000, lock_ms=60_000, statement_ms=60_000, commit_s=360.0)
IDLE_MARGIN_MS: Final = 30_000

HAS_SCHEMA = "SELECT to_regclass('state') IS NOT NULL AND to_regclass('replicas') IS NOT NULL"

# Two at once would wait for each other's table lock, but in what order is nobody's to guess.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('doorward new epoch', 0))"

# Reading goes on: a barrier sees the rows until this commits, and waits for each of them by its hold.
LOCK_REPLICAS = "LOCK TABLE replicas IN SHARE ROW EXCLUSIVE MODE"

DELETE_REPLICAS = "DELETE FROM replicas RETURNING hold_ms"

# SET takes no parameters; `true` makes it SET LOCAL.
ALLOW_WAIT = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"

READ_TIME = "SELECT clock_timestamp() FROM state"

# The number goes on and the nonce is new: what a replica knows of the former epoch contradicts it in two ways.
NEW_EPOCH = """
WITH begun AS (
    UPDATE state
    SET epoch = epoch + 1, nonce = $1, audit_head = sha256(audit_head || int8send(revision) || $2)
    RETURNING epoch, revision, audit_head
), audited AS (
    INSERT INTO audit_events
        (time, event_id, revision, account_id, actor, on_behalf_of, action, subject, before, after, peer, chain)
    SELECT $3, nextval('audit_event_ids'), revision, $4, $5, $6, $7, $8, $9::jsonb, $10::jsonb, $11, audit_head
    FROM begun
)
SELECT epoch, revision FROM begun
"""


@dataclass(frozen=True, slots=True)
class LeasesEnded:
    """The rows that were deleted, and the longest hold in them; 0 if there were none."""

    replicas: int
    longest_hold_ms: int


async def begin_epoch(
    database: Database, event: AuditEvent, outlast: Callable[[LeasesEnded], Awaitable[None]]
) -> Revision:
    """Begins an epoch; the revision that stands at its start.

    `outlast` is awaited when no lease can be renewed any more, and returns when none that stood then can be good.
    Raises: DatabaseUnusable, if there is nothing of Doorward's in the database; errors.Unavailable DATABASE_UNAVAILABLE
    (nothing was changed) or COMMIT_UNKNOWN (repeat it: one epoch more does no harm).
    """
    async with database.session() as connection, transaction(connection, BOUNDS, dry_run=False):
        if not await connection.fetchval(HAS_SCHEMA):
            raise DatabaseUnusable("The database holds nothing of Doorward's: restore the backup first.")
        await connection.execute(LOCK)
        await audit.ensure_partitions(connection)  # an old backup lacks this month's
        await connection.execute(LOCK_REPLICAS)
        holds = [row["hold_ms"] for row in await connection.fetch(DELETE_REPLICAS)]
        ended = LeasesEnded(len(holds), max(holds, default=0))
        await connection.execute(ALLOW_WAIT, str(IDLE_MARGIN_MS + int(BOUNDS.commit_s * 1000)))
        await outlast(ended)
        return await _write(connection, event)


async def _write(connection: Connection, event: AuditEvent) -> Revision:
    now: datetime | None = await connection.fetchval(READ_TIME)
    if now is None:
        raise unseeded()
    row = await connection.fetchrow(
        NEW_EPOCH,
        secrets.token_bytes(NONCE_BYTES),
        audit.event_digest(event, now),
        now,
        event.account_id,
        event.actor,
        event.on_behalf_of,
        event.action,
        event.subject,
        audit.as_json(event.before),
        audit.as_json(event.after),
        event.peer,
    )
    return Revision(row["epoch"], row["revision"])
