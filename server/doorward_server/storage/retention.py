"""Deletes what is kept no longer, a batch at a time (design section 6, Retention). None of it goes through the door.

Each is one statement and so one transaction; of several replicas one does its work, the others find that it is not their
turn and delete nothing. Called by `service/retention.py`, and for the audit's months see `audit_retention.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from doorward_server.storage.connect import Connection

__all__ = ["FROM_START", "DeletedTokens", "delete_changes", "delete_refusals", "delete_tokens"]

# Looks at the oldest ones alone. What every replica has applied nobody reads any more; each row of `replicas` says what
# its replica has at least applied, and a report names a later change, whose row is here. The newest change always stays:
# who finds it, and not the one that would be next, knows that the log was truncated.
DELETE_CHANGES = """
WITH deleted AS (
    DELETE FROM changes
    WHERE revision IN (
        SELECT revision FROM (SELECT revision, commit_time FROM changes ORDER BY revision LIMIT $2) AS oldest
        WHERE commit_time < clock_timestamp() - $1::interval
          AND revision < (SELECT least((SELECT revision FROM state), (SELECT min(applied_revision) FROM replicas)))
    )
      AND (SELECT pg_try_advisory_xact_lock(hashtextextended('doorward retention', 0)))
    RETURNING 1
)
SELECT count(*) FROM deleted
"""

# By tokens_by_revocation. A token to which another one's secret was handed out stays as long as that one does: through it
# runs the line from a leaked token to everything that was obtained with it. The rest of its rows go with it. For replicas
# nothing changes that could make a yes: what they hold of it says no, and what they load next says that it is unknown.
DELETE_TOKENS = """
WITH old AS (
    SELECT token_id, revoke_time FROM tokens
    WHERE revoke_time < clock_timestamp() - $1::interval AND (revoke_time, token_id) > ($2, $3)
    ORDER BY revoke_time, token_id LIMIT $4
), deleted AS (
    DELETE FROM tokens USING old
    WHERE tokens.token_id = old.token_id
      AND NOT EXISTS (
          SELECT FROM token_secrets
          WHERE issued_to = 'token:' || old.token_id AND token_secrets.token_id <> old.token_id
      )
      AND (SELECT pg_try_advisory_xact_lock(hashtextextended('doorward retention', 0)))
    RETURNING 1
)
SELECT (SELECT count(*) FROM deleted) AS deleted, (SELECT count(*) FROM old) AS seen, revoke_time, token_id
FROM old ORDER BY revoke_time DESC, token_id DESC LIMIT 1
"""

# By refusals_by_time.
DELETE_REFUSALS = """
WITH deleted AS (
    DELETE FROM refusals
    WHERE refusal_id IN (
        SELECT refusal_id FROM refusals WHERE time < clock_timestamp() - $1::interval ORDER BY time LIMIT $2
    )
      AND (SELECT pg_try_advisory_xact_lock(hashtextextended('doorward retention', 0)))
    RETURNING 1
)
SELECT count(*) FROM deleted
"""


@dataclass(frozen=True, slots=True)
class DeletedTokens:
    """How many went of how many that were looked at, and the last of these: there the next batch begins."""

    deleted: int
    seen: int
    revoke_time: datetime
    token_id: str


FROM_START: Final = DeletedTokens(0, 0, datetime.min.replace(tzinfo=UTC), "")


async def delete_changes(connection: Connection, kept: timedelta, limit: int) -> int:
    """Deletes changes that are older than `kept` and applied by every replica, the oldest first; how many."""
    deleted: int = await connection.fetchval(DELETE_CHANGES, kept, limit)
    return deleted


async def delete_tokens(
    connection: Connection, kept: timedelta, limit: int, behind: DeletedTokens = FROM_START
) -> DeletedTokens:
    """Deletes tokens that were revoked longer than `kept` ago, the first revoked first, `behind` the last ones looked at."""
    row = await connection.fetchrow(DELETE_TOKENS, kept, behind.revoke_time, behind.token_id, limit)
    if row is None:
        return FROM_START
    return DeletedTokens(row["deleted"], row["seen"], row["revoke_time"], row["token_id"])


async def delete_refusals(connection: Connection, kept: timedelta, limit: int) -> int:
    """Deletes refusals older than `kept`, the oldest first; how many."""
    deleted: int = await connection.fetchval(DELETE_REFUSALS, kept, limit)
    return deleted
