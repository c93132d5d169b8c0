"""Runs each mutation: its transaction, then the barrier (design section 7), as a task of the app.

So a caller that goes away cancels neither the commit nor the wait; and one whose deadline comes near is told how far the
mutation has come, before gRPC ends its call without a word. What one mutation touches is learned by this replica as by every
other one, from the feed; nothing here looks at a cache.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from doorward_server import failpoints, tracing
from doorward_server.errors import DeadlineExceeded
from doorward_server.failpoints import Failpoint
from doorward_server.replica.timing import Signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

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

    def require_time(self, until_ns: int | None) -> None:
        """Raises what `run` does when the deadline is too near to begin, for who must know before anything else."""
        self._barrier.require_time(until_ns)

    async def run(self, transaction: Callable[[], Awaitable[Committed[T]]], until_ns: int | None) -> Done[T]:
        """Commits `transaction()` and waits until nobody can still answer from before it.

        `until_ns` is the caller's deadline, a clock reading. Raises what the transaction refuses, what
        `Barrier.require_time` and `Barrier.passed` raise, and

        DeadlineExceeded: COMMIT_NOT_AWAITED, the deadline is near and the change is not committed yet. It goes on.
        """
        self._barrier.require_time(until_ns)
        stands: list[Revision] = []

        async def noted() -> Committed[T]:
            committed = await transaction()
            stands.append(committed.revision)
            return committed

        return await self._answered(
            lambda answer: self._commit_and_wait(noted, until_ns, answer),
            until_ns,
            lambda: self._barrier.not_awaited(stands[0]) if stands else _commit_not_awaited(),
        )

    async def validate(self, transaction: Callable[[], Awaitable[Committed[T]]]) -> Done[T]:
        """Runs `transaction()`, which must be one that rolls back: everything is checked and nothing stays."""
        committed = await asyncio.shield(self._tasks.start(_awaited(transaction)))
        return Done(committed.value, None)

    async def await_propagation(self, revision: Revision, until_ns: int | None) -> Propagation:
        """Waits for a change that is committed already."""
        return await self._answered(
            lambda answer: self._wait(revision, until_ns, None, answer, lambda propagation: propagation),
            until_ns,
            lambda: self._barrier.not_awaited(revision),
        )

    async def _answered(
        self,
        work: Callable[[asyncio.Future[T]], Coroutine[Any, Any, None]],
        until_ns: int | None,
        late: Callable[[], DeadlineExceeded],
    ) -> T:
        """The answer that `work` gives, before it ends: the wait outlasts the caller's deadline, and rows are pruned last.

        Without one when the deadline is near, be it that a lock or the database is waited for, raises `late()`.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Whoever asked may have left.
        answer.add_done_callback(lambda given: given.cancelled() or given.exception())
        task = self._tasks.start(work(answer))
        ended = Signal()
        ends: tuple[asyncio.Future[Any], ...] = (answer, task)
        for end in ends:
            end.add_done_callback(lambda _: ended.wake())
        # No await until it is waited for: neither can have ended before.
        await (ended.wait() if until_ns is None else self._barrier.until_late(until_ns, ended))
        if answer.done():
            return answer.result()
        if not task.done():
            raise late()
        task.result()
        raise AssertionError("a mutation ended without an answer")

    async def _commit_and_wait(
        self, transaction: Callable[[], Awaitable[Committed[T]]], until_ns: int | None, answer: asyncio.Future[Done[T]]
    ) -> None:
        await failpoints.reach(Failpoint.MUTATION_AFTER_AUTHN)
        committed = await transaction()
        await self._wait(
            committed.revision,
            until_ns,
            committed.nonce,
            answer,
            lambda propagation: Done(committed.value, propagation),
        )

    async def _wait(
        self,
        revision: Revision,
        until_ns: int | None,
        nonce: bytes | None,
        answer: asyncio.Future[T],
        answer_of: Callable[[Propagation], T],
    ) -> None:
        with tracing.span("barrier") as span:
            span.note("revision", str(revision))
            outcome = await self._barrier.passed(revision, until_ns, nonce, on_late=answer.set_exception)
            span.note("replicas_confirmed", outcome.propagation.replicas_confirmed)
            span.note("replicas_expired", outcome.propagation.replicas_expired)
        if not answer.done():
            answer.set_result(answer_of(outcome.propagation))
        await self._barrier.prune(outcome)


def _commit_not_awaited() -> DeadlineExceeded:
    return DeadlineExceeded(
        "COMMIT_NOT_AWAITED",
        "the change is not committed yet, and the deadline is near: it goes on, and may still be made or be refused; "
        "repeat the call with a later one",
    )


async def _awaited(transaction: Callable[[], Awaitable[T]]) -> T:
    return await transaction()
