"""Which waiting checks go into the next BatchCheck. Pure: no I/O, no clock, no lock; times are numbers handed in.

A `Line` holds the checks of one client that may share a call. Rules, and what each prevents:
- A check joins the checks that *wait*, never a batch that was sent: that one may have been decided from a state before a
  change that has returned since (test 42 of the faults: revoke returns while a batch is under way, the same check again).
- At most `most_in_flight` calls of a line are under way; while there is room a check does not wait. With none under way
  and no crowd it may go alone, as a plain Check.
- A batch has at most `most_items` checks and `most_bytes` of request, so that no batch is refused for its size; what is
  larger than that by itself goes by itself.
- Who has left (cancelled, or its own deadline over) is not sent any more, and a batch that nobody waits for is named.
- At most `most_waiting` wait: beyond that the newest is refused, not the oldest forgotten.
- Checks of secrets that are `Familiar` share no call with others. Of a new secret nobody knows what it costs the server: a
  read of the database, or a bcrypt hash behind a queue of such; everybody in its batch would wait for that. So strangers
  have a line of their own, with more calls under way, and meet each other only when there are many.

`aio.py` and `threads.py` do what it says. First come, first sent.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_BOUNDS", "STRANGERS", "Batch", "Bounds", "Familiar", "Line", "Waiting"]

R = TypeVar("R")
# Dead entries are swept out once there are this many and more than live ones.
_SWEEP_FROM: Final = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one line sends at once. Items: the contract's limit is 1,000."""

    most_items: int
    most_bytes: int
    most_in_flight: int
    most_waiting: int


# Measured with 64 and 256 callers (`make bench ARGS=client`): several batches of this size keep both sides busy, where one
# of everything lets the server wait for the client and the client for the server. A server decides up to 200 in one go.
# Bytes: far below the 4 MiB of a message, and 100 checks of the longest legal fields fit.
DEFAULT_BOUNDS: Final = Bounds(most_items=100, most_bytes=256 * 1024, most_in_flight=4, most_waiting=10_000)
STRANGERS: Final = replace(DEFAULT_BOUNDS, most_in_flight=16)


class Waiting(Generic[R]):
    """One check: its part of the request, when its caller gives up, and where the outcome goes."""

    __slots__ = ("batch", "has_left", "part", "receiver", "until")

    def __init__(self, part: bytes, until: float, receiver: R) -> None:
        self.part = part
        self.until = until
        self.receiver = receiver
        self.has_left = False
        self.batch: Batch[R] | None = None


class Batch(Generic[R]):
    """Checks that go out in one call, in this order. `until`: when the last of their callers gives up."""

    __slots__ = ("members", "remaining", "until")

    def __init__(self, members: list[Waiting[R]]) -> None:
        self.members = members
        self.remaining = len(members)
        self.until = max(member.until for member in members)
        for member in members:
            member.batch = self


class Line(Generic[R]):
    """The checks that may share a call, waiting and under way."""

    __slots__ = ("_batches", "_bounds", "_is_crowded", "_live", "_lone", "_queue")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._queue: deque[Waiting[R]] = deque()
        self._live = 0  # in the queue, without those who have left
        self._batches: dict[Batch[R], None] = {}
        self._lone = 0
        self._is_crowded = False

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits and nothing is under way."""
        return not (self._live or self._lone or self._batches)

    @property
    def is_full(self) -> bool:
        """Whether one more check must be refused."""
        return self._live >= self._bounds.most_waiting

    @property
    def may_go_alone(self) -> bool:
        """Whether the next check need not wait for others: none waits, none is under way, and no crowd came before it."""
        return not (self._is_crowded or self._live or self._lone or self._batches)

    @property
    def has_room(self) -> bool:
        """Whether another call may be under way."""
        return self._lone + len(self._batches) < self._bounds.most_in_flight

    def go_alone(self) -> None:
        """A check goes out by itself; `came_back` ends it."""
        self._lone += 1

    def came_back(self) -> None:
        """The end of what went alone."""
        self._lone -= 1

    def join(self, waiting: Waiting[R]) -> None:
        """Puts a check at the end of those that wait."""
        self._queue.append(waiting)
        self._live += 1

    def next_batch(self) -> Batch[R] | None:
        """What must be sent now, which counts as under way from here on; None: nobody waits, or there is no room."""
        if not self._live or not self.has_room:
            return None
        members: list[Waiting[R]] = []
        size = 0
        while self._queue and len(members) < self._bounds.most_items:
            first = self._queue[0]
            if not first.has_left:
                size += len(first.part)
                if members and size > self._bounds.most_bytes:
                    break
                members.append(first)
            self._queue.popleft()
        self._live -= len(members)
        self._is_crowded = len(members) > 1
        batch = Batch(members)
        self._batches[batch] = None
        return batch

    def ended(self, batch: Batch[R]) -> None:
        """The call of this batch is over."""
        self._batches.pop(batch, None)

    def is_under_way(self, batch: Batch[R]) -> bool:
        """Whether the call of this batch is not over."""
        return batch in self._batches

    def leave(self, waiting: Waiting[R]) -> Batch[R] | None:
        """Its caller does not wait any more. A batch under way that nobody waits for now is returned: give it up."""
        if waiting.has_left:
            return None
        waiting.has_left = True
        batch = waiting.batch
        if batch is None:
            self._live -= 1
            if len(self._queue) > max(_SWEEP_FROM, 2 * self._live):
                self._queue = deque(one for one in self._queue if not one.has_left)
            return None
        batch.remaining -= 1
        return batch if not batch.remaining and batch in self._batches else None

    def outstanding(self) -> Iterator[Waiting[R]]:
        """Everybody who waits for an outcome, sent or not."""
        for batch in self._batches:
            yield from (one for one in batch.members if not one.has_left)
        yield from (one for one in self._queue if not one.has_left)


class Familiar:
    """Secrets that were recognized lately. Keeps nothing that could prove or tell one: Python's own hash, keyed per process.

    Two of them that share a hash share a batch they might not have shared, and no more. At most `most` twice over.
    """

    __slots__ = ("_most", "_older", "_recent")

    def __init__(self, most: int = 50_000) -> None:
        self._most = most
        self._recent: set[int] = set()
        self._older: set[int] = set()

    def __contains__(self, secret: str) -> bool:
        key = hash(secret)
        return key in self._recent or key in self._older

    def add(self, secret: str) -> None:
        """Its token was recognized."""
        if len(self._recent) >= self._most:
            self._recent, self._older = set(), self._recent
        self._recent.add(hash(secret))
