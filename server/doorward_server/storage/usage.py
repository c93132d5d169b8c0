"""The rows of `token_activity`: when each token was last used (design section 5). Not through the door: no decision reads them.

A row is made with its token and goes with it. Written in batches by `replica/usage.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.storage.connect import Connection

__all__ = ["write_uses"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# In the order of the ids, since other replicas write the same rows at the same time; a row that they have just brought
# forward stays as it is, or every replica would write every token each time. A replica's idea of the database's time may
# be a little ahead of it. Tokens that are gone have no row, and the revoked are idle for nobody's list.
WRITE_USES = """
WITH used AS (
    SELECT token_id, least(used_time, clock_timestamp()) AS used_time
    FROM unnest($1::text[], $2::timestamptz[]) AS used (token_id, used_time)
), due AS (
    SELECT token_activity.token_id, used.used_time
    FROM token_activity JOIN used USING (token_id)
    WHERE last_used_time IS NULL OR last_used_time < used.used_time - $3::interval
    ORDER BY token_id
    FOR NO KEY UPDATE OF token_activity
)
UPDATE token_activity
SET last_used_time = greatest(last_used_time, due.used_time),
    idle_since = CASE WHEN idle_since IS NOT NULL THEN greatest(idle_since, due.used_time) END
FROM due WHERE token_activity.token_id = due.token_id
"""


async def write_uses(connection: Connection, uses: Sequence[tuple[str, int]], closer_than: timedelta) -> None:
    """Notes when tokens were used: ids, each with microseconds since the Unix epoch. No row ever moves back.

    What would move a row by no more than `closer_than` is not written.
    """
    ordered = sorted(uses)
    await connection.execute(
        WRITE_USES,
        [token_id for token_id, _ in ordered],
        [_EPOCH + timedelta(microseconds=used_us) for _, used_us in ordered],
        closer_than,
    )
