"""The watchers of this replica: who holds what, whose sub-leases are counted, and what may be reported (design 7, Watchers).

Knows no gRPC. Each method but `run` and `left` is one step, without an await: looking something up, counting it as
held and queueing its snapshot is one, and applying a change is another. `Holding` calls `apply` and `forsake` in its own
steps; `api/watch.py` calls the rest, one session for each stream. The names are those of the model (`watch2.cpp`).

A change that touched something held is *owed* until the watcher has acknowledged it. It is not reported while a sub-lease
of that session is *counted*: from before a grant is sent until no clock can show it usable, also when the stream has ended.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import structlog

from doorward.core.lease import stretched_ns
from doorward_server.errors import shutting_down
from doorward_server.replica import watch_messages as said
from doorward_server.replica import watch_refusals
from doorward_server.replica.parent_word import ParentWord
from doorward_server.replica.timing import Signal
from doorward_server.replica.watch_holders import Holders
from doorward_server.replica.watch_session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from doorward.core.catalog import Catalog
    from doorward_server.errors import Refused
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.watch_messages import Body, ProjectSnapshot, Taken, TokenSnapshot, UnrecognizedSnapshot

__all__ = ["MOST_HELD", "Watchers"]

log = structlog.get_logger()

# Keys of one session, and of all: a few hundred bytes each.
MOST_HELD: Final = 200_000
MOST_HELD_BY_ALL: Final = 2_000_000
# Sessions that ended and are still counted, for each that may be open: who comes and goes all the time must wait.
MOST_ENDED: Final = 4
# Less than what a listener leaves a call when its connection has reached its age (`api/server.py`): cut off there, a watcher
# could not say goodbye, and changes would wait for it. Some go up to a sixth earlier, so that those of one start part.
LONGEST_SESSION_NS: Final = 30 * 60 * 1_000_000_000


class Watchers:
    """All sessions of one replica."""

    def __init__(self, holding: Holding, *, most: int) -> None:
        """`most`: sessions that may be open at once."""
        self._holding = holding
        self._timing = holding.timing
        self._most = most
        self._hold_ns = holding.hold_ms * 1_000_000
        # How soon each message is to be acknowledged, and how often to ask.
        self.ack_within_ns = self._hold_ns // 4
        self._open: set[Session] = set()
        # Their streams ended, their sub-leases may not have: of this registration, and of former ones, whose rows are theirs.
        self._ended: set[Session] = set()
        self._former: set[Session] = set()
        self._holders = Holders()
        # Those that owe something; all others have acknowledged whatever is applied.
        self._owing: set[Session] = set()
        self._is_leaving = False
        self.parent = ParentWord()
        self._due_ns = 0
        self._moved = Signal()
        # When all callers are looked at again, those among them that say nothing and have expired.
        self._verify_ns = 0

    # ---- for Holding and the reporter

    def apply(self, number: int, subjects: Sequence[str]) -> None:
        """The change `number` was applied: in the same step it waits in the Evicts of all who hold what it touches."""
        touched: dict[Session, list[str]] = {}
        for subject in subjects:
            kind, colon, _ = subject.partition(":")
            if not colon or kind not in said.KINDS | said.OTHER_KINDS:
                # Written by a newer server; nobody here knows what it touches.
                self._evict_everything(number)
                return
            if kind in said.OTHER_KINDS:
                self._doubt(subject)
            for session in self._holders.of(subject):
                touched.setdefault(session, []).append(subject)
        for session, keys in touched.items():
            self._evict(session, number, keys)

    def forsake(self) -> None:
        """This replica must register anew: every session ends. Their counts stay with the old row, which nobody reports."""
        for session in tuple(self._open):
            self.end(session, watch_refusals.registers_anew())
        for session in self._ended:
            self._holders.release(session)
        self._former |= self._ended
        self._ended.clear()
        self._owing.clear()

    def reportable(self) -> int:
        """The newest applied change that every session has acknowledged, is past its count, or said goodbye for."""
        number, now_ns = self._holding.applied, self._timing.now_ns()
        for session in self._owing:
            if session.first_owed is not None and now_ns < session.counted_until_ns:
                number = min(number, session.first_owed - 1)
        return number

    def acknowledged_by(self, number: int) -> int:
        """How many open sessions have acknowledged everything up to `number`."""
        return sum(session.first_owed is None or session.first_owed > number for session in self._open)

    # ---- for the stream

    def require_room(self, coming: int = 0) -> None:
        """Whether a session may be opened, beside `coming` that are about to be.

        Raises:
            Exhausted: TOO_MANY_REQUESTS, there are as many watchers as may be.
            Unavailable: SHUTTING_DOWN.
        """
        if self._is_leaving:
            raise shutting_down()
        if len(self._open) + coming >= self._most or len(self._ended) >= MOST_ENDED * self._most:
            raise watch_refusals.too_many(self._most)

    def open(self, caller: str, agent: str = "") -> Session:
        """A new session, with its Start queued; `caller` is whose credential it is, `agent` what it says it is.

        Raises:
            Exhausted, Unavailable: as `require_room`.
        """
        self.require_room()
        leaves_ns = self._timing.now_ns() + LONGEST_SESSION_NS - secrets.randbelow(LONGEST_SESSION_NS // 6)
        session = Session(secrets.token_urlsafe(16), caller, agent, leaves_ns)
        self._open.add(session)
        self._put(session, said.Start(session.session_id, MOST_HELD))
        return session

    def snapshot(
        self, session: Session, body: TokenSnapshot | UnrecognizedSnapshot | ProjectSnapshot, keys: Iterable[str]
    ) -> None:
        """What was looked up in this very step is held from now on, and its snapshot waits behind every waiting Evict.

        Raises:
            Unavailable: NO_LEASE.
            Exhausted: TOO_MANY_REQUESTS, too much is held; nothing was queued.
        """
        self._require_lease()
        wanted = list(keys)
        more = sum(key not in session.held for key in wanted)
        if len(session.held) + more > MOST_HELD or self.held + more > MOST_HELD_BY_ALL:
            raise watch_refusals.holds_too_much()
        self._put(session, body, wanted)

    def catalog(self, session: Session, catalog: Catalog) -> None:
        """The catalog in force in this very step.

        Raises:
            Unavailable: NO_LEASE.
        """
        self._require_lease()
        self._put(session, said.CatalogSent(catalog), (said.CATALOG,))

    def fail(self, session: Session, request_id: int, refused: Refused) -> None:
        """What was asked for could not be found out."""
        self._put(session, said.Failure(request_id, refused))

    def grant(self, session: Session, ask: int) -> bool:
        """Grants a sub-lease from the usable lease, counted before it is sent; False: there is none, or not for this one."""
        now_ns = self._timing.now_ns()
        end_ns = self._holding.lease.capture(now_ns)
        # Of one that has acknowledged nothing yet it is not known that it ever will: it would keep every change waiting.
        may_be = session.is_open and not session.is_reset and session.has_acknowledged and self.parent.may_count
        if end_ns is None or not may_be or self._is_late(session):
            return False
        length_ns = end_ns - now_ns
        self.parent.has_granted = True
        session.counted_until_ns = max(session.counted_until_ns, now_ns + stretched_ns(length_ns))
        session.put_grant(self._holding.applied, said.Grant(ask, length_ns, self._holding.latest_us()))
        return True

    def acknowledge(self, session: Session, epoch: int, number: int) -> None:
        """The watcher has taken and applied everything up to this position. Of a session that has ended it counts no more.

        What that one holds was let go of, so what it owes stays owed: a change behind it would be reported else.

        Raises:
            InvalidArgument: no message of that position was sent.
        """
        if not session.is_open:
            return
        if epoch != self._holding.history.epoch:
            raise watch_refusals.wrong_field("ack.position", "is of another epoch", "FIELD_OUT_OF_RANGE")
        owed = session.first_owed
        if session.acknowledge(number):
            if session.first_owed is None:
                self._owing.discard(session)
            # Of many that hold the same only the last wakes who reports; else `look` does, when a count is past.
            if owed is not None and not self._is_kept_back(owed):
                self._holding.moved.wake()

    def forget(self, session: Session, keys: Iterable[str], sequence: int) -> None:
        """The watcher has dropped `keys`; those of which a snapshot was queued behind `sequence` stay held.

        Raises:
            InvalidArgument: no message of that number was sent.
        """
        if session.is_open:
            self._holders.remove(session, session.forget(keys, sequence))

    def goodbye(self, session: Session, session_id: str) -> None:
        """The watcher has given everything up: nothing of this session is counted any more.

        Raises:
            InvalidArgument: it is the id of another session; it counts as no goodbye.
        """
        if session_id != session.session_id:
            text = "is not that of this session's start"
            raise watch_refusals.wrong_field("goodbye.session_id", text, "FIELD_MALFORMED")
        session.counted_until_ns = 0
        self.end(session, None)
        # Whoever hears that the stream has ended well may take it that the parent knows.
        self.look()

    def take(self, session: Session) -> Taken | None:
        """The next message for the wire."""
        taken = session.take(self._timing.now_ns())
        if self._is_leaving:
            self._moved.wake()
        return taken

    def end(self, session: Session, refused: Refused | None) -> None:
        """The stream is over, for whatever reason. Its sub-leases stay counted, and what it holds goes on being owed."""
        if session not in self._open:
            return
        self._open.discard(session)
        session.end(refused)
        if self._timing.now_ns() < session.counted_until_ns:
            self._ended.add(session)
            if session.first_owed is not None:
                self._holders.release(session)
            self._wanted_at(session.counted_until_ns)
        else:
            self._drop(session)
        self._moved.wake()
        self._holding.moved.wake()

    # ---- in time

    async def run(self) -> None:
        """Ends sessions that do not acknowledge, and lets go of counts that are past; for ever."""
        while True:
            self.look()
            await self._timing.sleep_until_or(self._due_ns, self._moved)

    def reset(self) -> None:
        """Asks every watcher to go, after the lease was dropped; none comes any more."""
        self._is_leaving = True
        for session in tuple(self._open):
            if not session.is_reset:
                self._reset(session, shutting_down())

    async def left(self, until_ns: int) -> None:
        """Returns once no sub-lease is counted and all was written, at `until_ns` at the latest; ends what is still open."""
        while (self.counted() or any(session.waiting for session in self._open)) and self._timing.now_ns() < until_ns:
            last_ns = max((session.counted_until_ns for session in self._everyone()), default=until_ns)
            look_ns = last_ns if last_ns > self._timing.now_ns() else until_ns
            await self._timing.sleep_until_or(min(look_ns, until_ns), self._moved)
        for session in tuple(self._open):
            self.end(session, shutting_down())
        # The parent is to hear the last word.
        self.look()

    # ---- for the metrics, whose page is made in a thread of its own: copies are walked

    @property
    def count(self) -> int:
        """How many sessions are open."""
        return len(self._open)

    @property
    def held(self) -> int:
        """How many keys all of them hold."""
        return self._holders.count

    def counted(self) -> int:
        """How many sessions, also of those that ended, may have a usable sub-lease."""
        now_ns = self._timing.now_ns()
        return sum(now_ns < session.counted_until_ns for session in self._everyone())

    def owing(self) -> int:
        """How many of them keep a change from being reported."""
        now_ns = self._timing.now_ns()
        return sum(now_ns < session.counted_until_ns for session in tuple(self._owing))

    # ----

    def _is_kept_back(self, number: int) -> bool:
        now_ns = self._timing.now_ns()
        owing = ((session.first_owed, session.counted_until_ns) for session in self._owing)
        return any(first is not None and first <= number and now_ns < until_ns for first, until_ns in owing)

    def _require_lease(self) -> None:
        if self._holding.capture() is None:
            raise watch_refusals.no_lease()

    def _put(self, session: Session, body: Body, keys: Iterable[str] = ()) -> None:
        if not session.is_open:
            return
        self._holders.add(session, session.put(self._holding.applied, body, keys))
        self._end_if_full(session)

    def _evict(self, session: Session, number: int, keys: Sequence[str], *, is_everything: bool = False) -> None:
        now_ns = self._timing.now_ns()
        self._holders.remove(session, session.evict(number, keys, now_ns, is_everything=is_everything))
        self._owing.add(session)
        if session.is_open:
            self._wanted_at(session.counted_until_ns)
            self._end_if_full(session)
        else:
            # Whatever else it holds: nothing after this change is reported while it is counted.
            self._holders.release(session)

    def _evict_everything(self, number: int) -> None:
        for session in (*self._open, *self._ended):
            self._evict(session, number, (), is_everything=True)
        # It may be of a caller, too.
        self._doubt()

    def _doubt(self, caller: str | None = None) -> None:
        """Whether this one may still watch, or any, is looked at anew."""
        for session in self._open:
            if caller is None or session.caller == caller:
                session.must_verify = True
                session.moved.wake()

    def _reset(self, session: Session, cause: Refused) -> None:
        """Asks it to go; whatever it may still use is past when a hold is."""
        self._put(session, said.Reset(cause))
        session.is_reset = True
        session.leaves_ns = self._timing.now_ns() + self._hold_ns

    def _end_if_full(self, session: Session) -> None:
        if session.is_full:
            self.end(session, watch_refusals.takes_too_slowly())

    def _is_late(self, session: Session) -> bool:
        since_ns = session.unacknowledged_since_ns()
        return since_ns is not None and not session.is_reset and self._timing.now_ns() - since_ns >= self.ack_within_ns

    def look(self) -> None:
        """Does what is due, and notes when the next thing is."""
        now_ns = self._timing.now_ns()
        for session in tuple(self._open):
            if self._is_late(session):
                owing = session.first_owed is not None
                log.warning("watcher_silent", agent=session.agent, caller=session.caller, owing=owing)
                self.end(session, watch_refusals.silent())
            elif now_ns >= session.leaves_ns:
                # Asked, and then told.
                (self.end if session.is_reset else self._reset)(session, watch_refusals.has_lasted())
        if now_ns >= self._verify_ns and self._holding.capture() is not None:
            self._verify_ns = now_ns + self._hold_ns
            self._doubt()
        past = [session for session in (*self._ended, *self._former) if session.counted_until_ns <= now_ns]
        for session in past:
            self._drop(session)
        if past or any(session.counted_until_ns <= now_ns for session in self._owing):
            self._holding.moved.wake()
        if not self.counted():
            self.parent.none_is_counted()
        self._due_ns = min((at_ns for at_ns in self._dues() if at_ns > now_ns), default=now_ns + self.ack_within_ns)
        self._due_ns = min(self._due_ns, now_ns + self.ack_within_ns)

    def _dues(self) -> Iterable[int]:
        for session in self._open:
            since_ns = session.unacknowledged_since_ns()
            if since_ns is not None and not session.is_reset:
                yield since_ns + self.ack_within_ns
            yield session.leaves_ns
        for session in self._owing | self._ended | self._former:
            yield session.counted_until_ns

    def _wanted_at(self, at_ns: int) -> None:
        if self._timing.now_ns() < at_ns < self._due_ns:
            self._moved.wake()

    def _everyone(self) -> Iterable[Session]:
        return (*self._open, *self._ended, *self._former)

    def _drop(self, session: Session) -> None:
        """Nothing of it matters any more."""
        self._ended.discard(session)
        self._former.discard(session)
        self._owing.discard(session)
        self._holders.release(session)
