"""Whatever is done to the audit behind Doorward's back, the walk along the chain finds it, and says where."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward_server.model import AuditEvent
from doorward_server.service.audit_chain import ChainBroken, ChainWalk, Noted, Verified, verify
from doorward_server.storage import audit, audit_chain
from doorward_server.storage.audit_chain import ChainedEvent, ChainEnd, Run
from tests.support.database import issue_token, put_account

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.storage.pool import Database

START = datetime(2026, 11, 1, tzinfo=UTC)
COUNT = 12


# ---- the walk, by itself


def a_chain(count: int) -> list[ChainedEvent]:
    """So many events, as the door writes them."""
    chain, events = bytes(32), []
    for number in range(1, count + 1):
        time = START + timedelta(seconds=number)
        event = AuditEvent("operator:root", "RevokeToken", f"token:t{number}", "acme", {"n": number}, None)
        chain = audit.chained(chain, number, 1, number, audit.event_digest(event, time))
        events.append(ChainedEvent(number, 1, number, time, event, chain))
    return events


CHAIN = a_chain(COUNT)
END = ChainEnd(COUNT, CHAIN[-1].chain, None)


def walked(
    events: Sequence[ChainedEvent], end: ChainEnd = END, dropped: Sequence[Run] = (), noted: Noted | None = None
) -> Verified:
    walk = ChainWalk(dropped, noted)
    for event in events:
        walk.take(event)
    return walk.end(end)


def where_broken(
    events: Sequence[ChainedEvent], end: ChainEnd = END, dropped: Sequence[Run] = (), noted: Noted | None = None
) -> int:
    with pytest.raises(ChainBroken) as broken:
        walked(events, end, dropped, noted)
    return broken.value.event_id


def test_a_chain_that_nobody_touched_is_verified_and_its_end_is_told() -> None:
    verified = walked(CHAIN)
    assert verified == Verified(COUNT, 0, CHAIN[0].time, COUNT, CHAIN[-1].chain)


def test_a_log_without_any_event_is_verified() -> None:
    assert walked([], ChainEnd(0, bytes(32), None)).events == 0


def changed(stored: ChainedEvent, what: str) -> ChainedEvent:
    """The event with one thing about it changed, and everything else as it was."""
    if what in {"epoch", "number"}:
        return replace(stored, **{what: getattr(stored, what) + 1})
    if what == "time":
        return replace(stored, time=stored.time + timedelta(microseconds=1))
    if what == "chain":
        return replace(stored, chain=bytes(31) + b"x")
    values: dict[str, Any] = {"before": None, "after": {}, "tokens": ("x",), "account_id": None}
    return replace(stored, event=replace(stored.event, **{what: values.get(what, "other")}))


WHATS = (
    *("epoch", "number", "time", "chain", "actor", "action", "subject", "account_id", "on_behalf_of", "peer"),
    *("before", "after", "tokens"),
)


@given(place=st.integers(0, COUNT - 1), what=st.sampled_from(WHATS))
def test_whatever_is_changed_of_an_event_shows_at_that_event(place: int, what: str) -> None:
    events = [*CHAIN]
    events[place] = changed(events[place], what)
    assert where_broken(events) == place + 1


@given(place=st.integers(0, COUNT - 2), what=st.sampled_from(sorted({*WHATS} - {"chain"})))
def test_a_change_with_a_chain_made_to_fit_shows_at_the_next_event(place: int, what: str) -> None:
    events = [*CHAIN]
    forged = changed(events[place], what)
    former = CHAIN[place - 1].chain if place else bytes(32)
    digest = audit.event_digest(forged.event, forged.time)
    events[place] = replace(forged, chain=audit.chained(former, place + 1, forged.epoch, forged.number, digest))
    assert where_broken(events) == place + 2


def test_a_newest_event_with_a_chain_made_to_fit_is_not_the_one_that_was_written_last() -> None:
    forged = changed(CHAIN[-1], "actor")
    chain = audit.chained(CHAIN[-2].chain, COUNT, 1, COUNT, audit.event_digest(forged.event, forged.time))
    assert where_broken([*CHAIN[:-1], replace(forged, chain=chain)]) == COUNT


@given(first=st.integers(0, COUNT - 1), count=st.integers(1, COUNT))
def test_events_that_are_missing_show_at_the_first_of_them(first: int, count: int) -> None:
    assert where_broken([*CHAIN[:first], *CHAIN[first + count :]]) == first + 1


@given(first=st.integers(0, COUNT - 1), count=st.integers(1, COUNT))
def test_closing_the_gap_by_counting_anew_shows(first: int, count: int) -> None:
    rest = [
        replace(event, event_id=number)
        for number, event in enumerate([*CHAIN[:first], *CHAIN[first + count :]], start=1)
    ]
    end = ChainEnd(len(rest), rest[-1].chain if rest else bytes(32), None)
    if first + count < COUNT:
        assert where_broken(rest, end) == first + 1
    else:
        # Whoever can cut off the end and write the end of the chain too is found by what was noted elsewhere.
        assert walked(rest, end).events == first
        assert where_broken(rest, end, noted=Noted(COUNT, CHAIN[-1].chain)) == first


@given(st.permutations(range(COUNT)).filter(lambda order: order != list(range(COUNT))))
def test_events_in_another_order_show_at_the_first_that_moved(order: list[int]) -> None:
    moved = [replace(CHAIN[place], event_id=number) for number, place in enumerate(order, start=1)]
    assert where_broken(moved) == next(number for number, place in enumerate(order, start=1) if place != number - 1)


@given(place=st.integers(1, COUNT), source=st.integers(0, COUNT - 1))
def test_an_event_that_stands_there_twice_shows(place: int, source: int) -> None:
    copy = replace(CHAIN[source], event_id=place, time=CHAIN[source].time + timedelta(hours=1))
    events = sorted([*CHAIN, copy], key=lambda event: (event.event_id, event.time))
    assert where_broken(events) == place


def test_an_event_behind_the_newest_shows() -> None:
    assert where_broken(CHAIN, replace(END, beyond=COUNT + 1)) == COUNT + 1


@given(first=st.integers(1, COUNT), last=st.integers(1, COUNT))
def test_what_retention_dropped_is_stepped_over_and_nothing_else(first: int, last: int) -> None:
    first, last = sorted((first, last))
    dropped = (Run(first, last, CHAIN[last - 1].chain),)
    rest = [event for event in CHAIN if not first <= event.event_id <= last]
    verified = walked(rest, dropped=dropped)
    assert (verified.events, verified.dropped) == (len(rest), last - first + 1)
    assert where_broken(rest) == first
    for event in rest:
        less = [other for other in rest if other is not event]
        assert where_broken(less, dropped=dropped) in {event.event_id, first}


def test_a_dropped_run_with_another_chain_shows_at_the_next_event() -> None:
    assert where_broken(CHAIN[4:], dropped=[Run(1, 4, bytes(32))]) == 5


def test_what_was_noted_is_compared_and_a_chain_written_anew_is_found_by_it() -> None:
    noted = Noted(5, CHAIN[4].chain)
    assert walked(CHAIN, noted=noted).noted_was_dropped is False
    anew = a_chain(3)
    chain = anew[-1].chain
    for number in range(4, COUNT + 1):
        event = replace(CHAIN[number - 1].event, actor="token:somebody-else")
        time = CHAIN[number - 1].time
        chain = audit.chained(chain, number, 1, number, audit.event_digest(event, time))
        anew.append(ChainedEvent(number, 1, number, time, event, chain))
    end = ChainEnd(COUNT, chain, None)
    assert walked(anew, end).events == COUNT
    assert where_broken(anew, end, noted=noted) == 5


def test_a_noted_event_that_retention_dropped_is_compared_only_if_it_was_the_last_of_its_run() -> None:
    dropped = [Run(1, 4, CHAIN[3].chain)]
    assert walked(CHAIN[4:], dropped=dropped, noted=Noted(3, CHAIN[2].chain)).noted_was_dropped is True
    assert walked(CHAIN[4:], dropped=dropped, noted=Noted(4, CHAIN[3].chain)).noted_was_dropped is False
    assert where_broken(CHAIN[4:], dropped=dropped, noted=Noted(4, CHAIN[2].chain)) == 4


# ---- on a database

TAMPERINGS = {
    "time": "UPDATE audit_events SET time = time + interval '1 microsecond' WHERE event_id = 3",
    "event_id": "UPDATE audit_events SET event_id = 900 WHERE event_id = 3",
    "epoch": "UPDATE audit_events SET epoch = 2 WHERE event_id = 3",
    "revision": "UPDATE audit_events SET revision = 4711 WHERE event_id = 3",
    "account_id": "UPDATE audit_events SET account_id = 'globex' WHERE event_id = 3",
    "no account": "UPDATE audit_events SET account_id = NULL WHERE event_id = 3",
    "actor": "UPDATE audit_events SET actor = 'operator:other' WHERE event_id = 3",
    "on_behalf_of": "UPDATE audit_events SET on_behalf_of = 'mallory' WHERE event_id = 3",
    "action": "UPDATE audit_events SET action = 'EnableToken' WHERE event_id = 3",
    "subject": "UPDATE audit_events SET subject = 'token:other' WHERE event_id = 3",
    "tokens": "UPDATE audit_events SET tokens = '{other}' WHERE event_id = 3",
    "before": "UPDATE audit_events SET before = '{\"x\": 1}' WHERE event_id = 3",
    "after": "UPDATE audit_events SET after = '[1.5]' WHERE event_id = 3",
    "peer": "UPDATE audit_events SET peer = '10.9.9.9' WHERE event_id = 3",
    "chain": "UPDATE audit_events SET chain = sha256('x') WHERE event_id = 3",
    "removed": "DELETE FROM audit_events WHERE event_id = 3",
    "swapped": "UPDATE audit_events SET event_id = 7 - event_id WHERE event_id IN (3, 4)",
}
AT_THE_ENDS = {
    "the first removed": ("DELETE FROM audit_events WHERE event_id = 1", 1),
    "the last removed": ("DELETE FROM audit_events WHERE event_id = 6", 6),
    "the end cut off": ("DELETE FROM audit_events WHERE event_id > 4", 5),
    "the end cut off, and the count": (
        "WITH cut AS (DELETE FROM audit_events WHERE event_id > 4) UPDATE state SET last_event_id = 4", 4,
    ),
    "everything removed": ("DELETE FROM audit_events", 1),
    "the head": ("UPDATE state SET audit_head = sha256('x')", 6),
    "one put in behind the end": (
        "INSERT INTO audit_events SELECT time, 7, epoch, revision, account_id, actor, on_behalf_of, action, subject, tokens, "
        "before, after, peer, chain FROM audit_events WHERE event_id = 6", 7,
    ),
    "one put in again": (
        "INSERT INTO audit_events SELECT time + interval '1 second', event_id, epoch, revision, account_id, actor, "
        "on_behalf_of, action, subject, tokens, before, after, peer, chain FROM audit_events WHERE event_id = 2", 2,
    ),
}  # fmt: skip


@pytest.fixture
async def written(database: Database) -> Database:
    """Six events."""
    await put_account(database, "acme")
    for number in range(5):
        await issue_token(database, f"t{number}", "acme")
    return database


async def tamper(database: Database, statement: str) -> None:
    async with database.reading() as connection:
        await connection.execute(statement)


async def test_what_was_written_is_verified(written: Database) -> None:
    verified = await verify(written)
    async with written.reading() as connection:
        end = await audit_chain.read_chain_end(connection)
    assert (verified.events, verified.dropped, verified.last_event_id, verified.chain) == (6, 0, 6, end.chain)
    assert await verify(written, Noted(6, end.chain)) == verified


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_every_column_of_an_event_is_tied_to_the_chain(written: Database, what: str) -> None:
    await tamper(written, TAMPERINGS[what])
    with pytest.raises(ChainBroken) as broken:
        await verify(written)
    assert broken.value.event_id == 3
    assert broken.value.verified == 2
    assert "event 3" in str(broken.value)


@pytest.mark.parametrize("what", AT_THE_ENDS)
async def test_so_are_both_ends_of_it(written: Database, what: str) -> None:
    statement, event_id = AT_THE_ENDS[what]
    await tamper(written, statement)
    with pytest.raises(ChainBroken) as broken:
        await verify(written)
    assert broken.value.event_id == event_id


async def test_a_long_chain_is_read_in_chunks_also_where_an_id_stands_twice(
    written: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "CHUNK", 2)
    assert (await verify(written)).events == 6
    await tamper(written, AT_THE_ENDS["one put in again"][0])
    with pytest.raises(ChainBroken) as broken:
        await verify(written)
    assert broken.value.event_id == 2


async def test_events_that_are_written_meanwhile_do_not_disturb_it(
    written: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "CHUNK", 1)

    async def go_on() -> None:
        for _ in range(30):
            await put_account(written, "acme")

    writing = asyncio.ensure_future(go_on())
    while not writing.done():
        assert (await verify(written)).events >= 6
    await writing
    assert (await verify(written)).events == 36


async def test_a_claim_of_retention_that_is_no_part_of_the_chain_explains_nothing(written: Database) -> None:
    async with written.reading() as connection:
        chain: bytes = await connection.fetchval("SELECT chain FROM audit_events WHERE event_id = 3")
        await connection.execute("DELETE FROM audit_events WHERE event_id <= 3")
        await connection.execute(
            "UPDATE audit_events SET action = 'DropAuditEvents', after = jsonb_build_object('dropped', jsonb_build_array("
            "jsonb_build_object('first', 1, 'last', 3, 'chain', encode($1, 'hex')))) WHERE event_id = 6",
            chain,
        )
    with pytest.raises(ChainBroken) as broken:
        await verify(written)
    assert (broken.value.event_id, broken.value.verified) == (6, 2)


async def test_no_column_was_forgotten_here(written: Database) -> None:
    async with written.reading() as connection:
        columns = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'audit_events'"
        )
    assert {row["column_name"] for row in columns} <= set(TAMPERINGS)
