"""Rules of watchers, to be taken away: of the replica that grants (in its process), and of the watcher (in its own).

Named as the flags of the model (`model/watch2.cpp`). See `guards.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from doorward import _watch_shared
from doorward._watch_shared import Watching
from doorward.core.watch_messages import Goodbye, LeaseGrant, Start
from doorward.core.watch_session import Session as Here
from doorward.core.watcher import Watcher
from doorward_server import failpoints
from doorward_server.failpoints import Failpoint
from doorward_server.replica import watchers as replica_watchers
from doorward_server.replica.watch_messages import Grant
from doorward_server.replica.watch_session import Session
from doorward_server.replica.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from doorward.core.watch_messages import Hello
    from doorward.core.watch_session import Taken

__all__ = ["GUARDS"]


def _put(owner: Any, name: str, replacement: object) -> None:
    setattr(owner, name, replacement)


# ---- of the replica: what may be reported


def _margin() -> None:
    """A replica counts a sub-lease for rho times its length: without, the clocks are the same."""
    _put(replica_watchers, "stretched_ns", lambda span_ns: span_ns)


def _keepcount() -> None:
    """A sub-lease is counted also when its stream has ended: without, it ends with the stream."""
    end = Watchers.end

    def forgotten(self: Watchers, session: Session, refused: Any) -> None:
        session.counted_until_ns = 0
        end(self, session, refused)

    _put(Watchers, "end", forgotten)


def _cumul() -> None:
    """Acknowledged means everything up to it: without, a change that touches nothing held passes those before it."""

    def newest_free(self: Watchers) -> int:
        number, now_ns = self._holding.applied, self._timing.now_ns()
        while any(
            message.number == number and now_ns < session.counted_until_ns
            for session in self._owing
            for message in session._owed
        ):
            number -= 1
        return number

    _put(Watchers, "reportable", newest_free)


def _ackafter() -> None:
    """A change is owed until it is acknowledged: without, until its evict was sent."""
    take = Session.take

    def sent(self: Session, now_ns: int) -> Any:
        taken = take(self, now_ns)
        if taken is not None:
            self.acknowledge(taken.number)
        return taken

    _put(Session, "take", sent)
    owed = Watchers.take

    def and_look(self: Watchers, session: Session) -> Any:
        taken = owed(self, session)
        if session.first_owed is None and session in self._owing:
            self._owing.discard(session)
            self._holding.moved.wake()
        return taken

    _put(Watchers, "take", and_look)


def _silent() -> None:
    """Who acknowledges nothing gets no more grants, and its stream is closed: without, every change waits for it."""
    _put(Watchers, "_is_late", lambda _self, _session: False)


def _shutwait() -> None:
    """A row stays while a sub-lease is counted: without, it goes when the replica stops, and nobody waits."""
    _put(Watchers, "counted", lambda _self: 0)


def _regend() -> None:
    """Registering anew ends every session: without, they go on, and applied jumps over what was never evicted."""
    _put(Watchers, "forsake", lambda _self: None)


# ---- of the replica: what it sends


def _usablegrant() -> None:
    """Sub-leases are cut only from the usable lease: without, from a renewal that is not applied yet."""
    grant = Watchers.grant

    def from_pending(self: Watchers, session: Session, ask: int) -> bool:
        pending, now_ns = self._holding.lease.pending, self._timing.now_ns()
        if pending is None or not session.is_open:
            return grant(self, session, ask)
        length_ns = pending.end_ns - now_ns
        session.counted_until_ns = max(session.counted_until_ns, now_ns + length_ns * 5 // 4)
        session.put_grant(self._holding.applied, Grant(ask, length_ns, self._holding.latest_us()))
        return True

    _put(Watchers, "grant", from_pending)


def _atomic() -> None:
    """Looking up, counting as held and queueing the Snapshot are one step: without, something may come in between.

    The step between is `load.before_install`, where a load would stand.
    """
    snapshot = Watchers.snapshot
    later: set[asyncio.Task[None]] = set()

    def in_two_steps(self: Watchers, session: Session, body: Any, keys: Iterable[str]) -> None:
        wanted = list(keys)

        async def queue() -> None:
            await failpoints.reach(Failpoint.LOAD_BEFORE_INSTALL)
            snapshot(self, session, body, wanted)

        task = asyncio.ensure_future(queue())
        later.add(task)
        task.add_done_callback(later.discard)

    _put(Watchers, "snapshot", in_two_steps)


# ---- of the watcher


def _dropsl() -> None:
    """A watcher gives up its sub-lease with its stream: without, it decides by it what the next stream brings."""
    begin, give_up = Watcher.open, Here.give_up
    ends: list[int] = []

    def remember(self: Here) -> None:
        if self.end_ns is not None:
            ends.append(self.end_ns)
        give_up(self)

    def with_former_end(self: Watcher, agent: str) -> tuple[Here, Hello]:
        session, hello = begin(self, agent)
        session.end_ns = max(ends, default=None)
        return session, hello

    _put(Here, "give_up", remember)
    _put(Watcher, "open", with_former_end)


def _emptycache() -> None:
    """A stream starts with an empty cache: without, what was held stays, and the replica does not know of it."""
    apply, give_up = Here._apply, Here.give_up
    kept: list[tuple[Any, Any]] = []

    def remember(self: Here) -> None:
        if self.started is not None and self.catalog is not None:
            kept.append((self.tables, self.catalog))
            self.tables = type(self.tables)(self._bounds)
        give_up(self)

    def with_former(self: Here, body: object, now_ns: int) -> Taken:
        taken = apply(self, body, now_ns)
        if isinstance(body, Start) and kept:
            self.tables, self.catalog = kept[-1]
        return taken

    _put(Here, "give_up", remember)
    _put(Here, "_apply", with_former)


def _echo() -> None:
    """A grant counts from the ask that it answers: without, from the newest one."""
    grant = Here._grant

    def from_newest(self: Here, granted: LeaseGrant, now_ns: int) -> None:
        t0_ns = max(self._asks.values(), default=now_ns)
        self._asks[granted.ask] = t0_ns
        grant(self, granted, now_ns)

    _put(Here, "_grant", from_newest)


def _goodafter() -> None:
    """Goodbye is said after everything was given up: without, the watcher decides on by what is counted no more."""

    def farewell(self: Watching) -> bool:
        session = self.watcher.session
        if session is None or session.started is None:
            return False
        self._outgoing.append(Goodbye(session.started.session_id))
        return True

    _put(Watching, "farewell", farewell)
    _put(Watching, "give_up", lambda _self: None)


def _order() -> None:
    """A message is acknowledged once it was applied: without, as soon as it has come, an Evict even unapplied."""
    evict = Here._evict

    def later(self: Here, body: Any) -> None:
        if body.catalog or body.everything:
            evict(self, body)

    _put(Here, "_evict", later)


def _fork() -> None:
    """A child of fork() has no lease: without, it decides by what nobody tells it to drop."""
    _watch_shared._forking = type(_watch_shared._forking)()  # type: ignore[misc]


GUARDS: Final[dict[str, Callable[[], None]]] = {
    "margin": _margin,
    "keepcount": _keepcount,
    "cumul": _cumul,
    "ackafter": _ackafter,
    "silent": _silent,
    "shutwait": _shutwait,
    "regend": _regend,
    "usablegrant": _usablegrant,
    "atomic": _atomic,
    "dropsl": _dropsl,
    "emptycache": _emptycache,
    "echo": _echo,
    "goodafter": _goodafter,
    "order": _order,
    "fork": _fork,
}
