"""Who holds what at this replica: from a key to the sessions that a change of it touches (design section 7, Watchers).

The other side of `Session.held`, which `watchers.py` keeps in step with it, so that a change never walks the sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from doorward_server.replica.watch_session import Session

__all__ = ["Holders"]


class Holders:
    """The sessions that hold each key."""

    def __init__(self) -> None:
        self._sessions: dict[str, set[Session]] = {}
        # Keys of all sessions together.
        self.count = 0

    def of(self, key: str) -> Collection[Session]:
        """Who holds this key."""
        return self._sessions.get(key, ())

    def add(self, session: Session, keys: Iterable[str]) -> None:
        """It holds these from now on, and did not before."""
        for key in keys:
            self._sessions.setdefault(key, set()).add(session)
            self.count += 1

    def remove(self, session: Session, keys: Iterable[str]) -> None:
        """It holds these no more; one that it did not hold is passed over."""
        for key in keys:
            sessions = self._sessions.get(key)
            if sessions is not None and session in sessions:
                sessions.discard(session)
                self.count -= 1
                if not sessions:
                    del self._sessions[key]

    def release(self, session: Session) -> None:
        """It holds nothing any more: no change needs to be told to it, or noted as owed."""
        held = list(session.held)
        session.held.clear()
        self.remove(session, held)
