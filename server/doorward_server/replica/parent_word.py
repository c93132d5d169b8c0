"""What whoever deletes the rows of this process when it dies must know: whether sub-leases are counted (design 7, Prune).

A worker's parent is told, and has answered, before the first grant after a time without: else it would take away the row
under which a watcher still decides. A server without a parent tells nobody. Called by `watchers.py`, `api/watch.py` and
`app.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.errors import shutting_down
from doorward_server.replica.timing import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ParentWord"]


class ParentWord:
    """The last word, and whether it was heard."""

    def __init__(self) -> None:
        # Says it, and returns whether that went out; None: there is no parent, and nobody deletes a row but this process.
        self.tell: Callable[[bool], bool] | None = None
        # Something was granted since the parent was told that something would be.
        self.has_granted = False
        self._is_telling = self._is_known = False
        self._moved = Signal()

    @property
    def may_count(self) -> bool:
        """Whether a sub-lease may be granted."""
        return self._is_known or self.tell is None

    async def ready(self) -> None:
        """Returns once `may_count`; asks for it if need be. The caller bounds the wait.

        Raises:
            Unavailable: SHUTTING_DOWN, the parent does not listen; another try may find that it does.
        """
        if not self.may_count and not self._is_telling and self.tell is not None:
            self._is_telling = self.tell(True)
            if not self._is_telling:
                raise shutting_down()
        await self._moved.until(lambda: self.may_count)

    def heard(self) -> None:
        """The answer to `tell(True)`."""
        if self._is_telling:
            self._is_telling, self._is_known, self.has_granted = False, True, False
            self._moved.wake()

    def none_is_counted(self) -> None:
        """Tells, if something was granted meanwhile; from here on nothing is until the parent has answered again."""
        if self._is_known and self.has_granted and self.tell is not None:
            self._is_known = False
            self.tell(False)
