"""The rows of `refusals`: what was refused, outside the audit's chain (design section 5).

Not through the door: no decision reads them. `service/refusals.py` limits their rate and writes them in batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.model import Refusal
    from doorward_server.storage.connect import Connection

__all__ = ["write"]

# Each was refused a while before it is written; the time is the database's all the same, less that while. Rows get their
# ids in the order of the arrays.
WRITE = """
INSERT INTO refusals (time, account_id, actor, action, subject, reason, peer, suppressed)
SELECT clock_timestamp() - make_interval(secs => age_us / 1000000.0),
       account_id, actor, action, subject, reason, peer, suppressed
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::integer[])
     WITH ORDINALITY AS given (age_us, account_id, actor, action, subject, reason, peer, suppressed, place)
ORDER BY place
"""


async def write(connection: Connection, refused: Sequence[tuple[int, Refusal]]) -> None:
    """Writes some refusals in one statement, each with its age: how many microseconds ago it was refused."""
    await connection.execute(
        WRITE,
        [age_us for age_us, _ in refused],
        [refusal.account_id for _, refusal in refused],
        [refusal.actor for _, refusal in refused],
        [refusal.action for _, refusal in refused],
        [refusal.subject for _, refusal in refused],
        [refusal.reason for _, refusal in refused],
        [refusal.peer for _, refusal in refused],
        [refusal.suppressed for _, refusal in refused],
    )
