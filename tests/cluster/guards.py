"""The rules of design section 7 that a test takes away in one process, to see its verdict go red.

Each is named after the flag of the model (`model/core.cpp`) or the sentence of `model/faults.md`, and changes the running
code in this process only, before the app is built. Used by `replica_process.py` alone: no setting and no endpoint can.
"""

from __future__ import annotations

import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from doorward.core import lease
from doorward.core.history import History, Position
from doorward.core.lease import Lease, LeaseState
from doorward.core.token_table import UNKNOWN, Admission, FencedTable, Load, Tables
from doorward_server.api.health import HealthKeeper
from doorward_server.errors import Unavailable
from doorward_server.model import Propagation
from doorward_server.replica import barrier, lease_keeper
from doorward_server.replica.barrier import Barrier, Outcome
from doorward_server.replica.caches import Caches
from doorward_server.replica.feed import Feed
from doorward_server.replica.holding import Holding
from doorward_server.replica.lease_keeper import LeaseKeeper
from doorward_server.service.authorize import Authorizer
from doorward_server.service.mutations import Done, Mutations
from doorward_server.storage import changes, replicas, transaction
from doorward_server.storage.failures import DRIVER_ERRORS
from tests.cluster.points import is_admitting

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence

    from doorward.core.revision import Revision
    from doorward_server.model import ReplicaRow
    from doorward_server.storage.changes import Committed
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Bounds, Transaction

__all__ = ["GUARDS", "take_away"]


def take_away(name: str) -> None:
    """From now on this process does without the rule."""
    GUARDS[name]()


def _put(owner: Any, name: str, replacement: object) -> None:
    setattr(owner, name, replacement)


# ---- the check


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


# ---- the barrier


def _barrier() -> None:
    """A mutation waits until every replica confirms or has lost its lease: without, it returns once committed."""

    def expire_all(self: barrier._Wait, _now_ns: int) -> None:
        self.waiting.clear()

    _put(barrier._Wait, "expire", expire_all)


def _expire() -> None:
    """Time ends the wait for a replica that is not heard of: without, only its report does."""
    _put(barrier._Wait, "expire", lambda _self, _now_ns: None)
    _put(barrier._Wait, "next_end_ns", lambda self: self._c0_ns + 10**15)


_begun: ContextVar[tuple[int, list[ReplicaRow]] | None] = ContextVar("begun", default=None)


def _before_transaction(note: Callable[[Mutations], Awaitable[tuple[int, list[ReplicaRow]]]]) -> None:
    commit_and_wait = Mutations._commit_and_wait

    async def noted(self: Mutations, *arguments: Any) -> None:
        _begun.set(await note(self))
        await commit_and_wait(self, *arguments)

    _put(Mutations, "_commit_and_wait", noted)


def _baseline() -> None:
    """The wait starts when the rows were read: without, when the transaction began."""

    async def note(self: Mutations) -> tuple[int, list[ReplicaRow]]:
        return self._barrier._timing.now_ns(), []

    _before_transaction(note)
    begin = barrier._Wait.__init__

    def from_the_beginning(self: barrier._Wait, rows: Any, revision: Revision, c0_ns: int) -> None:
        begun = _begun.get()
        begin(self, rows, revision, c0_ns if begun is None else begun[0])

    _put(barrier._Wait, "__init__", from_the_beginning)


def _readafter() -> None:
    """The rows are read after the commit: without, before it."""

    async def note(self: Mutations) -> tuple[int, list[ReplicaRow]]:
        async with self._barrier._database.reading() as connection:
            return 0, await replicas.read_rows(connection)

    _before_transaction(note)
    begin = barrier._Wait.__init__

    def of_the_beginning(self: barrier._Wait, rows: Any, revision: Revision, c0_ns: int) -> None:
        begun = _begun.get()
        begin(self, rows if begun is None else begun[1], revision, c0_ns)

    _put(barrier._Wait, "__init__", of_the_beginning)


def _rowsat() -> None:
    """The rows are read from a server that has the change: without, from whichever answers."""

    async def rows(
        self: Barrier, _revision: Revision, _nonce: bytes | None, replica_ids: Sequence[str] | None = None
    ) -> list[ReplicaRow]:
        async with self._database.reading() as connection:
            found = await replicas.read_rows(connection)
        return [row for row in found if replica_ids is None or row.replica_id in replica_ids]

    _put(Barrier, "_rows", rows)


def _holdrow() -> None:
    """Each row says what its replica's hold is: without, everybody waits for a hold of their own."""
    begin = barrier._Wait.__init__

    def with_own(self: barrier._Wait, rows: Any, revision: Revision, c0_ns: int) -> None:
        begin(self, rows, revision, c0_ns)
        shortest = min((row.hold_ms for row in self.waiting.values()), default=0)
        _put(self, "_own_ns", shortest * 1_000_000)

    def expire(self: barrier._Wait, now_ns: int) -> None:
        if now_ns >= self._c0_ns + self._own_ns:  # type: ignore[attr-defined]
            self.expired.extend(self.waiting.values())
            self.waiting.clear()

    _put(barrier._Wait, "__init__", with_own)
    _put(barrier._Wait, "expire", expire)


def _prune() -> None:
    """What expired is pruned, so that it is waited for once: without, its row stays."""

    async def leave_it(_self: Barrier, _outcome: object) -> None:
        return

    _put(Barrier, "prune", leave_it)


def _late() -> None:
    """A wait goes on when its caller's deadline is near: without, it ends there, and nothing is pruned."""
    passed = Barrier.passed

    async def to_the_deadline(
        self: Barrier, revision: Revision, until_ns: int | None, nonce: bytes | None = None, **_: object
    ) -> Outcome:
        return await passed(self, revision, until_ns, nonce)

    _put(Barrier, "passed", to_the_deadline)


def _cas() -> None:
    """Only a row that stood still since it was read is pruned: without, any row that did not report."""

    async def prune(connection: Connection, replica_id: str, _renewals: int, number: int) -> bool:
        statement = "DELETE FROM replicas WHERE replica_id = $1 AND applied_revision < $2 RETURNING true"
        return bool(await connection.fetchval(statement, replica_id, number))

    _put(replicas, "prune", prune)


def _anyrow() -> None:
    """Only the row that was waited for is pruned, by what it said then: without, whatever has its id now."""

    async def prune(connection: Connection, replica_id: str, _renewals: int, _number: int) -> bool:
        return bool(await connection.fetchval("DELETE FROM replicas WHERE replica_id = $1 RETURNING true", replica_id))

    _put(replicas, "prune", prune)


def _repeat() -> None:
    """A call that finds nothing to change waits in full: without, it returns at once."""
    commit_and_wait = Mutations._commit_and_wait

    async def without(
        self: Mutations,
        begin: Callable[[], Awaitable[Committed[Any]]],
        until_ns: int | None,
        answer: asyncio.Future[Done[Any]],
    ) -> None:
        committed = await begin()
        if not committed.changed:
            answer.set_result(Done(committed.value, Propagation(committed.revision, 0, 0, 0, 0.0)))
            return

        async def done() -> Committed[Any]:
            return committed

        await commit_and_wait(self, done, until_ns, answer)

    _put(Mutations, "_commit_and_wait", without)


# ---- the transaction


def _ack() -> None:
    """Only an acknowledged COMMIT is a success: without, one that nobody answered is taken for one."""

    async def commit(connection: Connection, _bounds: Bounds) -> None:
        try:
            await connection.execute("COMMIT")
        except DRIVER_ERRORS:
            return

    _put(transaction, "_acknowledged_commit", commit)


def _together() -> None:
    """What a decision writes is committed with its change and its audit event: without, before them."""
    write_revision = changes._write_revision

    async def commit_first(tx: Transaction, *others: Any) -> Any:
        await tx.connection.execute("COMMIT; BEGIN")
        return await write_revision(tx, *others)

    _put(changes, "_write_revision", commit_first)


def _task() -> None:
    """A mutation belongs to the app: without, its caller's end cancels it."""

    async def run(self: Mutations, begin: Callable[[], Awaitable[Committed[Any]]], until_ns: int | None) -> Done[Any]:
        committed = await begin()
        return Done(committed.value, (await self._barrier.passed(committed.revision, until_ns)).propagation)

    _put(Mutations, "run", run)


def _idle() -> None:
    """A writer that stopped is thrown out of its transaction: without, it keeps its locks."""

    async def begin(connection: Connection, _bounds: Bounds) -> None:
        await connection.execute(transaction.BEGIN)
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await connection.execute("SET LOCAL lock_timeout = '1s'")

    _put(transaction, "begin", begin)


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
    "barrier": _barrier,
    "expire": _expire,
    "baseline": _baseline,
    "readafter": _readafter,
    "rowsat": _rowsat,
    "holdrow": _holdrow,
    "prune": _prune,
    "late": _late,
    "cas": _cas,
    "anyrow": _anyrow,
    "repeat": _repeat,
    "ack": _ack,
    "together": _together,
    "task": _task,
    "idle": _idle,
}
