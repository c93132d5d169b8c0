"""The secrets of a token, of which one is current and at most one more still live (design sections 3 and 6).

The current one is the only row without an end, and has the highest version; so no version's number is used twice. Of
secrets that have ended the newest of each recipient stays, since `obtained_by` asks who ever received one, and the others
go with the next rotation: a token that rotates itself for years keeps a handful of rows. Called by `service/rotate.py` and
`service/report_leaked.py`, inside the door: the row of the token's account is locked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from doorward.core.entries import SecretEntry
    from doorward_server.model import StoredSecret
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = ["LiveSecret", "end", "read_ended", "read_live", "rotate"]

READ_LIVE = """
SELECT version, not_after FROM token_secrets
WHERE token_id = $1 AND (not_after IS NULL OR not_after > $2)
ORDER BY version
"""

READ_ENDED = """
SELECT version, digest, pepper_id FROM token_secrets
WHERE token_id = $1 AND not_after <= clock_timestamp() AND digest IS NOT NULL
"""

# Every part sees the rows as they were: `forgotten` takes those that had ended before, `ended` those that were live.
ROTATE = """
WITH ended AS (
    UPDATE token_secrets SET not_after = given.not_after
    FROM unnest($2::integer[], $3::timestamptz[]) AS given (version, not_after)
    WHERE token_secrets.token_id = $1 AND token_secrets.version = given.version
), forgotten AS (
    DELETE FROM token_secrets AS former
    WHERE former.token_id = $1 AND former.not_after <= $4
      AND (former.issued_to = $9 OR EXISTS (
          SELECT FROM token_secrets AS newer
          WHERE newer.token_id = $1 AND newer.version > former.version AND newer.issued_to = former.issued_to
      ))
), added AS (
    INSERT INTO token_secrets (token_id, version, bcrypt_hash, digest, pepper_id, issued_to)
    VALUES ($1, $5, $6, $7, $8, $9)
)
UPDATE tokens SET update_time = $4 WHERE token_id = $1
"""

# Every part sees the rows as they were: `former` has the end that was to be.
END = """
WITH former AS (
    SELECT not_after FROM token_secrets WHERE token_id = $1 AND version = $2 AND not_after > $3
), ended AS (
    UPDATE token_secrets SET not_after = $3 FROM former WHERE token_id = $1 AND version = $2
)
UPDATE tokens SET update_time = $3 FROM former WHERE tokens.token_id = $1 RETURNING former.not_after
"""


@dataclass(frozen=True, slots=True)
class LiveSecret:
    """A secret that still works; `not_after` None: the current one."""

    version: int
    not_after: datetime | None


async def read_live(connection: Connection, token_id: str, now: datetime) -> list[LiveSecret]:
    """The token's secrets that have not ended at `now`, the oldest first and the current one last."""
    return [LiveSecret(row["version"], row["not_after"]) for row in await connection.fetch(READ_LIVE, token_id, now)]


async def read_ended(connection: Connection, token_id: str) -> tuple[SecretEntry, ...]:
    """Those of the token's secrets that have ended and can be told by their digest, as if they had not."""
    rows = await connection.fetch(READ_ENDED, token_id)
    return tuple((row["version"], row["digest"], row["pepper_id"], None) for row in rows)


async def rotate(
    tx: Transaction, token_id: str, ends: Mapping[int, datetime], secret: StoredSecret, issued_to: str
) -> None:
    """Makes `secret` the current one, which `issued_to` (an actor) receives; `ends`: when each one that lives now stops."""
    await tx.connection.execute(
        ROTATE,
        token_id,
        list(ends),
        list(ends.values()),
        tx.now,
        secret.version,
        secret.bcrypt_hash,
        secret.digest,
        secret.pepper_id,
        issued_to,
    )
    tx.wrote_token(token_id)


async def end(tx: Transaction, token_id: str, version: int) -> datetime | None:
    """Ends a secret that was rotated out at `tx.now`; returns when it would have, None if it has (nothing is written)."""
    not_after: datetime | None = await tx.connection.fetchval(END, token_id, version, tx.now)
    if not_after is not None:
        tx.wrote_token(token_id)
    return not_after
