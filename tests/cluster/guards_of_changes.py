"""Rules of the changing side, to be taken away: the barrier, the prune, the transaction (`guards.py`)."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from doorward_server.model import Propagation
from doorward_server.replica import barrier
from doorward_server.replica.barrier import Barrier, Outcome
from doorward_server.service.mutations import Done, Mutations
from doorward_server.storage import changes, replicas, transaction
from doorward_server.storage.failures import DRIVER_ERRORS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence

    from doorward.core.revision import Revision
    from doorward_server.model import ReplicaRow
    from doorward_server.storage.changes import Committed
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Bounds, Transaction

__all__ = ["GUARDS"]


def _put(owner: Any, name: str, replacement: object) -> None:
    setattr(owner, name, replacement)


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
