"""One watcher's session as its replica sees it: what is held there, the one ordered queue, and what is owed (design 7, Watchers).

A value that `watchers.py` alone writes; each method is one step. What it promises: messages are taken in the order in which
they were queued; a change of something held waits in an Evict before whatever is queued after it; a position is
acknowledged only once a message of it was taken; and nothing counts as acknowledged while an Evict before it does not.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from doorward_server.replica.timing import Signal
from doorward_server.replica.watch_messages import CATALOG, Evict, Grant, Taken
from doorward_server.replica.watch_refusals import wrong_field

if TYPE_CHECKING:
    from collections.abc import Iterable

    from doorward_server.errors import Refused
    from doorward_server.replica.watch_messages import Body

__all__ = ["Session"]

# A caller that takes nothing is closed when this many messages wait, or messages that name this many keys. The resolves
# under way are bounded already, and so are evicts: one waits until something is queued behind it.
MOST_QUEUED: Final = 2_000
MOST_KEYS_QUEUED: Final = 250_000
# An Evict that would name more names none: everything is dropped. As many ids fill a sixth of the largest message.
MOST_NAMED: Final = 10_000


class _Place:
    """Where a message stands: its number once it was taken. What is held points to that of its newest snapshot."""

    __slots__ = ("sequence",)

    def __init__(self) -> None:
        self.sequence: int | None = None


class _Waiting:
    """A message in the queue. Of an Evict the body is made when it is taken, for until then it may grow."""

    __slots__ = ("body", "first", "is_catalog", "is_everything", "keys", "number", "place", "since_ns", "weight")

    def __init__(self, number: int, body: Body | None, weight: int = 0) -> None:
        self.number = number
        # The oldest change in it, of an Evict, and when that was applied.
        self.first = number
        self.since_ns = 0
        self.body = body
        self.place = _Place()
        self.weight = weight
        self.keys: dict[str, None] = {}
        self.is_catalog = self.is_everything = False


class Session:
    """One stream. `number`s are positions in the change log, of the epoch in which it was opened."""

    def __init__(self, session_id: str, caller: str, agent: str = "", leaves_ns: int = 0) -> None:
        """`caller` is whose credential opened it, as changes name their subjects; `agent` says what runs there.

        `leaves_ns` is when it is to be asked to go.
        """
        self.session_id = session_id
        self.caller = caller
        self.agent = agent
        self.leaves_ns = leaves_ns
        self.is_open = True
        # Why it ended, for the stream; None: the watcher left.
        self.refused: Refused | None = None
        self.is_reset = False
        # A change touched the caller: whether it may still watch must be looked at.
        self.must_verify = False
        # No sub-lease of this session is usable from then on, on any clock (a reading of this replica's).
        self.counted_until_ns = 0
        self.held: dict[str, _Place] = {}
        # Something above changed, or a message is to be taken.
        self.moved = Signal()
        self._queue: deque[_Waiting] = deque()
        self._weight = 0
        self._owed: deque[_Waiting] = deque()
        self._sequence = 0
        # Position and time of what was taken and is beyond the last acknowledgement.
        self._taken: deque[tuple[int, int]] = deque()
        self._taken_number = self._acknowledged = -1

    @property
    def first_owed(self) -> int | None:
        """The oldest change that touched what was held and is not acknowledged."""
        return self._owed[0].first if self._owed else None

    @property
    def has_acknowledged(self) -> bool:
        """Whether it has acknowledged anything, `start` at least."""
        return self._acknowledged >= 0

    @property
    def needs_catalog(self) -> bool:
        """Whether the catalog must be sent: it was not yet, or has changed since."""
        return self.is_open and not self.is_reset and CATALOG not in self.held

    @property
    def is_full(self) -> bool:
        """Whether its watcher takes too little."""
        return len(self._queue) > MOST_QUEUED or self._weight > MOST_KEYS_QUEUED

    @property
    def waiting(self) -> int:
        """How many messages nobody has taken yet."""
        return len(self._queue)

    def unacknowledged_since_ns(self) -> int | None:
        """Since when the watcher has left something unacknowledged: a message that was taken, or a change that it owes.

        A change counts from the moment in which it was applied: its evict may wait here for a transport that takes nothing.
        """
        since_ns = self._taken[0][1] if self._taken else None
        if self._owed and (since_ns is None or self._owed[0].since_ns < since_ns):
            return self._owed[0].since_ns
        return since_ns

    def put(self, number: int, body: Body, keys: Iterable[str] = ()) -> list[str]:
        """Queues `body` behind everything that waits; `keys` are held from now on. Returns those that were not."""
        added = []
        message = _Waiting(number, body)
        for key in keys:
            if key not in self.held:
                added.append(key)
            self.held[key] = message.place
            message.weight += 1
        self._append(message)
        return added

    def put_grant(self, number: int, grant: Grant) -> None:
        """Queues a grant; one that still waits is withdrawn, for only the newest ask is answered."""
        for message in self._queue:
            if isinstance(message.body, Grant):
                self._queue.remove(message)
                break
        self._append(_Waiting(number, grant))

    def evict(self, number: int, keys: Iterable[str], now_ns: int, *, is_everything: bool = False) -> list[str]:
        """A change touched these held keys: they are added to the waiting Evict, and the change is owed since `now_ns`.

        Returns what is held no more. Of a session that has ended only the oldest change that is owed is kept: nobody will
        acknowledge it.
        """
        last = self._queue[-1] if self._queue else None
        if last is None or last.body is not None:
            # Something stands behind the Evict that waits, if there is one: its position must not be passed.
            last = _Waiting(number, None)
            last.since_ns = now_ns
            if self.is_open or not self._owed:
                self._owed.append(last)
            if self.is_open:
                self._append(last)
        last.number = number
        dropped = list(keys)
        for key in dropped:
            self.held.pop(key, None)
            if key == CATALOG:
                last.is_catalog = True
            elif not last.is_everything:
                last.keys[key] = None
        if is_everything or len(last.keys) > MOST_NAMED:
            dropped += self._name_everything(last)
        self._weigh(last)
        self.moved.wake()
        return dropped

    def take(self, now_ns: int) -> Taken | None:
        """The next message for the wire; None: there is none."""
        if not self._queue:
            return None
        message = self._queue.popleft()
        self._weight -= message.weight
        self._sequence += 1
        message.place.sequence = self._sequence
        body = message.body
        if body is None:
            body = Evict(tuple(message.keys), message.is_catalog, message.is_everything)
            message.keys = {}
        if message.number > self._acknowledged:
            self._taken.append((message.number, now_ns))
        self._taken_number = message.number
        return Taken(self._sequence, message.number, body)

    def acknowledge(self, number: int) -> bool:
        """Everything up to `number` was taken and applied; returns whether something was owed there.

        Raises:
            InvalidArgument: no message of that position was sent.
        """
        if number > self._taken_number:
            text = "is beyond every message that was sent in this session"
            raise wrong_field("ack.position", text, "FIELD_OUT_OF_RANGE")
        self._acknowledged = max(self._acknowledged, number)
        while self._taken and self._taken[0][0] <= number:
            self._taken.popleft()
        was_owed = False
        while self._owed and self._owed[0].number <= number:
            self._owed.popleft()
            was_owed = True
        return was_owed

    def forget(self, keys: Iterable[str], sequence: int) -> list[str]:
        """The watcher has dropped `keys`, having taken everything up to `sequence`. Returns those that are held no more.

        One of which a snapshot was queued since stays: the two have crossed.

        Raises:
            InvalidArgument: no message of that number was sent.
        """
        if not 0 <= sequence <= self._sequence:
            text = "is the number of no message that was sent in this session"
            raise wrong_field("forget.sequence", text, "FIELD_OUT_OF_RANGE")
        dropped = []
        for key in keys:
            place = self.held.get(key)
            if place is not None and place.sequence is not None and place.sequence <= sequence:
                del self.held[key]
                dropped.append(key)
        return dropped

    def end(self, refused: Refused | None) -> None:
        """Nothing is taken or acknowledged any more. What is held and counted stays: the watcher may not know yet."""
        self.is_open = False
        self.refused = refused
        self._queue.clear()
        self._taken.clear()
        self._weight = 0
        while len(self._owed) > 1:
            self._owed.pop()
        self.moved.wake()

    def _append(self, message: _Waiting) -> None:
        self._queue.append(message)
        self._weight += message.weight
        self.moved.wake()

    def _name_everything(self, evict: _Waiting) -> list[str]:
        evict.keys = {}
        evict.is_everything = evict.is_catalog = True
        dropped = list(self.held)
        self.held.clear()
        return dropped

    def _weigh(self, evict: _Waiting) -> None:
        if self.is_open:
            self._weight += len(evict.keys) - evict.weight
            evict.weight = len(evict.keys)
