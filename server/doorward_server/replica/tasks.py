"""Starts work that must outlive whoever asked for it: shared loads and mutations (style.md, Cancellation).

The app owns the one TaskGroup; nothing else in the server starts a task. A failure belongs to whoever awaits the result,
not to the group.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from doorward_server.errors import shutting_down

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Tasks"]

T = TypeVar("T")


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Whoever asked may have gone; then nobody else looks at the failure, and that is right."""
    if not future.cancelled():
        future.exception()


class Tasks:
    """Work in the app's TaskGroup, each piece with a future for its outcome. Waiters shield that future."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: set[asyncio.Future[Any]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Begins `work` now.

        Raises:
            Unavailable: SHUTTING_DOWN, the app is ending.
        """
        if self._closed:
            work.close()
            raise shutting_down()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_retrieve)
        future.add_done_callback(self._running.discard)
        self._running.add(future)
        self._group.create_task(self._run(work, future))
        return future

    async def drain(self, timeout_s: float) -> None:
        """Takes no more work, and waits until what runs has ended, at most `timeout_s`."""
        self._closed = True
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout_s)

    @staticmethod
    async def _run(work: Coroutine[Any, Any, T], future: asyncio.Future[T]) -> None:
        try:
            result = await work
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as failure:  # noqa: BLE001 - handed whole to whoever awaits the future
            if not future.done():
                future.set_exception(failure)
        else:
            if not future.done():
                future.set_result(result)
