"""How checks of a `LocalAuthorizer` wait for what they sought, in either dialect.

Each dialect hands in how a waiter is woken, and nothing here waits. Design sections 7 ("Watchers") and 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from doorward._watch_shared import decision_of
from doorward.core.watch_check import Check
from doorward.errors import DeadlineExceeded, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from doorward._watch_shared import Asked, Watching
    from doorward.decisions import Decision

__all__ = ["Deciding", "Round", "no_lease_in_time"]


class Round:
    """Checks that wait together for what they sought. `wake` is called once, when all of it is there, or none will be."""

    __slots__ = ("_wake", "failed", "outstanding")

    def __init__(self, numbers: Iterable[int], wake: Callable[[], object]) -> None:
        self.outstanding = set(numbers)
        self.failed: set[int] = set()
        self._wake = wake

    def tell(self, number: int, *, failed: bool) -> None:
        """This resolve is answered, or has failed."""
        if failed:
            self.failed.add(number)
        self.outstanding.discard(number)
        if not self.outstanding:
            self._wake()

    def end(self) -> None:
        """The session has ended."""
        if self.outstanding:
            self.outstanding.clear()
            self._wake()


class Deciding:
    """Some checks that may have to wait, by their place in a list. `step` again after each round until there is none."""

    __slots__ = ("_checks", "_former", "_numbers", "_watching", "decided")

    def __init__(self, watching: Watching, asked: Iterable[tuple[int, Asked]]) -> None:
        self._watching = watching
        self._checks = {place: Check(watching.watcher, *one) for place, one in asked}
        self._numbers: dict[int, int] = {}
        self._former: Round | None = None
        self.decided: dict[int, Decision] = {}

    def step(self, wake: Callable[[], object]) -> Round | None:
        """Goes on with all of them: decides what can be, and seeks what is missing. None: nothing is waited for.

        What is not decided then is left to the server.
        """
        former, self._former = self._former, None
        numbers: dict[int, int] = {}
        for place, check in tuple(self._checks.items()):
            number = self._numbers.get(place)
            found = self._watching.seek(check, failed=former is not None and number in former.failed)
            if isinstance(found, int):
                numbers[place] = found
                continue
            del self._checks[place]
            if found is not None:
                self.decided[place] = decision_of(found)
        self._numbers = numbers
        if not numbers:
            return None
        self._former = round_ = Round(numbers.values(), wake)
        self._watching.join(round_)
        return round_


def no_lease_in_time(trouble: str) -> DeadlineExceeded:
    """What waiting for a sub-lease ends with."""
    message = f"no sub-lease in time: {trouble}"
    return DeadlineExceeded(Status(grpc.StatusCode.DEADLINE_EXCEEDED, message))
