"""Begins a new epoch in a database that was restored: what anyone knows of its former life counts no more.

One transaction: nobody registers, renews or reports while it lasts, and by its commit whoever had a lease has lost it.
Until then the rows stand for everybody else, so that a barrier goes on waiting for them; killed in between, nothing of it
remains, and a repeat finds the rows and the holds in them. Called by `service/epochs.py`. Design section 7, Restore.
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

    from doorward_server.model import AuditEvent
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Departed", "begin_epoch"]

NONCE_BYTES: Final = 8
# The longest hold is 300 s: the whole transaction gets longer than that, its statements what one may need for a lock.
BOUNDS: Final = Bounds(idle_ms=30_000, lock_ms=60_000, statement_ms=60_000, commit_s=360.0)
# Idle for this much longer than the wait lasts, its process is frozen, and must not keep everybody out.
IDLE_MARGIN_MS: Final = 30_000

HAS_SCHEMA = "SELECT to_regclass('state') IS NOT NULL AND to_regclass('replicas') IS NOT NULL"

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('doorward new epoch', 0))"

# Keeps out registrations, renewals and reports; barriers read on.
LOCK_REPLICAS = "LOCK TABLE replicas IN SHARE ROW EXCLUSIVE MODE"

DELETE_REPLICAS = "DELETE FROM replicas RETURNING hold_ms"

# SET takes no parameters; `true` makes it SET LOCAL.
SET_IDLE = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"

LOCK_STATE = "SELECT epoch, clock_timestamp() AS now FROM state FOR UPDATE"

# The number goes on, and no row of `changes` is needed: everybody registers anew and stands at it from the start.
NEW_EPOCH = """
WITH begun AS (
    UPDATE state
    SET epoch = epoch + 1, nonce = $1, last_event_id = last_event_id + 1,
        audit_head = sha256(audit_head || int8send(last_event_id + 1) || int8send(epoch + 1) || int8send(revision) || $2)
    RETURNING epoch, revision, last_event_id, audit_head
), audited AS (
    INSERT INTO audit_events
        (time, event_id, epoch, revision, account_id, actor, on_behalf_of, action, subject, tokens, before, after, peer,
         chain)
    SELECT $3, last_event_id, epoch, revision, $4, $5, $6, $7, $8, $9::text[], $10::jsonb, $11::jsonb, $12, audit_head
    FROM begun
)
SELECT epoch, revision FROM begun
"""


@dataclass(frozen=True, slots=True)
class Departed:
    """How many rows were deleted, and how long a lease of before may last: the longest hold, in milliseconds."""

    replicas: int
    hold_ms: int


async def begin_epoch(
    database: Database,
    least_hold_ms: int,
    outlast: Callable[[Departed], Awaitable[None]],
    event_of: Callable[[int, Departed], AuditEvent],
) -> tuple[Revision, Departed]:
    """Begins an epoch; where the log stands in it, and who was forgotten. `event_of` is told the former epoch.

    `outlast` is awaited once no lease can be renewed, and returns when `hold_ms` has passed since: the longest of all
    rows, and no less than `least_hold_ms`, for a backup does not know who registered after it was made.
    Raises: DatabaseUnusable, if nothing of Doorward's is there; errors.Unavailable DATABASE_UNAVAILABLE (nothing was
    changed) or COMMIT_UNKNOWN (repeat it: one epoch more does no harm).
    """
    await _prepare(database)
    async with database.session() as connection, transaction(connection, BOUNDS, dry_run=False):
        await connection.execute(LOCK)
        await connection.execute(LOCK_REPLICAS)
        holds_ms = [row["hold_ms"] for row in await connection.fetch(DELETE_REPLICAS)]
        departed = Departed(len(holds_ms), max([least_hold_ms, *holds_ms]))
        await connection.execute(SET_IDLE, str(departed.hold_ms + IDLE_MARGIN_MS))
        await outlast(departed)
        revision = await _write(connection, departed, event_of)
    return revision, departed


async def _prepare(database: Database) -> None:
    """An old backup lacks the audit's partition of this month."""
    async with database.reading() as connection:
        if not await connection.fetchval(HAS_SCHEMA):
            raise DatabaseUnusable("The database holds nothing of Doorward's; restore the backup into it first.")
        await audit.ensure_partitions(connection)


async def _write(
    connection: Connection, departed: Departed, event_of: Callable[[int, Departed], AuditEvent]
) -> Revision:
    state = await connection.fetchrow(LOCK_STATE)
    if state is None:
        raise unseeded()
    event = event_of(state["epoch"], departed)
    (begun,) = await connection.fetch(
        NEW_EPOCH,
        secrets.token_bytes(NONCE_BYTES),
        audit.event_digest(event, state["now"]),
        *audit.row_of(event, state["now"]),
    )
    return Revision(begun["epoch"], begun["revision"])
