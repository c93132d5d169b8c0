"""Reads the audit's chain back, event by event in the order it was written, a chunk at a time (design section 5).

No long transaction and no cursor: a chunk begins behind the last one's key, so that a chain of any length is read in little
memory while the server goes on. Called by `service/audit_chain.py` and `service/audit_export.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from doorward_server.model import AuditEvent
from doorward_server.storage.failures import unseeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["DROPPED", "ChainEnd", "ChainedEvent", "Run", "events_in_order", "read_chain_end", "read_dropped"]

CHUNK: Final = 2_000

# The action of the events that retention writes when it drops others.
DROPPED: Final = "DropAuditEvents"

# In one snapshot, so that an event beyond the newest is one that nobody wrote.
READ_END = """
SELECT last_event_id, audit_head,
       (SELECT min(event_id) FROM audit_events WHERE event_id > last_event_id) AS beyond
FROM state
"""

# By the index on event_id. The time is part of the key, since an id that stands twice must be seen twice.
READ_EVENTS = """
SELECT time, event_id, epoch, revision, account_id, actor, on_behalf_of, action, subject, tokens, before, after, peer, chain
FROM audit_events
WHERE event_id >= $1 AND (event_id, time) > ($1, $2) AND event_id <= $3 AND time >= $4
ORDER BY event_id, time
LIMIT $5
"""

READ_DROPPED = """
SELECT after FROM audit_events
WHERE action = 'DropAuditEvents' AND event_id <= $1
ORDER BY event_id DESC LIMIT 1
"""

_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Run:
    """Events that retention dropped, `first` to `last` without a gap between, and the chain of the last one."""

    first: int
    last: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """The newest event's id and chain; `beyond` is the id of an event behind it, which nobody can have written."""

    last_event_id: int
    chain: bytes
    beyond: int | None


@dataclass(frozen=True, slots=True)
class ChainedEvent:
    """An event as it stands in the database."""

    event_id: int
    epoch: int
    number: int
    time: datetime
    event: AuditEvent
    chain: bytes


async def read_chain_end(connection: Connection) -> ChainEnd:
    """Where the chain ends now."""
    row = await connection.fetchrow(READ_END)
    if row is None:
        raise unseeded()
    return ChainEnd(row["last_event_id"], row["audit_head"], row["beyond"])


async def read_dropped(connection: Connection, last_event_id: int) -> tuple[Run, ...]:
    """What retention has dropped by then, as the newest event says that tells of it. That event is part of the chain itself.

    Raises: ValueError, if it does not say so in the form that retention writes.
    """
    after = await connection.fetchval(READ_DROPPED, last_event_id)
    if after is None:
        return ()
    try:
        runs = json.loads(after)["dropped"]
        return tuple(Run(int(run["first"]), int(run["last"]), bytes.fromhex(run["chain"])) for run in runs)
    except (KeyError, TypeError) as malformed:
        raise ValueError(str(malformed)) from None


async def events_in_order(
    database: Database, last_event_id: int, since: datetime | None = None
) -> AsyncIterator[ChainedEvent]:
    """Every event up to that one, in the chain's order; with `since`, those at or after that time."""
    event_id, time = 0, _BEFORE_ALL
    while True:
        async with database.reading() as connection:
            rows = await connection.fetch(READ_EVENTS, event_id, time, last_event_id, since or _BEFORE_ALL, CHUNK)
        for row in rows:
            yield _event(row)
        if len(rows) < CHUNK:
            return
        event_id, time = rows[-1]["event_id"], rows[-1]["time"]


def _event(row: asyncpg.Record) -> ChainedEvent:
    before, after = row["before"], row["after"]
    event = AuditEvent(
        actor=row["actor"],
        action=row["action"],
        subject=row["subject"],
        account_id=row["account_id"],
        before=None if before is None else json.loads(before),
        after=None if after is None else json.loads(after),
        on_behalf_of=row["on_behalf_of"],
        peer=row["peer"],
        tokens=tuple(row["tokens"] or ()),
    )
    return ChainedEvent(row["event_id"], row["epoch"], row["revision"], row["time"], event, row["chain"])
