"""What an event's digest covers, and the monthly partitions. The chain itself: test_changes.py, test_audit_chain.py."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from doorward_server.model import AuditEvent
from doorward_server.storage import audit

if TYPE_CHECKING:
    from doorward_server.storage.pool import Database

TIME = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
EVENT = AuditEvent("operator:a", "IssueToken", "token:b", "acme", {"x": 1}, {"x": 2}, "alice", "10.0.0.1")


@pytest.mark.parametrize(
    "changed",
    [
        {"actor": "operator:b"},
        {"action": "RevokeToken"},
        {"subject": "token:c"},
        {"account_id": None},
        {"before": None},
        {"before": {}},
        {"after": {"x": "2"}},
        {"on_behalf_of": ""},
        {"peer": ""},
        {"tokens": ("c",)},
    ],
)
def test_the_digest_covers_everything_that_is_stored(changed: dict[str, object]) -> None:
    assert audit.event_digest(replace(EVENT, **changed), TIME) != audit.event_digest(EVENT, TIME)  # type: ignore[arg-type]


def test_the_digest_covers_the_time() -> None:
    assert audit.event_digest(EVENT, TIME + timedelta(microseconds=1)) != audit.event_digest(EVENT, TIME)


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = replace(EVENT, after={"a": 1, "b": {"c": 2, "d": [3]}})
    other = replace(EVENT, after={"b": {"d": [3], "c": 2}, "a": 1})
    assert audit.event_digest(one, TIME) == audit.event_digest(other, TIME)


async def test_partitions_are_made_only_where_they_are_missing(database: Database) -> None:
    async with database.reading() as connection:
        assert await audit.ensure_partitions(connection) == 0
        await connection.execute(
            "DO $$ BEGIN EXECUTE format('DROP TABLE %I', 'audit_events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'));"
            " END $$"
        )
        assert await audit.ensure_partitions(connection) == 1
