"""The audit's chain: what an event's digest covers, how events are tied together, and the monthly partitions (design 5).

`changes.py` writes events, each chained to the one before: chain = SHA-256(former chain ‖ event_id ‖ epoch ‖ revision ‖
digest), the three numbers as 8 bytes each, the first former chain being 32 zeros. `state` has the newest event's id and
chain. `audit_chain.py` reads the chain back, `audit_lists.py` lists events, `audit_retention.py` drops old ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from doorward_server.model import AuditEvent, Change, Json
    from doorward_server.storage.connect import Connection

__all__ = ["about_tokens_of", "chained", "ensure_partitions", "event_digest", "row_of"]

# Two months ahead, looked after at every start and once a day: a partition is missing only after weeks of neglect.
MONTHS_AHEAD: Final = 2

_TOKEN: Final = "token:"  # noqa: S105 - a kind, not a secret

ENSURE_PARTITIONS = "SELECT ensure_audit_partitions($1)"


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
        "tokens": list(event.tokens),
        "before": None if event.before is None else dict(event.before),
        "after": None if event.after is None else dict(event.after),
        "peer": event.peer,
    }
    _refuse_fractions(content)
    return hashlib.sha256(_canonical(content).encode("ascii")).digest()


def chained(former: bytes, event_id: int, epoch: int, number: int, digest: bytes) -> bytes:
    """The chain of an event, as the database makes it of the chain of the event before."""
    numbers = b"".join(value.to_bytes(8, "big", signed=True) for value in (event_id, epoch, number))
    return hashlib.sha256(former + numbers + digest).digest()


def about_tokens_of(change: Change, event: AuditEvent) -> AuditEvent:
    """`event` with the tokens that `change` touches besides its subject: whoever looks for one of them finds it."""
    tokens = tuple(
        subject.removeprefix(_TOKEN)
        for subject in change.subjects
        if subject.startswith(_TOKEN) and subject != event.subject
    )
    return replace(event, tokens=tokens) if tokens else event


def row_of(event: AuditEvent, time: datetime) -> tuple[object, ...]:
    """The event's columns in the order of the statements that insert one: from its time to its peer."""
    return (
        time,
        event.account_id,
        event.actor,
        event.on_behalf_of,
        event.action,
        event.subject,
        list(event.tokens) or None,
        _as_json(event.before),
        _as_json(event.after),
        event.peer,
    )


async def ensure_partitions(connection: Connection) -> int:
    """Makes the partitions that this month and the next two lack; returns how many. Safe to repeat, also at once."""
    made: int = await connection.fetchval(ENSURE_PARTITIONS, MONTHS_AHEAD)
    return made


def _as_json(value: Mapping[str, Json] | None) -> str | None:
    return None if value is None else _canonical(dict(value))


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
