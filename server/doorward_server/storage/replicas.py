"""The rows of `replicas`: registration, renewal, report, and what a barrier reads and prunes (design section 7).

Each is one statement in a transaction of its own. Replica rows do not go through the door: no decision reads them.
Called by `replica/` over lines of its own (`line.py`), where nothing is ever cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward_server import failpoints
from doorward_server.failpoints import Failpoint
from doorward_server.model import ReplicaRow
from doorward_server.storage.failures import unseeded
from doorward_server.storage.transaction import Bounds, begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from doorward_server.storage.connect import Connection

__all__ = [
    "Registered",
    "Renewed",
    "delete",
    "prune",
    "read_rows",
    "read_rows_at",
    "register",
    "renew",
    "report",
    "withdraw",
]

# RETURNING's subqueries see the statement's own snapshot: revision and nonce are of one moment.
REGISTER = """
INSERT INTO replicas (replica_id, epoch, hold_ms, applied_revision, renewals, renewed_time, started_time, address)
SELECT $1, epoch, $2, revision, 0, clock_timestamp(), clock_timestamp(), $3 FROM state
RETURNING epoch, applied_revision AS revision, (SELECT nonce FROM state) AS nonce
"""

# A write, so that a server that is no primary any more cannot renew.
RENEW = """
UPDATE replicas
SET renewals = renewals + 1, renewed_time = clock_timestamp()
FROM state
WHERE replica_id = $1
RETURNING state.epoch, state.revision, state.nonce,
          (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS database_us
"""

# Only what this server's own log has: a change that another history knows under the same number is not confirmed.
REPORT = """
UPDATE replicas
SET applied_revision = $2, watchers = $4
WHERE replica_id = $1
  AND applied_revision < $2
  AND EXISTS (SELECT FROM changes WHERE revision = $2 AND nonce = $3)
  AND epoch = (SELECT epoch FROM state)
RETURNING true
"""

READ_ROWS = """
SELECT replica_id, epoch, hold_ms, applied_revision, watchers, renewals, renewed_time, started_time, address
FROM replicas
ORDER BY started_time, replica_id
"""

# In one snapshot: whether this server's log has the change, and the rows beside it. One row at least, so that no rows and
# another history are told apart. Without a row of its own the change was truncated, and its number has to do.
READ_ROWS_AT = """
SELECT log.has_it,
       replica_id, replicas.epoch, hold_ms, applied_revision, watchers, renewals, renewed_time, started_time, address
FROM (
    SELECT revision >= $1
           AND ($2::bytea IS NULL
                OR CASE revision
                       WHEN $1 THEN nonce = $2
                       ELSE NOT EXISTS (SELECT FROM changes WHERE changes.revision = $1 AND changes.nonce <> $2)
                   END) AS has_it
    FROM state
) AS log
LEFT JOIN replicas ON log.has_it AND ($3::uuid[] IS NULL OR replica_id = ANY($3))
ORDER BY started_time, replica_id
"""

# A locked row is being renewed, reported or pruned: it stays, and nobody waits.
PRUNE = """
DELETE FROM replicas
WHERE replica_id = (
    SELECT replica_id FROM replicas
    WHERE replica_id = $1 AND renewals = $2 AND applied_revision < $3
    FOR UPDATE SKIP LOCKED
)
RETURNING true
"""

DELETE = "DELETE FROM replicas WHERE replica_id = $1 RETURNING true"

# Waits for a transaction that has inserted this id and is not over, whose COMMIT may be on its way; whatever becomes of it,
# the row is there to be deleted afterwards.
CLAIM = """
INSERT INTO replicas (replica_id, epoch, hold_ms, applied_revision, renewals, renewed_time, started_time, address)
SELECT $1, epoch, $2, revision, 0, clock_timestamp(), clock_timestamp(), '' FROM state
ON CONFLICT (replica_id) DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Registered:
    """Where the log stood when the row was made: this replica has applied everything up to there, being empty."""

    epoch: int
    number: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Renewed:
    """Where the log stood when the lease was renewed, and the database's time (microseconds since the Unix epoch)."""

    epoch: int
    number: int
    nonce: bytes
    database_us: int


async def register(connection: Connection, replica_id: str, hold_ms: int, address: str) -> Registered:
    """Makes the row of a new registration. `replica_id` is random and was never used before.

    For a `Line` only: it drops the connection, and with it the transaction, when something goes wrong in here.
    """
    await begin(connection, Bounds.of(hold_ms))
    row = await connection.fetchrow(REGISTER, replica_id, hold_ms, address)
    if row is None:
        raise unseeded()
    await failpoints.reach(Failpoint.REGISTER_BEFORE_COMMIT)
    await connection.execute("COMMIT")
    return Registered(row["epoch"], row["revision"], row["nonce"])


async def renew(connection: Connection, replica_id: str) -> Renewed | None:
    """Renews the lease; None if the row is gone, and with it the lease."""
    row = await connection.fetchrow(RENEW, replica_id)
    return None if row is None else Renewed(row["epoch"], row["revision"], row["nonce"], row["database_us"])


async def report(connection: Connection, replica_id: str, number: int, nonce: bytes, watchers: int = 0) -> bool:
    """Says that everything up to `number` is applied here; False if the row is gone, further on, or of another history."""
    return bool(await connection.fetchval(REPORT, replica_id, number, nonce, watchers))


async def read_rows(connection: Connection) -> list[ReplicaRow]:
    """All rows, in a snapshot of this moment. `epoch` is each row's own, in which its revisions count."""
    return [_row(row) for row in await connection.fetch(READ_ROWS)]


async def read_rows_at(
    connection: Connection, number: int, nonce: bytes | None, replica_ids: Sequence[str] | None = None
) -> list[ReplicaRow] | None:
    """All rows, or those of `replica_ids`, as a server shows them that has the change `number`, with this nonce.

    None: this one lacks it, as a deposed primary does, which does not know either who has registered since.
    """
    wanted = None if replica_ids is None else list(replica_ids)
    found = await connection.fetch(READ_ROWS_AT, number, nonce, wanted)
    if not found or not found[0]["has_it"]:
        return None
    return [_row(row) for row in found if row["replica_id"] is not None]


async def prune(connection: Connection, replica_id: str, renewals: int, number: int) -> bool:
    """Deletes the row if it stood still since it was read with `renewals` and has not reported `number`."""
    return bool(await connection.fetchval(PRUNE, replica_id, renewals, number))


async def delete(connection: Connection, replica_id: str) -> bool:
    """Deletes the row of a replica that is known to allow nothing any more; False if it was gone."""
    return bool(await connection.fetchval(DELETE, replica_id))


async def withdraw(connection: Connection, replica_id: str, hold_ms: int) -> None:
    """Sees to it that there is no row of a registration whose answer was not awaited, and that none comes later.

    For a `Line` only, like `register`.
    """
    await begin(connection, Bounds.of(hold_ms))
    await connection.execute(CLAIM, replica_id, hold_ms)
    await connection.execute(DELETE, replica_id)
    await connection.execute("COMMIT")


def _row(row: asyncpg.Record) -> ReplicaRow:
    return ReplicaRow(
        replica_id=str(row["replica_id"]),
        epoch=row["epoch"],
        hold_ms=row["hold_ms"],
        applied_revision=row["applied_revision"],
        renewals=row["renewals"],
        watchers=row["watchers"],
        renewed_time=row["renewed_time"],
        started_time=row["started_time"],
        address=row["address"],
    )
