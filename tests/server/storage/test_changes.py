"""The one door: what `changes.commit` promises of revisions, the log, the audit chain and the locks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from doorward_server import errors
from doorward_server.model import AuditEvent, Change
from doorward_server.storage import accounts, changes, tokens
from doorward_server.storage.changes import Decided, commit
from doorward_server.storage.failures import StatementRefused
from doorward_server.storage.line import Line
from tests.support.database import change_of, event_of, issue_token, put_account

if TYPE_CHECKING:
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Connection, Database


async def value_of(database: Database, query: str, *arguments: object) -> Any:
    async with database.reading() as connection:
        return await connection.fetchval(query, *arguments)


async def rows_of(database: Database, query: str, *arguments: object) -> list[dict[str, Any]]:
    async with database.reading() as connection:
        return [dict(row) for row in await connection.fetch(query, *arguments)]


async def rename(tx: Transaction, account_id: str) -> Decided[str]:
    before = await accounts.read(tx.connection, account_id)
    await accounts.upsert_account(tx, before, account_id, f"at {tx.now}", "team")
    return Decided(account_id, change_of(f"account:{account_id}", account_id), event_of(f"account:{account_id}"))


async def change_nothing(tx: Transaction) -> Decided[str]:
    return Decided("as before", None, event_of("account:acme", action="Nothing", account_id="acme"))


async def test_revisions_are_gap_free_and_become_visible_in_their_order(database: Database) -> None:
    ids = [f"a{number}" for number in range(8)]
    finished = asyncio.Event()

    async def writer(account_id: str) -> list[int]:
        return [(await put_account(database, account_id)).number for _ in range(8)]

    async def reader() -> int:
        reads = 0
        while not finished.is_set():
            async with database.reading() as connection:
                seen = await changes.read_after(connection, 0, 1000)
            assert [row.number for row in seen] == list(range(1, len(seen) + 1))
            reads += 1
        return reads

    reading = asyncio.create_task(reader())
    written = await asyncio.gather(*(writer(account_id) for account_id in ids[:4] * 5))
    finished.set()

    assert sorted(number for numbers in written for number in numbers) == list(range(1, 161))
    assert await reading > 10


async def test_each_change_has_a_nonce_of_its_own_and_the_state_has_the_last(database: Database) -> None:
    for _ in range(3):
        await put_account(database, "acme")

    async with database.reading() as connection:
        log = await changes.read_after(connection, 0, 10)
        end = await changes.read_end(connection)
    assert len({row.nonce for row in log}) == 3
    assert (end.epoch, end.number, end.nonce) == (1, 3, log[-1].nonce)


async def test_the_log_is_read_in_pages_behind_a_position(database: Database) -> None:
    for account_id in ("a", "b", "c"):
        await put_account(database, account_id)

    async with database.reading() as connection:
        page = await changes.read_after(connection, 1, 1)
    assert [(row.number, row.subjects) for row in page] == [(2, ("account:b",))]


async def test_only_a_committed_change_notifies(database: Database) -> None:
    await put_account(database, "acme")
    line = Line(database)
    heard = asyncio.Event()
    await line.listen(changes.CHANNEL, heard.set)
    await line.call(changes.read_end, 5)

    await commit(database, change_nothing, accounts=["acme"])
    await commit(database, lambda tx: rename(tx, "acme"), accounts=["acme"], dry_run=True)
    await line.call(changes.read_end, 5)
    assert not heard.is_set()

    await put_account(database, "acme")
    async with asyncio.timeout(10):
        await heard.wait()
    await line.close()


async def test_the_audit_chain_can_be_computed_again_from_the_rows(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        await accounts.upsert_account(tx, None, "acme", "Ünïcode ☃", "team")
        event = AuditEvent(
            actor="operator:root",
            action="PutAccount",
            subject="account:acme",
            account_id="acme",
            before=None,
            after={
                "name": "Ünïcode ☃",
                "tokens": 2**60,
                "tags": ["b", "a"],
                "deleted": False,
                "plan": {"z": 1, "a": None},
            },
            on_behalf_of="alice",
            peer="unix:",
        )
        return Decided(None, change_of("account:acme", "acme"), event)

    await commit(database, decide, accounts=["acme"])
    await commit(database, change_nothing, accounts=["acme"])
    await asyncio.gather(*(put_account(database, f"a{number % 3}") for number in range(9)))

    head = bytes(32)
    rows = await rows_of(database, "SELECT * FROM audit_events ORDER BY event_id")
    assert len(rows) == 11
    for row in rows:
        content = {
            "time": row["time"].isoformat(timespec="microseconds"),
            **{key: row[key] for key in ("account_id", "actor", "on_behalf_of", "action", "subject", "peer")},
            "tokens": row["tokens"] or [],
            **{key: None if row[key] is None else json.loads(row[key]) for key in ("before", "after")},
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).digest()
        numbers = struct.pack("!qqq", row["event_id"], row["epoch"], row["revision"])
        head = hashlib.sha256(head + numbers + digest).digest()
        assert row["chain"] == head
    assert await value_of(database, "SELECT audit_head FROM state") == head
    assert [row["revision"] for row in rows][:3] == [1, 1, 2]
    assert [row["event_id"] for row in rows] == list(range(1, 12))
    assert await value_of(database, "SELECT last_event_id FROM state") == 11


async def test_an_event_names_the_tokens_that_its_change_touches_besides_its_subject(database: Database) -> None:
    await put_account(database, "acme")

    async def decide(tx: Transaction) -> Decided[None]:
        await accounts.upsert_project(tx, "acme", "warehouse", "Warehouse")
        subjects = ("project:warehouse", "token:a", "token:b")
        return Decided(None, Change("DeleteProject", "acme", subjects), event_of("project:warehouse"))

    await commit(database, decide, accounts=["acme"])
    await issue_token(database, "one", "acme")

    assert await value_of(database, "SELECT tokens FROM audit_events WHERE subject = 'project:warehouse'") == ["a", "b"]
    assert await value_of(database, "SELECT tokens FROM audit_events WHERE subject = 'token:one'") is None


async def test_without_a_change_only_the_audit_event_is_committed(database: Database) -> None:
    await put_account(database, "acme")
    before = (await rows_of(database, "SELECT revision, nonce, audit_head FROM state"))[0]

    committed = await commit(database, change_nothing, accounts=["acme"])

    after = (await rows_of(database, "SELECT revision, nonce, audit_head FROM state"))[0]
    assert (committed.value, str(committed.revision), committed.changed) == ("as before", "1.1", False)
    assert (after["revision"], after["nonce"]) == (before["revision"], before["nonce"])
    assert after["audit_head"] != before["audit_head"], "a deposed primary must be unable to do this"
    assert await value_of(database, "SELECT count(*) FROM changes") == 1
    assert await value_of(database, "SELECT revision FROM audit_events WHERE action = 'Nothing'") == 1


async def test_nothing_remains_of_a_decision_that_raises(database: Database) -> None:
    await put_account(database, "acme")

    async def decide(tx: Transaction) -> Decided[None]:
        await rename(tx, "acme")
        raise errors.FailedPrecondition("TEST", "not today")

    with pytest.raises(errors.FailedPrecondition, match="not today"):
        await commit(database, decide, accounts=["acme"])

    assert await value_of(database, "SELECT display_name FROM accounts") == "Acme"
    assert await value_of(database, "SELECT revision FROM state") == 1
    assert await value_of(database, "SELECT count(*) FROM audit_events") == 1


async def test_a_decision_that_writes_must_announce_a_change(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        await accounts.upsert_account(tx, None, "acme", "Acme", "team")
        return Decided(None, None, event_of("account:acme"))

    with pytest.raises(RuntimeError, match="announced no change"):
        await commit(database, decide, accounts=["acme"])
    assert await value_of(database, "SELECT count(*) FROM accounts") == 0


async def test_a_change_that_touches_nothing_is_refused(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        return Decided(None, Change("test", None, ()), event_of("catalog:"))

    with pytest.raises(StatementRefused):
        await commit(database, decide)
    assert await value_of(database, "SELECT revision FROM state") == 0


async def test_what_was_written_carries_the_revision_of_its_change(database: Database) -> None:
    await put_account(database, "acme")
    await put_account(database, "other")
    issued = await issue_token(database, "T1", "acme", labels={"team": "data"})

    async def revoke(tx: Transaction) -> Decided[bool]:
        done = await tokens.revoke(tx, "T1", "")
        return Decided(done, change_of("token:T1", "acme"), event_of("token:T1"))

    revoked = (await commit(database, revoke, accounts=["acme"])).revision

    assert (issued.number, revoked.number) == (3, 4)
    assert await rows_of(database, "SELECT ordinal, revision FROM tokens") == [{"ordinal": 1, "revision": 4}]
    assert await rows_of(database, "SELECT account_id, revision FROM accounts ORDER BY account_id") == [
        {"account_id": "acme", "revision": 1},
        {"account_id": "other", "revision": 2},
    ]


async def test_a_dry_run_decides_and_leaves_nothing(database: Database) -> None:
    await put_account(database, "acme")

    dry = await commit(database, lambda tx: rename(tx, "acme"), accounts=["acme"], dry_run=True)
    dry_nothing = await commit(database, change_nothing, accounts=["acme"], dry_run=True)

    assert (dry.value, str(dry.revision), dry.changed) == ("acme", "1.1", True)
    assert (str(dry_nothing.revision), dry_nothing.changed) == ("1.1", False)
    assert await value_of(database, "SELECT display_name FROM accounts") == "Acme"
    assert await value_of(database, "SELECT count(*) FROM audit_events") == 1
    assert str(await put_account(database, "acme")) == "1.2"


@pytest.mark.parametrize(
    ("middle", "first", "second"),
    [
        (
            "SELECT FROM accounts WHERE account_id = 'b' FOR UPDATE",
            {"accounts": ["a", "b", "c"]},
            {"accounts": ["c", "b", "a"]},
        ),
        (
            "SELECT FROM operators WHERE operator_id = 'o2' FOR UPDATE",
            {"operators_share": ["o1", "o2"], "operators_update": ["o3"]},
            {"operators_share": ["o3"], "operators_update": ["o2", "o1"]},
        ),
    ],
    ids=["accounts", "operators"],
)
async def test_writers_that_name_the_same_rows_in_any_order_never_deadlock(
    database: Database, database_url: str, middle: str, first: dict[str, list[str]], second: dict[str, list[str]]
) -> None:
    for account_id in ("a", "b", "c"):
        await put_account(database, account_id)
    async with database.reading() as connection:
        await connection.execute(
            "INSERT INTO operators (operator_id, role, display_name, bcrypt_hash, create_time, revision)"
            " SELECT id, 'admin', '', '', now(), 0 FROM unnest(ARRAY['o1', 'o2', 'o3']) AS id"
        )

    async def decide(tx: Transaction) -> Decided[None]:
        return Decided(None, change_of("catalog:"), event_of("catalog:"))

    blocker = await asyncpg.connect(database_url)
    with capture_logs() as logs:
        async with blocker.transaction():  # both writers have their first lock before either can have its second
            await blocker.execute(middle)
            writers = [
                asyncio.create_task(commit(database, decide, **named))  # type: ignore[arg-type]
                for named in (first, second)
            ]
            while await blocker.fetchval("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted") < 2:
                pass
        await asyncio.gather(*writers)
    await blocker.close()

    assert logs == [], "a deadlock makes one of the two start over"


async def test_what_is_read_under_the_lock_stays_so_until_the_commit(database: Database) -> None:
    await put_account(database, "acme")
    await issue_token(database, "T1", "acme")
    deciding, revoked = [0], []

    async def decide(tx: Transaction) -> Decided[None]:
        deciding.append(deciding[-1] + 1)
        token = await tokens.read(tx.connection, "T1")
        assert token is not None
        for _ in range(10):
            await tx.connection.fetchval("SELECT 1")  # lets the others in, if they can come in
        deciding.append(deciding[-1] - 1)
        if token.revoke_time is not None:
            return Decided(None, None, event_of("token:T1"))
        revoked.append(await tokens.revoke(tx, "T1", ""))
        return Decided(None, change_of("token:T1", "acme"), event_of("token:T1"))

    committed = await asyncio.gather(*(commit(database, decide, accounts=["acme"]) for _ in range(6)))

    assert max(deciding) == 1
    assert revoked == [True]
    assert sorted(outcome.changed for outcome in committed) == [False] * 5 + [True]
    assert {outcome.revision.number for outcome in committed} == {3}, "the others say at which revision it holds"


async def apply_catalog(connection: Connection) -> None:
    await connection.execute("UPDATE state SET catalog_version = catalog_version + 1")


async def test_a_decision_under_another_catalog_is_not_even_asked_for(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        raise AssertionError("asked")

    with pytest.raises(errors.Aborted) as refused:
        await commit(database, decide, catalog_version=2)
    assert refused.value.reason == "CHANGED_CONCURRENTLY"


async def test_a_catalog_that_moves_during_the_decision_undoes_it(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        async with database.reading() as connection:
            await apply_catalog(connection)
        await accounts.upsert_account(tx, None, "acme", "Acme", "team")
        return Decided(None, change_of("account:acme", "acme"), event_of("account:acme"))

    with pytest.raises(errors.Aborted) as refused:
        await commit(database, decide, accounts=["acme"], catalog_version=1)
    assert refused.value.reason == "CHANGED_CONCURRENTLY"
    assert await value_of(database, "SELECT count(*) FROM accounts") == 0
    assert await value_of(database, "SELECT count(*) FROM audit_events") == 0


async def test_a_decision_that_reads_the_catalog_itself_is_made_again_when_it_moved(database: Database) -> None:
    under: list[int] = []

    async def decide(tx: Transaction) -> Decided[None]:
        under.append(tx.catalog_version)
        if len(under) < 3:
            async with database.reading() as connection:
                await apply_catalog(connection)
        await accounts.upsert_account(tx, None, "acme", "Acme", "team")
        change = change_of("account:acme", "acme")
        return Decided(None, change, event_of("account:acme"), catalog_version=tx.catalog_version)

    committed = await commit(database, decide, accounts=["acme"])

    assert under == [1, 2, 3]
    assert str(committed.revision) == "1.1"


async def test_a_catalog_that_keeps_moving_ends_in_aborted(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        async with database.reading() as connection:
            await apply_catalog(connection)
        return Decided(None, None, event_of("catalog:"), catalog_version=tx.catalog_version)

    with pytest.raises(errors.Aborted) as refused:
        await commit(database, decide)
    assert refused.value.reason == "CHANGED_CONCURRENTLY"


async def test_two_that_make_the_same_account_at_once_both_succeed(database: Database) -> None:
    both_read_it = asyncio.Barrier(2)
    first_reads = 2

    async def decide(tx: Transaction) -> Decided[bool]:
        nonlocal first_reads
        before = await accounts.read(tx.connection, "acme")
        if first_reads:
            first_reads -= 1
            await both_read_it.wait()
        await accounts.upsert_account(tx, before, "acme", "Acme", "team")
        return Decided(before is None, change_of("account:acme", "acme"), event_of("account:acme"))

    made = await asyncio.gather(*(commit(database, decide, accounts=["acme"]) for _ in range(2)))

    assert sorted(outcome.value for outcome in made) == [False, True]


async def test_a_missing_audit_partition_is_made_and_stops_nothing(database: Database) -> None:
    async with database.reading() as connection:
        partitions = (
            "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'audit_events'::regclass"
        )
        for row in await connection.fetch(partitions):
            await connection.execute(f'DROP TABLE "{row["name"]}"')

    assert str(await put_account(database, "acme")) == "1.1"
    assert await value_of(database, "SELECT count(*) FROM audit_events") == 1


async def test_an_audit_event_holds_no_number_with_a_fraction(database: Database) -> None:
    async def decide(tx: Transaction) -> Decided[None]:
        event = AuditEvent("operator:x", "Test", "catalog:", None, after={"nested": [{"ratio": 0.5}]})
        return Decided(None, None, event)

    with pytest.raises(TypeError, match="fraction"):
        await commit(database, decide)
