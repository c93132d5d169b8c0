"""The audit's rows: what an event's digest covers, the monthly partitions, and refusals outside the chain (design section 5).

`changes.py` writes events, each chained to the one before: chain = SHA-256(former chain ‖ revision as 8 bytes ‖ digest).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from doorward_server.model import AuditEvent, Json
    from doorward_server.storage.connect import Connection

__all__ = ["as_json", "ensure_partitions", "event_digest", "record_refusal"]

# Two months ahead, looked after at every start and once a day: a partition is missing only after weeks of neglect.
MONTHS_AHEAD: Final = 2

ENSURE_PARTITIONS = "SELECT ensure_audit_partitions($1)"

INSERT_REFUSAL = """
INSERT INTO refusals (time, account_id, actor, action, subject, reason, peer, suppressed)
VALUES (clock_timestamp(), $1, $2, $3, $4, $5, $6, $7)
"""


def event_digest(event: AuditEvent, time: datetime) -> bytes:
    """SHA-256 of the canonical JSON of everything that is stored of `event`: keys sorted, no blanks, ASCII, UTC time.

    Raises: TypeError for a number with a fraction, since the database would hand it back in another spelling.
    """
    content: dict[str, Json] = {
        "time": time.isoformat(timespec="microseconds"),
        "account_id": event.account_id,
        "actor": event.actor,
        "on_behalf_of": event.on_behalf_of,
        "action": event.action,
        "subject": event.subject,
        "before": None if event.before is None else dict(event.before),
        "after": None if event.after is None else dict(event.after),
        "peer": event.peer,
    }
    _refuse_fractions(content)
    return hashlib.sha256(_canonical(content).encode("ascii")).digest()


def as_json(value: Mapping[str, Json] | None) -> str | None:
    """`value` as the text of a jsonb column."""
    return None if value is None else _canonical(dict(value))


async def ensure_partitions(connection: Connection) -> int:
    """Makes the partitions that this month and the next two lack; returns how many. Safe to repeat, also at once."""
    made: int = await connection.fetchval(ENSURE_PARTITIONS, MONTHS_AHEAD)
    return made


async def record_refusal(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    account_id: str | None,
    reason: str,
    peer: str,
    suppressed: int = 0,
) -> None:
    """Writes that something was refused; `suppressed` like it were not written before this one. The caller limits the rate."""
    await connection.execute(INSERT_REFUSAL, account_id, actor, action, subject, reason, peer, suppressed)


def _canonical(value: Json) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _refuse_fractions(value: Json) -> None:
    if isinstance(value, float):
        raise TypeError("An audit event holds texts, whole numbers, lists and maps, but no number with a fraction.")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_fractions(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_fractions(item)
