"""Lists of events: what each filter finds, that pages neither skip nor repeat, and which indexes are read."""

from __future__ import annotations

import itertools
import json
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from doorward_server.model import AuditEvent, Change, Page, Refusal
from doorward_server.storage import accounts, audit_lists, changes, refusals
from doorward_server.storage.audit_lists import AuditQuery, ListedEvent, list_events
from doorward_server.storage.changes import Decided, commit
from tests.support.database import opened, put_account

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from doorward_server.model import Json
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Connection, Database

ACCOUNTS = ("acme", "globex", None)
ACTORS = ("operator:root", "token:a", "direct")
ACTIONS = ("RevokeToken", "IssueToken", "DisableToken")
SUBJECTS = ("token:a", "token:b", "account:acme", "catalog:")
TOKENS = ((), (), ("a", "c"), ("b", "c"))


async def write(database: Database, event: AuditEvent, tokens: tuple[str, ...] = ()) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        before = await accounts.read(tx.connection, "acme")
        await accounts.upsert_account(tx, before, "acme", f"Acme at {tx.now}", "team")
        subjects = (event.subject, *(f"token:{token}" for token in tokens))
        return changes.Decided(None, Change("Test", None, subjects), event)

    await commit(database, decide, accounts=["acme"])


@pytest.fixture
async def some(database: Database) -> list[ListedEvent]:
    """Sixty events of all kinds, and as many refusals; the events, newest first."""
    dice = random.Random(7)  # noqa: S311 - the same every time
    await put_account(database, "acme")
    refused = []
    for number in range(60):
        actor, action, subject = dice.choice(ACTORS), dice.choice(ACTIONS), dice.choice(SUBJECTS)
        account_id = dice.choice(ACCOUNTS)
        tokens = tuple(token for token in dice.choice(TOKENS) if f"token:{token}" != subject)
        event = AuditEvent(actor, action, subject, account_id, {"n": number}, None, "alice", "10.0.0.1")
        await write(database, event, tokens)
        refusal = Refusal(actor, action, subject, account_id, "TOKEN_NOT_FOUND", "10.0.0.1", number)
        refused.append((1_000_000 * (60 - number), refusal))
    async with database.reading() as connection:
        await refusals.write(connection, refused)
        listed = await list_events(connection, AuditQuery(), Page(1000))
    assert len(listed.events) == 61
    assert listed.next_key is None
    return listed.events


async def everything(database: Database, query: AuditQuery, size: int) -> list[ListedEvent]:
    """All pages of `size`, one behind the other."""
    found: list[ListedEvent] = []
    page = Page(size)
    while True:
        async with database.reading() as connection:
            listed = await list_events(connection, query, page)
        found += listed.events
        if listed.next_key is None:
            return found
        page = Page(size, listed.next_key)


def matches(event: ListedEvent, query: AuditQuery) -> bool:
    """What the contract says of the filters, row by row."""
    return (
        query.account_id in {None, event.account_id}
        and (query.token_id is None or f"token:{query.token_id}" == event.subject or query.token_id in event.tokens)
        and query.actor in {None, event.actor}
        and query.action in {None, event.action}
        and (query.start_time is None or event.time >= query.start_time)
        and (query.end_time is None or event.time < query.end_time)
    )


def every_query(events: list[ListedEvent]) -> list[dict[str, Any]]:
    """Every combination of a value and none of each filter."""
    spans = ((None, None), (events[40].time, events[10].time))
    return [
        {
            "account_id": account_id,
            "token_id": token_id,
            "actor": actor,
            "action": action,
            "start_time": span[0],
            "end_time": span[1],
        }
        for account_id, token_id, actor, action, span in itertools.product(
            (None, "acme"), (None, "a", "c"), (None, "operator:root", "token:a"), (None, "IssueToken"), spans
        )
    ]


async def test_every_combination_of_filters_finds_what_matches_in_pages_of_any_size(
    database: Database, some: list[ListedEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few rows for a page that most combinations need several.
    monkeypatch.setattr(audit_lists, "MOST_READ", 9)
    for fields in every_query(some):
        query = AuditQuery(**fields)
        wanted = [event for event in some if matches(event, query)]
        for size in (1, 4, 1000):
            assert await everything(database, query, size) == wanted, (fields, size)


async def test_refusals_are_found_by_the_same_filters(
    database: Database, some: list[ListedEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_lists, "MOST_READ", 9)
    refused = await everything(database, AuditQuery(refusals=True), 7)
    assert [refusal.suppressed for refusal in refused] == list(range(59, -1, -1))
    assert {refusal.reason for refusal in refused} == {"TOKEN_NOT_FOUND"}
    for fields in every_query(refused):
        query = AuditQuery(refusals=True, **fields)
        wanted = [event for event in refused if matches(event, query)]
        for size in (3, 1000):
            assert await everything(database, query, size) == wanted, (fields, size)


async def test_an_event_comes_back_as_it_was_written(database: Database) -> None:
    await put_account(database, "acme")
    after: dict[str, Json] = {
        "name": "Ünïcode ☃",
        "tokens": 2**60,
        "tags": ["b", "a"],
        "deleted": False,
        "plan": {"z": 1, "a": None},
    }
    event = AuditEvent("operator:root", "PutAccount", "account:acme", "acme", None, after, "alice", "10.0.0.9")
    await write(database, event, ("a", "b"))
    async with database.reading() as connection:
        listed = (await list_events(connection, AuditQuery(), Page(1))).events[0]
    assert (listed.event_id, listed.epoch, listed.number) == (2, 1, 2)
    assert (listed.before, listed.after, listed.tokens) == (None, after, ("a", "b"))
    told = (listed.actor, listed.action, listed.subject, listed.account_id, listed.on_behalf_of, listed.peer)
    assert told == ("operator:root", "PutAccount", "account:acme", "acme", "alice", "10.0.0.9")
    assert (listed.reason, listed.suppressed) == ("", 0)


async def test_what_is_written_between_two_pages_neither_repeats_nor_skips_a_row(
    database: Database, some: list[ListedEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_lists, "MOST_READ", 9)
    query = AuditQuery(action="IssueToken", account_id="globex")
    found: list[ListedEvent] = []
    page = Page(2)
    while True:
        async with database.reading() as connection:
            listed = await list_events(connection, query, page)
        found += listed.events
        if listed.next_key is None:
            break
        page = Page(2, listed.next_key)
        await write(database, AuditEvent("operator:root", "IssueToken", "token:new", "globex"))
    assert found == [event for event in some if matches(event, query)]


# ---- which indexes are read

MANY = """
INSERT INTO audit_events
    (time, event_id, epoch, revision, account_id, actor, on_behalf_of, action, subject, tokens, before, after, peer, chain)
SELECT now() - make_interval(secs => number * 67 % 2000000), 1000000 + number, 1, number, 'account' || number % 500,
       CASE WHEN number % 3 = 0 THEN 'token:t' || number % 700 ELSE 'operator:o' || number % 5 END, '',
       'Action' || number % 20, 'token:t' || number % 5000,
       CASE WHEN number % 1000 = 0 THEN ARRAY['x' || number % 3000, 'y'] END, NULL, NULL, '10.0.0.1',
       decode(repeat('00', 32), 'hex')
FROM generate_series(1, 30000) AS number
WHERE now() - make_interval(secs => number * 67 % 2000000) >= date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
"""
LAST_MONTH = """
DO $$
DECLARE first_day timestamptz := date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
BEGIN
    EXECUTE format('CREATE TABLE audit_events_before PARTITION OF audit_events FOR VALUES FROM (%L) TO (%L)',
                   first_day - interval '28 days', first_day);
END
$$
"""


async def plan_of(connection: Connection, query: AuditQuery) -> str:
    """How the page's statement is run, with what it really read."""
    statements = audit_lists.REFUSALS if query.refusals else audit_lists.CHANGES
    arguments = (
        query.account_id,
        None if query.token_id is None else f"token:{query.token_id}",
        query.token_id,
        query.actor,
        query.action,
        query.start_time or datetime.min.replace(tzinfo=UTC),
        query.end_time or datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        2**62,
        100,
        100 if audit_lists._is_alone(query) else 5000,
    )
    explain = "EXPLAIN (ANALYZE, FORMAT JSON, COSTS OFF, TIMING OFF) " + statements[audit_lists._leading(query)]
    return str(await connection.fetchval(explain, *arguments))


def scans(plan: Any) -> list[dict[str, Any]]:
    """Every node that reads a table or an index, and that was run."""
    node = plan.get("Plan", plan)
    found = [node] if "Scan" in node["Node Type"] and node.get("Actual Loops") else []
    return found + [scan for child in node.get("Plans", ()) for scan in scans(child)]


@pytest.fixture
async def many(database_url: str) -> AsyncIterator[Connection]:
    """A connection to a database with events of two months."""
    # A hold so long that the machine may be busy while they are made.
    async with opened(database_url, hold_ms=60_000) as database, database.session() as connection:
        await connection.execute(LAST_MONTH)
        await connection.execute(MANY)
        await connection.execute("ANALYZE audit_events")
        yield connection


async def test_a_page_is_read_from_the_index_of_its_narrowest_filter(many: Connection) -> None:
    for query, index in (
        (AuditQuery(account_id="account7"), "account_id_time"),
        (AuditQuery(token_id="t77"), "subject_time"),
        (AuditQuery(token_id="x2000"), "tokens"),
        (AuditQuery(actor="token:t7"), "actor_time"),
        (AuditQuery(account_id="account7", actor="operator:o1"), "account_id_time"),
        (AuditQuery(action="Action3"), "action_time"),
        (AuditQuery(), "pkey"),
    ):
        read = scans(json.loads(await plan_of(many, query))[0])
        assert not [scan for scan in read if scan["Node Type"] == "Seq Scan" and scan["Actual Rows"]], (query, read)
        assert any(index in scan.get("Index Name", "") for scan in read), (query, read)
        rows = sum(scan["Actual Rows"] for scan in read if "Index Name" in scan)
        assert rows <= 300, (query, read, "no more than the page needs")


async def test_months_outside_the_span_are_not_read(many: Connection) -> None:
    month: datetime = await many.fetchval("SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'")
    before = json.loads(await plan_of(many, AuditQuery(end_time=month - timedelta(days=1))))[0]
    since = json.loads(await plan_of(many, AuditQuery(start_time=month)))[0]
    assert {scan["Relation Name"] for scan in scans(before) if "Relation Name" in scan} <= {"audit_events_before"}
    assert "audit_events_before" not in {scan.get("Relation Name") for scan in scans(since)}
