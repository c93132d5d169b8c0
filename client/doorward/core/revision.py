"""A revision, `<epoch>.<number>`: a position in the change log, as text and as a value that can be ordered.

Within an epoch revisions are ordered; across epochs there is no order, and asking for one raises. There is one text for
each revision: no sign, no leading zero, no space. Used by whoever reads or answers a revision (design sections 1, 7).
"""

import re
from dataclasses import dataclass
from typing import Final

_BOUND: Final = 2**63  # PostgreSQL's bigint
_LONGEST_TEXT: Final = 2 * len(str(_BOUND - 1)) + 1
_TEXT: Final = re.compile(r"([1-9][0-9]{0,18})\.(0|[1-9][0-9]{0,18})")


class RevisionMalformed(ValueError):
    """The text is not a revision."""


class EpochMismatch(Exception):
    """Two revisions of different epochs were to be ordered; neither is older."""


@dataclass(frozen=True, slots=True)
class Revision:
    """Position `number` of `epoch`: 1 <= epoch < 2**63, 0 <= number < 2**63, else ValueError."""

    epoch: int
    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.epoch < _BOUND:
            raise ValueError("epoch must be at least 1 and below 2**63")
        if not 0 <= self.number < _BOUND:
            raise ValueError("number must be at least 0 and below 2**63")

    @classmethod
    def parse(cls, text: str) -> "Revision":
        """The revision that text is the one text of.

        Raises:
            RevisionMalformed: any other text; the message says what would be right and does not repeat the text.
        """
        match = _TEXT.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
        if match is None:
            raise RevisionMalformed("a revision is <epoch>.<number>, two decimal numbers, for example 1.42")
        epoch, number = int(match[1]), int(match[2])
        if epoch >= _BOUND or number >= _BOUND:
            raise RevisionMalformed("the epoch and the number of a revision are below 2**63")
        return cls(epoch, number)

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"

    def __lt__(self, other: "Revision") -> bool:
        return self._number_beside(other) < other.number

    def __le__(self, other: "Revision") -> bool:
        return self._number_beside(other) <= other.number

    def __gt__(self, other: "Revision") -> bool:
        return self._number_beside(other) > other.number

    def __ge__(self, other: "Revision") -> bool:
        return self._number_beside(other) >= other.number

    def _number_beside(self, other: "Revision") -> int:
        if self.epoch != other.epoch:
            raise EpochMismatch(f"revisions {self} and {other} are of different epochs and have no order")
        return self.number
