"""Runs each mutation: its transaction, then the barrier (design section 7), as a task of the app.

So a caller that goes away cancels neither the commit nor the wait. What one mutation touches is learned by this replica as
by every other one, from the feed; nothing here looks at a cache.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from doorward_server import failpoints
from doorward_server.failpoints import Failpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward.core.revision import Revision
    from doorward_server.model import Propagation
    from doorward_server.replica.barrier import Barrier
    from doorward_server.replica.tasks import Tasks
    from doorward_server.storage.changes import Committed

__all__ = ["Done", "Mutations"]

T = TypeVar("T")


class Done(Generic[T]):
    """What a mutation answers: its value, and how the change was propagated (None: it was only validated)."""

    __slots__ = ("propagation", "value")

    def __init__(self, value: T, propagation: Propagation | None) -> None:
        self.value = value
        self.propagation = propagation


class Mutations:
    """The one way for a use case to change something."""

    def __init__(self, barrier: Barrier, tasks: Tasks) -> None:
        self._barrier = barrier
        self._tasks = tasks

    async def run(self, transaction: Callable[[], Awaitable[Committed[T]]], until_ns: int | None) -> Done[T]:
        """Commits `transaction()` and waits until nobody can still answer from before it.

        `until_ns` is the caller's deadline, a clock reading. Raises what the transaction refuses, and what
        `Barrier.require_time` and `Barrier.passed` raise.
        """
        self._barrier.require_time(until_ns)
        answer: asyncio.Future[Done[T]] = asyncio.get_running_loop().create_future()
        work = self._tasks.start(self._commit_and_wait(transaction, until_ns, answer))
        # The answer comes before the work ends: rows are pruned after it.
        ends: set[asyncio.Future[Any]] = {answer, work}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        work.result()
        raise AssertionError("a mutation ended without an answer")

    async def validate(self, transaction: Callable[[], Awaitable[Committed[T]]]) -> Done[T]:
        """Runs `transaction()`, which must be one that rolls back: everything is checked and nothing stays."""
        committed = await asyncio.shield(self._tasks.start(_awaited(transaction)))
        return Done(committed.value, None)

    async def await_propagation(self, revision: Revision, until_ns: int | None) -> Propagation:
        """Waits for a change that is committed already."""
        return await asyncio.shield(self._tasks.start(self._passed_and_pruned(revision, until_ns)))

    async def _passed_and_pruned(self, revision: Revision, until_ns: int | None) -> Propagation:
        outcome = await self._barrier.passed(revision, until_ns)
        await self._barrier.prune(outcome)
        return outcome.propagation

    async def _commit_and_wait(
        self, transaction: Callable[[], Awaitable[Committed[T]]], until_ns: int | None, answer: asyncio.Future[Done[T]]
    ) -> None:
        await failpoints.reach(Failpoint.MUTATION_AFTER_AUTHN)
        committed = await transaction()
        outcome = await self._barrier.passed(committed.revision, until_ns, committed.nonce)
        answer.set_result(Done(committed.value, outcome.propagation))
        await self._barrier.prune(outcome)


async def _awaited(transaction: Callable[[], Awaitable[T]]) -> T:
    return await transaction()
