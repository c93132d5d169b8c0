"""Drops the audit's old months so that the chain can still be followed across the gap (design section 6, Retention).

What goes is told by an event of the chain itself, written in the transaction that drops it: every run of events that was
ever dropped, with the chain of its last one. So a gap that no such event explains was made by somebody else. Called by
`service/retention.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg

from doorward_server.storage.audit_chain import Run, read_chain_end, read_dropped
from doorward_server.storage.transaction import Bounds, transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database
    from doorward_server.storage.transaction import Transaction

__all__ = ["Busy", "Month", "drop_month", "dropped_with", "find_oldest_month", "merged", "read_runs", "take_turn"]

# Names are made by ensure_audit_partitions, and sort as their months do.
FIND_OLDEST = """
SELECT child.relname AS partition,
       to_date(right(child.relname, 7), 'YYYY_MM')::timestamp AT TIME ZONE 'UTC' AS from_time,
       (to_date(right(child.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' AS to_time
FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
WHERE inhparent = 'audit_events'::regclass
  AND child.relname ~ '^audit_events_[0-9]{4}_[0-9]{2}$'
  AND child.relname < to_char(date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => $1),
                              '"audit_events_"YYYY_MM')
ORDER BY child.relname LIMIT 1
"""

# Ids without a gap differ from their rank by the same number. Around a month's end they may lie in either partition.
READ_RUNS = """
SELECT runs.first, runs.last, audit_events.chain
FROM (
    SELECT min(event_id) AS first, max(event_id) AS last
    FROM (
        SELECT event_id, event_id - row_number() OVER (ORDER BY event_id) AS run
        FROM audit_events WHERE time >= $1 AND time < $2
    ) AS numbered
    GROUP BY run
) AS runs
JOIN audit_events ON audit_events.event_id = runs.last AND time >= $1 AND time < $2
ORDER BY runs.first
"""

TAKE_TURN = "SELECT pg_try_advisory_xact_lock(hashtextextended('doorward retention', 0))"

# Whoever reads or writes the audit is waited for, and everybody else waits behind: not for long, there is a next time.
SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', $1, true)"
LOCK_MS: Final = 300

# A month of millions of events is read for seconds, with nobody waiting.
UNHURRIED: Final = Bounds(idle_ms=60_000, lock_ms=60_000, statement_ms=600_000, commit_s=660.0)

DROP = "SELECT drop_audit_partition($1)"


class Busy(Exception):
    """It is another replica's turn, or the audit is in use for longer than others may be made to wait."""


@dataclass(frozen=True, slots=True)
class Month:
    """A partition, and the span of time in it."""

    partition: str
    from_time: datetime
    to_time: datetime


async def find_oldest_month(connection: Connection, kept_months: int) -> Month | None:
    """The oldest partition that ended at least `kept_months` whole months before the running one began."""
    row = await connection.fetchrow(FIND_OLDEST, kept_months)
    return None if row is None else Month(row["partition"], row["from_time"], row["to_time"])


async def read_runs(database: Database, month: Month) -> tuple[Run, ...]:
    """The unbroken runs of events in it. Reads it whole; nothing is written into a month that is over for long."""
    async with database.session() as connection, transaction(connection, UNHURRIED, dry_run=True):
        rows = await connection.fetch(READ_RUNS, month.from_time, month.to_time)
    return tuple(Run(row["first"], row["last"], row["chain"]) for row in rows)


async def take_turn(tx: Transaction, month: Month, kept_months: int) -> None:
    """For the length of the transaction nobody else is at it, nor has been at this month.

    Raises: Busy.
    """
    is_ours = await tx.connection.fetchval(TAKE_TURN)
    if not is_ours or await find_oldest_month(tx.connection, kept_months) != month:
        raise Busy


async def dropped_with(tx: Transaction, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Everything that was ever dropped, once `runs` are. Raises: ValueError, if the event that tells of it was changed."""
    end = await read_chain_end(tx.connection)
    return merged([*await read_dropped(tx.connection, end.last_event_id), *runs])


async def drop_month(tx: Transaction, month: Month) -> None:
    """Drops the partition.

    Raises: Busy.
    """
    try:
        await tx.connection.execute(SET_LOCK_TIMEOUT, str(LOCK_MS))
        await tx.connection.execute(DROP, month.partition)
    except asyncpg.LockNotAvailableError:
        raise Busy from None


def merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same events in as few runs as can be, in order."""
    found: list[Run] = []
    for run in sorted(runs, key=lambda run: run.first):
        if found and run.first == found[-1].last + 1:
            found[-1] = Run(found[-1].first, run.last, run.chain)
        else:
            found.append(run)
    return tuple(found)
