"""Whether the audit still is what was written: the walk along its chain, behind `doorward audit verify` (design section 5).

Each event's chain is made of everything that stands in it, its number and the chain of the event before; `state` has the
newest one's. So an event that was changed, taken out, put in or moved is found, at both ends too: what retention dropped it
says in an event of the chain, with the chain to go on from. Whoever can write every table can also write a whole new
chain, which nothing in the database betrays. Against that `verify` tells the newest event's chain, to be noted elsewhere,
and compares what was noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward_server.storage import audit, audit_chain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from doorward_server.storage.audit_chain import ChainedEvent, ChainEnd, Run
    from doorward_server.storage.pool import Database

__all__ = ["ChainBroken", "ChainWalk", "Noted", "Verified", "verify"]

CHAIN_BEFORE_ALL: Final = bytes(32)


class ChainBroken(Exception):
    """The audit is not what was written. `event_id`: where that shows; `verified`: how many events were right before it."""

    def __init__(self, event_id: int, text: str) -> None:
        super().__init__(text)
        self.event_id = event_id
        self.verified = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """What an earlier `verify` told, and somebody kept outside the database: an event's id and its chain."""

    event_id: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """The chain holds. `events` of them stand there, the oldest from `since` on; `dropped` went by retention before.

    `last_event_id` and `chain` are what to note. `noted_was_dropped`: the noted event is no more, and was not compared.
    """

    events: int
    dropped: int
    since: datetime | None
    last_event_id: int
    chain: bytes
    noted_was_dropped: bool = False


class ChainWalk:
    """Takes the events in order, each as it stands in the database."""

    def __init__(self, dropped: Iterable[Run], noted: Noted | None = None) -> None:
        self._dropped = {run.first: run for run in dropped}
        self.events = 0
        self.since: datetime | None = None
        self.noted_was_dropped = False
        self._noted = noted
        self._expected = 1
        self._chain = CHAIN_BEFORE_ALL

    def take(self, stored: ChainedEvent) -> None:
        """The next event.

        Raises:
            ChainBroken: it is not the next, or not what was written.
        """
        if stored.event_id < self._expected:
            raise ChainBroken(
                stored.event_id, f"event {stored.event_id} stands there twice; {_named(stored)} is one of them"
            )
        self._skip_dropped(stored.event_id)
        if not _follows(stored, self._chain):
            # Whose chain was made anew as well does not match the one behind it.
            former = f" Or event {stored.event_id - 1} was, together with its chain." if self.events else ""
            raise ChainBroken(stored.event_id, f"event {stored.event_id} was changed: {_named(stored)}.{former}")
        self._compare(stored.event_id, stored.chain)
        self._expected, self._chain = stored.event_id + 1, stored.chain
        self.since = self.since or stored.time
        self.events += 1

    def end(self, end: ChainEnd) -> Verified:
        """The events were all up to `end`.

        Raises:
            ChainBroken: some are missing at the end, or stand behind it, or the newest is not the one that was written.
        """
        self._skip_dropped(end.last_event_id + 1)
        if self._expected != end.last_event_id + 1 or self._chain != end.chain:
            text = f"the newest event, {end.last_event_id}, is not the one that the database says it wrote last"
            raise ChainBroken(end.last_event_id, text)
        if end.beyond is not None:
            raise ChainBroken(end.beyond, f"event {end.beyond} was put in behind the newest one, {end.last_event_id}")
        if self._noted is not None and self._noted.event_id > end.last_event_id:
            text = (
                f"the log ends at event {end.last_event_id}, before event {self._noted.event_id}, which was noted: its end "
                "was cut off, or the database was restored from a backup"
            )
            raise ChainBroken(end.last_event_id, text)
        dropped = end.last_event_id - self.events
        return Verified(self.events, dropped, self.since, end.last_event_id, end.chain, self.noted_was_dropped)

    def _skip_dropped(self, event_id: int) -> None:
        """Goes on to this event, if retention dropped what lies between."""
        while self._expected < event_id:
            run = self._dropped.get(self._expected)
            if run is None or run.last >= event_id:
                raise self._missing(event_id)
            noted = self._noted
            if noted is not None and run.first <= noted.event_id < run.last:
                self.noted_was_dropped = True
            self._compare(run.last, run.chain)
            self._expected, self._chain = run.last + 1, run.chain

    def _missing(self, event_id: int) -> ChainBroken:
        first = self._expected
        last = min([known for known in self._dropped if known > first] + [event_id]) - 1
        which = f"event {first} is" if last == first else f"events {first} to {last} are"
        return ChainBroken(first, f"{which} missing, and not because retention dropped what is old")

    def _compare(self, event_id: int, chain: bytes) -> None:
        noted = self._noted
        if noted is not None and noted.event_id == event_id and noted.chain != chain:
            text = f"event {event_id} is not the one that was noted: it, or one before it, was written anew"
            raise ChainBroken(event_id, text)


async def verify(database: Database, noted: Noted | None = None) -> Verified:
    """Walks along the whole chain as it is now; servers may go on meanwhile.

    Raises:
        ChainBroken: with the first event at which it shows.
        Unavailable: the database did not answer.
    """
    end, dropped = await _read(database)
    while True:
        walk = ChainWalk(dropped, noted)
        try:
            async for stored in audit_chain.events_in_order(database, end.last_event_id):
                walk.take(stored)
            return walk.end(end)
        except ChainBroken as broken:
            former = dropped
            end, dropped = await _read(database)
            if dropped == former:
                broken.verified = walk.events
                raise
            # Retention dropped events since the walk began: it begins again with what is there now.


async def _read(database: Database) -> tuple[ChainEnd, tuple[Run, ...]]:
    async with database.reading() as connection:
        end = await audit_chain.read_chain_end(connection)
        try:
            return end, await audit_chain.read_dropped(connection, end.last_event_id)
        except ValueError:
            # What says so stands in the chain, and the walk will find it changed; nothing is explained by it.
            return end, ()


def _follows(stored: ChainedEvent, former: bytes) -> bool:
    try:
        digest = audit.event_digest(stored.event, stored.time)
    except (TypeError, ValueError):
        # No event has such a content.
        return False
    return stored.chain == audit.chained(former, stored.event_id, stored.epoch, stored.number, digest)


def _named(stored: ChainedEvent) -> str:
    """What it now says of itself."""
    event = stored.event
    return f"it now reads {event.action} of {event.subject or 'nothing'} by {event.actor} at {stored.time.isoformat()}"
