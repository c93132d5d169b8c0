"""The resolves of one session that are under way: at most one for each text or project, and a bounded number.

Who joins one that is under way loses nothing: what has changed since it was sent stands behind its snapshot in the
stream, and is acknowledged only after that. The text of a secret is in the message alone; kept are its proof and the
public id in it. Used by `watch_session` (design section 7, "Watchers").
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from doorward.core.secret import Secret
from doorward.core.watch_messages import Resolve, ResolveProject

# Of the contract. Beyond it the replica reads no further, and would not see an Ack or an Ask either.
MOST_RESOLVES: Final = 256


class Sought(NamedTuple):
    """The number of the resolve to wait for, and the message to send for it, None if it is under way already."""

    number: int
    send: Resolve | ResolveProject | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a resolve asks for: the proof of the text and the id in it, or (None and) the project."""

    proof: bytes | None
    subject_id: str


class Resolves:
    """Numbers from 1 on, never used twice in a session."""

    __slots__ = ("_last", "_numbers", "_wanted")

    def __init__(self) -> None:
        self._last = 0
        self._wanted: dict[int, Wanted] = {}
        self._numbers: dict[Wanted, int] = {}

    def __len__(self) -> int:
        return len(self._wanted)

    def token(self, proof: bytes, secret: Secret) -> Sought | None:
        """Seeks the token of a secret. None: too many are under way."""
        number, is_new = self._number(Wanted(proof, secret.subject_id))
        return None if number is None else Sought(number, Resolve(number, secret) if is_new else None)

    def project(self, project_id: str) -> Sought | None:
        """Seeks the account of a project. None: too many are under way."""
        number, is_new = self._number(Wanted(None, project_id))
        return None if number is None else Sought(number, ResolveProject(number, project_id) if is_new else None)

    def answered(self, number: int) -> Wanted | None:
        """What the resolve of this number asked for, which is under way no more; None if it was not."""
        wanted = self._wanted.pop(number, None)
        if wanted is not None:
            del self._numbers[wanted]
        return wanted

    def clear(self) -> None:
        """Gives up all of them."""
        self._wanted.clear()
        self._numbers.clear()

    def _number(self, wanted: Wanted) -> tuple[int | None, bool]:
        number = self._numbers.get(wanted)
        if number is not None:
            return number, False
        if len(self._wanted) >= MOST_RESOLVES:
            return None, False
        self._last += 1
        self._wanted[self._last] = wanted
        self._numbers[wanted] = self._last
        return self._last, True
