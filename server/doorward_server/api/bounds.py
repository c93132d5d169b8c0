"""How much of one kind may be under way at once in this process, and what is said beyond that (design section 9).

gRPC's own bound counts every call alike, those that wait for their message too, and says no without our details. So it is
the outer wall alone (`most_rpcs`); within it each kind has a `Room` of its own, and none can take the places of another.
What memory answers needs none: it is over before anything else runs. Called by `server.py` and `standard.py`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from doorward_server.api.errors import Status, status_of
from doorward_server.errors import Exhausted

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["REFLECTIONS", "Room", "most_rpcs", "most_rpcs_of_a_connection"]

# Streams of server reflection: for people with tools.
REFLECTIONS: Final = 16


class Room:
    """Room for so many at once."""

    def __init__(self, most: int, what: str) -> None:
        """`what` they are, in the plural, for who is refused."""
        self._most = most
        self._what = what
        self._taken = 0

    @property
    def in_use(self) -> int:
        """How many there are."""
        return self._taken

    @property
    def is_full(self) -> bool:
        """Whether the next one must be refused."""
        return self._taken >= self._most

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Takes a place for the block; `is_full` was asked before, without an await between."""
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def refusal(self) -> Status:
        """TOO_MANY_REQUESTS."""
        text = f"this server has as many {self._what} under way as it may, {self._most}; try again later"
        return status_of(Exhausted("TOO_MANY_REQUESTS", text))


def most_rpcs(most_calls: int) -> int:
    """What gRPC itself admits: the calls that wait, as many watches of health, and as many whose message has not come."""
    return 3 * most_calls + REFLECTIONS


def most_rpcs_of_a_connection(most_calls: int) -> int:
    """Half of them, so that no single connection takes all places; its client sends the others when these have ended."""
    return max(most_calls // 2, 1)
