"""The answers that a repeated call gets once more: sealed, for ten minutes, by the database's time (design section 4).

A row is written in the transaction of the mutation that it answers, so that either both are there or neither. The key
holds the caller: another one with the same id finds nothing. What has expired is as good as gone; `delete_expired` is for
retention. Called by `service/idempotency.py`, inside the door.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = ["KEPT", "SealedResponse", "delete_expired", "find", "keep"]

KEPT: Final = timedelta(minutes=10)

FIND = "SELECT request_hash, sealed FROM idempotent_responses WHERE key_hash = $1 AND expires > $2"

# An expired row makes room; one that lives was written meanwhile, under the lock of another account.
KEEP = """
INSERT INTO idempotent_responses AS present (key_hash, caller, request_hash, sealed, expires)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (key_hash) DO UPDATE
SET caller = excluded.caller, request_hash = excluded.request_hash, sealed = excluded.sealed, expires = excluded.expires
WHERE present.expires <= $6
RETURNING true
"""

# Reads idempotent_responses_by_expiry from its start. A row that a mutation is replacing is left for the next time.
DELETE_EXPIRED = """
WITH expired AS (
    SELECT key_hash FROM idempotent_responses
    WHERE expires <= clock_timestamp() ORDER BY expires LIMIT $1
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM idempotent_responses USING expired WHERE idempotent_responses.key_hash = expired.key_hash RETURNING 1
)
SELECT count(*) FROM deleted
"""


@dataclass(frozen=True, slots=True)
class SealedResponse:
    """What was answered, and a hash of the request that it answered."""

    request_hash: bytes
    sealed: bytes = field(repr=False)


async def find(tx: Transaction, key_hash: bytes) -> SealedResponse | None:
    """The answer kept under this key, if it has not expired at `tx.now`."""
    row = await tx.connection.fetchrow(FIND, key_hash, tx.now)
    return None if row is None else SealedResponse(row["request_hash"], row["sealed"])


async def keep(tx: Transaction, key_hash: bytes, caller: str, response: SealedResponse) -> bool:
    """Keeps the answer of this very mutation for `KEPT`; False if the key has a living one (then nothing is written)."""
    written = await tx.connection.fetchval(
        KEEP, key_hash, caller, response.request_hash, response.sealed, tx.now + KEPT, tx.now
    )
    return bool(written)


async def delete_expired(connection: Connection, limit: int) -> int:
    """Deletes at most `limit` answers that have expired, the oldest first; returns how many. For retention."""
    deleted: int = await connection.fetchval(DELETE_EXPIRED, limit)
    return deleted
