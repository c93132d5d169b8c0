"""What a process has applied of the change log: the position it stands at and the nonces of the newest positions.

The same number can stand for another change in another history (a deposed primary, a restored backup); the random nonce
of each change tells them apart. `History` remembers enough of them to say whether something that was read elsewhere, a
renewal or a load, belongs to the history that was applied here. A new generation begins with each registration: what
was begun in an older one is void. Written by the feed and by registration only; read by `lease` and `token_table`
(design section 7). Pure bookkeeping: no await, no clock.
"""

from dataclasses import dataclass
from typing import Final

from doorward.core.revision import Revision

TAIL_LENGTH: Final = 10_000


class HistoryGap(Exception):
    """A change that does not follow the applied position at once: register anew (design section 7, "Apply")."""


@dataclass(frozen=True, slots=True)
class Position:
    """A number of the change log with the nonce of the change that has it."""

    number: int
    nonce: bytes


class History:
    """The applied position and the newest nonces, at most `tail_length` of them.

    `generation` is 0 and `applied` is None until `start`. `applied` is a new object after every change, so that whoever
    reads it before and after a step may compare with `is`.
    """

    __slots__ = ("_tail", "_tail_length", "applied", "epoch", "generation")

    def __init__(self, tail_length: int = TAIL_LENGTH) -> None:
        if tail_length < 1:
            raise ValueError("tail_length must be at least 1")
        self.generation = 0
        self.epoch = 0
        self.applied: Position | None = None
        self._tail: dict[int, bytes] = {}
        self._tail_length = tail_length

    def start(self, epoch: int, number: int, nonce: bytes) -> None:
        """Begins a new generation at a position that a registration's answer told."""
        self.generation += 1
        self.epoch = epoch
        self._tail = {number: nonce}
        self.applied = Position(number, nonce)

    def append(self, number: int, nonce: bytes) -> None:
        """Moves on by one change.

        Raises:
            HistoryGap: number is not the applied one + 1, or nothing has been started.
        """
        if self.applied is None or number != self.applied.number + 1:
            raise HistoryGap(f"change {number} does not follow {self.applied.number if self.applied else 'a start'}")
        self._tail[number] = nonce
        self._tail.pop(number - self._tail_length, None)
        self.applied = Position(number, nonce)

    def holds(self, number: int, nonce: bytes) -> bool:
        """Whether the change with this number is known to have this nonce."""
        return self._tail.get(number) == nonce

    def find_nonce(self, number: int) -> bytes | None:
        """The nonce of this number, or None if it is not remembered (any more)."""
        return self._tail.get(number)

    def knows(self, number: int) -> bool:
        """Whether the nonce of this number is still remembered."""
        return number in self._tail

    def contradicts(self, epoch: int, number: int, nonce: bytes, *, not_below: int) -> bool:
        """Whether a position that was read elsewhere belongs to another history than the one applied here.

        It does with another epoch, with another nonce at a remembered number, and with a number below `not_below`, the
        number that was applied when the reading began. A number ahead of the applied one contradicts nothing yet.
        """
        return epoch != self.epoch or number < not_below or (self.knows(number) and not self.holds(number, nonce))

    @property
    def revision(self) -> Revision:
        """The applied position as a revision.

        Raises:
            HistoryGap: nothing has been started.
        """
        if self.applied is None:
            raise HistoryGap("nothing has been applied before the first start")
        return Revision(self.epoch, self.applied.number)
