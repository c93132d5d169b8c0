"""Lists of audit events and of refusals, newest first, by key (contract: TokenAdmin.ListAuditEvents).

Each list reads one index from where the last page ended, the audit's month by month: the filter that narrows most leads,
the others are looked at row by row. A page reads at most `MOST_READ` rows for that, so that rare combinations cost several
short pages and not one long one. Called by `service/audit.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from doorward_server.model import Json, Page
    from doorward_server.storage.connect import Connection

__all__ = ["AuditQuery", "EventPage", "ListedEvent", "list_events"]

MOST_READ: Final = 5_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EVER: Final = datetime.max.replace(tzinfo=UTC)
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_BEHIND_ALL: Final = 2**63 - 1

# $1 account, $2 subject, $3 token, $4 actor, $5 action, $6 and $7 the times, $8 and $9 the last key, $10 the page's size,
# $11 how many rows may be read. `time <= $8` says what the pair says too, but in a way that skips whole partitions.
EVENTS = """
SELECT time, event_id, epoch, revision, account_id, actor, on_behalf_of, action, subject, tokens, before, after, peer,
       ''::text AS reason, 0 AS suppressed
FROM audit_events
WHERE time >= $6 AND time < $7 AND time <= $8 AND (time, event_id) < ($8, $9)"""
REFUSED = """
SELECT time, refusal_id AS event_id, 0::bigint AS epoch, 0::bigint AS revision, account_id, actor, ''::text AS on_behalf_of,
       action, subject, NULL::text[] AS tokens, NULL::jsonb AS before, NULL::jsonb AS after, peer, reason, suppressed
FROM refusals
WHERE time >= $6 AND time < $7 AND (time, refusal_id) < ($8, $9)"""
BY_ACCOUNT = " AND account_id = $1"
BY_SUBJECT = " AND subject = $2"
BY_TOKEN = " AND tokens @> ARRAY[$3::text]"  # noqa: S105 - SQL
BY_ACTOR = " AND actor = $4"
BY_ACTION = " AND action = $5"
NEWEST_FIRST = " ORDER BY time DESC, event_id DESC LIMIT $11"
REFUSED_FIRST = " ORDER BY time DESC, refusal_id DESC LIMIT $11"

# `led` has the rows that the leading filter finds; it is read no further than the page needs. Only where they are used up
# and the page is not full, the last of them is looked up: there the next page begins. One statement, hence one snapshot.
PAGE = """
WITH page AS (
    SELECT * FROM (
"""
FILTERED = """
    ) AS led
    WHERE ($1::text IS NULL OR account_id = $1)
      AND ($2::text IS NULL OR subject = $2 OR tokens @> ARRAY[$3::text])
      AND ($4::text IS NULL OR actor = $4)
      AND ($5::text IS NULL OR action = $5)
    LIMIT $10
)
SELECT *, false AS is_edge FROM page
UNION ALL
SELECT *, true FROM (
    SELECT * FROM (
"""
EDGE = """
    ) AS led
    OFFSET $11 - 1
) AS edge
WHERE (SELECT count(*) FROM page) < $10
ORDER BY time DESC, event_id DESC, is_edge
"""

# Of a token: where it is the subject, and where it is one of several. No row is both.
ONE = "SELECT * FROM (("
AND_THE_OTHER = ") UNION ALL ("
BOTH = ")) AS both_kinds"
ITS_OWN = EVENTS + BY_SUBJECT + NEWEST_FIRST
AMONG_OTHERS = EVENTS + BY_TOKEN + NEWEST_FIRST
OF_TOKEN = ONE + ITS_OWN + AND_THE_OTHER + AMONG_OTHERS + BOTH + NEWEST_FIRST
EVENTS_OF_TOKEN: Final = PAGE + OF_TOKEN + FILTERED + OF_TOKEN + EDGE
BY_ACTOR_FIRST = EVENTS + BY_ACTOR + NEWEST_FIRST
EVENTS_OF_ACTOR: Final = PAGE + BY_ACTOR_FIRST + FILTERED + BY_ACTOR_FIRST + EDGE
BY_ACCOUNT_FIRST = EVENTS + BY_ACCOUNT + NEWEST_FIRST
EVENTS_OF_ACCOUNT: Final = PAGE + BY_ACCOUNT_FIRST + FILTERED + BY_ACCOUNT_FIRST + EDGE
BY_ACTION_FIRST = EVENTS + BY_ACTION + NEWEST_FIRST
EVENTS_OF_ACTION: Final = PAGE + BY_ACTION_FIRST + FILTERED + BY_ACTION_FIRST + EDGE
BY_TIME_ALONE = EVENTS + NEWEST_FIRST
ALL_EVENTS: Final = PAGE + BY_TIME_ALONE + FILTERED + BY_TIME_ALONE + EDGE

REFUSED_SUBJECT = REFUSED + BY_SUBJECT + REFUSED_FIRST
REFUSALS_OF_TOKEN: Final = PAGE + REFUSED_SUBJECT + FILTERED + REFUSED_SUBJECT + EDGE
REFUSED_ACTOR = REFUSED + BY_ACTOR + REFUSED_FIRST
REFUSALS_OF_ACTOR: Final = PAGE + REFUSED_ACTOR + FILTERED + REFUSED_ACTOR + EDGE
REFUSED_ACCOUNT = REFUSED + BY_ACCOUNT + REFUSED_FIRST
REFUSALS_OF_ACCOUNT: Final = PAGE + REFUSED_ACCOUNT + FILTERED + REFUSED_ACCOUNT + EDGE
REFUSED_ACTION = REFUSED + BY_ACTION + REFUSED_FIRST
REFUSALS_OF_ACTION: Final = PAGE + REFUSED_ACTION + FILTERED + REFUSED_ACTION + EDGE
REFUSED_ALL = REFUSED + REFUSED_FIRST
ALL_REFUSALS: Final = PAGE + REFUSED_ALL + FILTERED + REFUSED_ALL + EDGE

CHANGES: Final = {
    "token": EVENTS_OF_TOKEN,
    "actor": EVENTS_OF_ACTOR,
    "account": EVENTS_OF_ACCOUNT,
    "action": EVENTS_OF_ACTION,
    "": ALL_EVENTS,
}
REFUSALS: Final = {
    "token": REFUSALS_OF_TOKEN,
    "actor": REFUSALS_OF_ACTOR,
    "account": REFUSALS_OF_ACCOUNT,
    "action": REFUSALS_OF_ACTION,
    "": ALL_REFUSALS,
}


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which events: those that match everything that is set. `start_time` belongs to the span, `end_time` does not.

    `within_account`: nothing but the account's own rows is looked at, so that no page tells by its length what others have.
    """

    refusals: bool = False
    account_id: str | None = None
    token_id: str | None = None
    actor: str | None = None
    action: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    within_account: bool = False


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """One event, or one refusal: then `epoch` and `number` are 0, and `reason` says why it was refused."""

    event_id: int
    time: datetime
    epoch: int
    number: int
    account_id: str | None
    actor: str
    on_behalf_of: str
    action: str
    subject: str
    tokens: tuple[str, ...]
    before: Mapping[str, Json] | None
    after: Mapping[str, Json] | None
    peer: str
    reason: str
    suppressed: int


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page, newest first. `next_key`: for `Page.after` of the next one; None: this was the last."""

    events: list[ListedEvent]
    next_key: tuple[str, str] | None


async def list_events(connection: Connection, query: AuditQuery, page: Page) -> EventPage:
    """A page of the events; it may be shorter than asked for, even empty, without being the last."""
    after_time, after_id = _EVER, _BEHIND_ALL
    if page.after is not None:
        time_us, event_id = page.after
        after_time, after_id = _EPOCH + timedelta(microseconds=int(time_us)), int(event_id)
    statements = REFUSALS if query.refusals else CHANGES
    rows = await connection.fetch(
        statements[_leading(query)],
        query.account_id,
        None if query.token_id is None else f"token:{query.token_id}",
        query.token_id,
        query.actor,
        query.action,
        query.start_time or _NEVER,
        query.end_time or _EVER,
        after_time,
        after_id,
        page.size,
        page.size if _is_alone(query) else max(MOST_READ, page.size),
    )
    events = [_event(row) for row in rows if not row["is_edge"]]
    goes_on = len(events) >= page.size or (rows and rows[-1]["is_edge"])
    return EventPage(events, _key(rows[-1]) if goes_on else None)


def _leading(query: AuditQuery) -> str:
    """The filter whose index is read: the one that few rows match, as a rule. A token acts in one account; operators in all."""
    if query.within_account:
        return "account"
    if query.token_id is not None:
        return "token"
    if query.actor is not None and (query.account_id is None or query.actor.startswith("token:")):
        return "actor"
    if query.account_id is not None:
        return "account"
    return "" if query.action is None else "action"


def _is_alone(query: AuditQuery) -> bool:
    """Whether the leading filter is the only one, so that what it finds needs no second look."""
    return sum(value is not None for value in (query.account_id, query.token_id, query.actor, query.action)) <= 1


def _key(row: asyncpg.Record) -> tuple[str, str]:
    return str((row["time"] - _EPOCH) // timedelta(microseconds=1)), str(row["event_id"])


def _event(row: asyncpg.Record) -> ListedEvent:
    before, after = row["before"], row["after"]
    return ListedEvent(
        event_id=row["event_id"],
        time=row["time"],
        epoch=row["epoch"],
        number=row["revision"],
        account_id=row["account_id"],
        actor=row["actor"],
        on_behalf_of=row["on_behalf_of"],
        action=row["action"],
        subject=row["subject"],
        tokens=tuple(row["tokens"] or ()),
        before=None if before is None else json.loads(before),
        after=None if after is None else json.loads(after),
        peer=row["peer"],
        reason=row["reason"],
        suppressed=row["suppressed"],
    )
