"""Lets go of a pepper key: of one that nothing depends on any more, or of one that is lost (design section 4, Peppers).

Depending on it are secrets that may still be presented and have their digest under it: without the key each costs a
bcrypt, once. What is revoked or rotated out does not count. Called by `doorward pepper retire` and by
`service/pepper_loss.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward_server.storage.failures import unseeded

if TYPE_CHECKING:
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = ["Dependents", "declare_lost", "forget_key"]

# One statement, so that what was counted is what the decision was made on. token_secrets has an index on pepper_id;
# operators are few.
FORGET = """
WITH dependents AS (
    SELECT
        (SELECT count(*)
         FROM token_secrets
         JOIN tokens USING (token_id)
         JOIN accounts USING (account_id)
         WHERE token_secrets.pepper_id = $1
           AND (token_secrets.not_after IS NULL OR token_secrets.not_after > clock_timestamp())
           AND tokens.revoke_time IS NULL
           AND accounts.state <> 'deleted') AS token_secrets,
        (SELECT count(*) FROM operators WHERE pepper_id = $1 AND revoke_time IS NULL) AS operators
), forgotten AS (
    UPDATE state SET pepper_fingerprints = pepper_fingerprints - $1
    FROM dependents
    WHERE dependents.token_secrets = 0 AND dependents.operators = 0 AND pepper_fingerprints ? $1
)
SELECT token_secrets, operators FROM dependents
"""


# Digests under it stay: they say nothing any more, and the next proof of each secret replaces its own.
DECLARE_LOST = """
UPDATE state SET pepper_fingerprints = pepper_fingerprints - $1
WHERE pepper_fingerprints ? $1
RETURNING
    (SELECT count(*)
     FROM token_secrets
     JOIN tokens USING (token_id)
     JOIN accounts USING (account_id)
     WHERE token_secrets.pepper_id = $1
       AND (token_secrets.not_after IS NULL OR token_secrets.not_after > clock_timestamp())
       AND tokens.revoke_time IS NULL
       AND accounts.state <> 'deleted') AS token_secrets,
    (SELECT count(*) FROM operators WHERE pepper_id = $1 AND revoke_time IS NULL) AS operators
"""


@dataclass(frozen=True, slots=True)
class Dependents:
    """Secrets of tokens, and operators' credentials, with a digest under the key."""

    token_secrets: int
    operators: int

    @property
    def any(self) -> bool:
        """Whether retiring the key costs anybody anything."""
        return self.token_secrets > 0 or self.operators > 0


async def forget_key(connection: Connection, key_id: str) -> Dependents:
    """What depends on the key `key_id`. If nothing does, its fingerprint is forgotten: servers may then lack the key."""
    row = await connection.fetchrow(FORGET, key_id)
    if row is None:  # a SELECT of two counts has one row, whatever the database holds
        raise unseeded()
    return Dependents(row["token_secrets"], row["operators"])


async def declare_lost(tx: Transaction, key_id: str) -> Dependents | None:
    """Servers may lack the key from now on; what depends on it. None: the database knows no such key."""
    row = await tx.connection.fetchrow(DECLARE_LOST, key_id)
    return None if row is None else Dependents(row["token_secrets"], row["operators"])
