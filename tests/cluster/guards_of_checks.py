"""Rules of the checking side, to be taken away: checks, leases, loads, registration, the feed (`guards.py`)."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from doorward.core import lease
from doorward.core.history import History, Position
from doorward.core.lease import Lease, LeaseState
from doorward.core.token_table import UNKNOWN, Admission, FencedTable, Load, Tables
from doorward_server.api.health import HealthKeeper
from doorward_server.errors import Unavailable
from doorward_server.replica import lease_keeper
from doorward_server.replica.caches import Caches
from doorward_server.replica.feed import Feed
from doorward_server.replica.holding import Holding
from doorward_server.replica.lease_keeper import LeaseKeeper
from doorward_server.service.authorize import Authorizer
from tests.cluster.points import is_admitting

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GUARDS"]


def _put(owner: Any, name: str, replacement: object) -> None:
    setattr(owner, name, replacement)


# ---- the check and its lease


def _caplease() -> None:
    """A check captures its lease before it reads: without, it looks only at the end, at whatever lease there is then."""

    class Loose:
        def __init__(self, holding: Holding) -> None:
            self._holding = holding

        def __getattr__(self, name: str) -> Any:
            return getattr(self._holding, name)

        def capture(self) -> int:
            return 0

        def still_good(self, _end_ns: int) -> bool:
            return is_admitting() or self._holding.capture() is not None

    begin = Authorizer.__init__

    def with_loose(self: Authorizer, holding: Holding, *others: Any) -> None:
        begin(self, holding, *others)
        _put(self, "_holding", Loose(holding))

    _put(Authorizer, "__init__", with_loose)


def _usable() -> None:
    """A renewal's lease may be used once its revision is applied: without, at once."""

    def promote(self: LeaseState, _history: History) -> bool:
        pending, self.pending = self.pending, None
        if pending is not None:
            self._end_ns = pending.end_ns if self._end_ns is None else max(self._end_ns, pending.end_ns)
        return pending is not None

    _put(LeaseState, "promote", promote)


def _sent() -> None:
    """A lease counts from before its renewal was sent, and a late answer gives none: without, from the answer."""

    def answered(self: LeaseState, _t0_ns: int, now_ns: int, hold_ms: int, number: int, nonce: bytes) -> bool:
        self.pending = Lease(now_ns + lease.length_ns(hold_ms), number, nonce)
        return True

    _put(LeaseState, "answered", answered)


def _rho() -> None:
    """The hold is longer than the lease by what two clocks may differ: without, they are the same."""
    _put(lease, "length_ns", lambda hold_ms: hold_ms * 1_000_000)


def _fresh() -> None:
    """A fully consistent check waits for a renewal begun after it: without, for whichever is answered next."""

    async def next_answer(self: LeaseKeeper) -> int:
        known = self._answered
        await self._holding.moved.until(lambda: self._answered > known)
        return self._answered_number

    _put(LeaseKeeper, "fresh_renewal", next_answer)


# ---- loads and registration


def _fence() -> None:
    """A change makes the loads that it touches stale: without, they are installed."""

    def evict(self: FencedTable[Any], key: str) -> None:
        self._values.pop(key)
        self._unknown.pop(key)

    _put(FencedTable, "evict", evict)
    _put(FencedTable, "fence_all", lambda _self: None)


def _error() -> None:
    """A load that failed is remembered by nobody: without, it counts as "not found"."""
    load = Caches._load

    async def failing(self: Caches, table: Any, key: str, read: Any, install: Any) -> None:
        try:
            await load(self, table, key, read, install)
        except Unavailable:
            table._install(key, UNKNOWN)

    _put(Caches, "_load", failing)


def _gen() -> None:
    """Loads of an older registration are discarded: without, they are installed after the new one."""
    real = FencedTable._judge

    def judge(self: FencedTable[Any], load: Load, epoch: int, number: int, nonce: bytes, history: History) -> Admission:
        if load.generation == history.generation or self._loads.get(load.key) is not load:
            return real(self, load, epoch, number, nonce, history)
        return Admission.INSTALLED

    _put(FencedTable, "_judge", judge)


def _regempty() -> None:
    """The answer of a registration empties the caches: without, what was held stays."""
    registered = Holding.registered

    def keeping(self: Holding, *arguments: Any) -> None:
        clear = Tables.clear
        _put(Tables, "clear", lambda _self: None)
        try:
            registered(self, *arguments)
        finally:
            _put(Tables, "clear", clear)

    _put(Holding, "registered", keeping)


def _gap() -> None:
    """A gap in the log, or its missing end, starts the replica anew: without, it reads on."""

    def append(self: History, number: int, nonce: bytes) -> None:
        self._tail[number] = nonce
        self.applied = Position(number, nonce)

    _put(History, "append", append)


def _notbelow() -> None:
    """A renewal's revision is compared with what was applied when it was sent: without, with what is applied now."""
    contradicts = History.contradicts

    def with_now(self: History, epoch: int, number: int, nonce: bytes, *, not_below: int) -> bool:
        now = not_below if self.applied is None else self.applied.number
        return contradicts(self, epoch, number, nonce, not_below=now)

    _put(History, "contradicts", with_now)


def _newid() -> None:
    """Each registration has a random id: without, a process keeps the one it had."""
    kept = uuid.uuid4()

    class Kept:
        @staticmethod
        def uuid4() -> object:
            return kept

    _put(lease_keeper, "uuid", Kept)


def _stuck() -> None:
    """A replica that cannot apply within its hold stops renewing: without, it goes on, and everybody waits each time."""
    _put(LeaseKeeper, "_apply_is_stuck", lambda _self: False)


def _poll() -> None:
    """A poll finds what a lost NOTIFY would have told: without, only a NOTIFY wakes the feed."""

    def wanted(self: Feed) -> bool:
        return self._notified or self._holding.history.generation != self._generation

    async def forever(self: Any, _at_ns: int, signal: Any) -> None:
        await signal.wait()

    _put(Feed, "_wanted", wanted)
    begin = Feed.__init__

    def without_timer(self: Feed, holding: Holding, *arguments: Any, **named: Any) -> None:
        begin(self, holding, *arguments, **named)

        class Holdless:
            def __getattr__(self, name: str) -> Any:
                return holding.hold_ms * 1_000_000 if name == "hold_ms" else getattr(holding, name)

        _put(self, "_holding", Holdless())

    _put(Feed, "__init__", without_timer)


def _dereg() -> None:
    """Shutdown gives up the lease before the row goes: without, the row goes first and the lease is kept to its end."""
    leave, run = HealthKeeper.leave, LeaseKeeper.run
    keepers: list[LeaseKeeper] = []

    async def run_and_keep(self: LeaseKeeper) -> None:
        keepers.append(self)
        await run(self)

    async def leave_row_first(self: HealthKeeper) -> None:
        for keeper in keepers:
            await keeper.leave()
        await leave(self)

    _put(LeaseKeeper, "run", run_and_keep)
    _put(HealthKeeper, "leave", leave_row_first)


def _wall() -> None:
    """No rule, but what nothing may rely on: the wall clock of the machine. It is five minutes slow here."""
    real_s, real_ns = time.time, time.time_ns
    slow_s = 300
    _put(time, "time", lambda: real_s() - slow_s)
    _put(time, "time_ns", lambda: real_ns() - slow_s * 10**9)


GUARDS: Final[dict[str, Callable[[], None]]] = {
    "caplease": _caplease,
    "usable": _usable,
    "sent": _sent,
    "rho": _rho,
    "fresh": _fresh,
    "fence": _fence,
    "error": _error,
    "gen": _gen,
    "regempty": _regempty,
    "gap": _gap,
    "notbelow": _notbelow,
    "newid": _newid,
    "stuck": _stuck,
    "poll": _poll,
    "dereg": _dereg,
    "wall": _wall,
}
