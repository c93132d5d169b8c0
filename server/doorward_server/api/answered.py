"""What a warm Check allowed, kept as bytes for the same question of the same caller while nothing at all has changed.

An answer of memory depends on the state at a position of the log and, by what expires, on the time. So at the very
position that it was made at, under whatever lease, and until the first thing of it ends, the same bytes are the answer
again. Any change ends all of them, whatever it touches; who is behind them is then recalled (`recalled.py`). Only what
was allowed is kept. There is no secret in it: the key is a keyed BLAKE2b of the credential and the request.

Only for the event loop's thread, as `recalled.py`. Called by `warm.py` (design section 11).
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from doorward_server.api.recalled import REFRESHED_NS

if TYPE_CHECKING:
    from doorward.core.history import Position

__all__ = ["Answer", "Answered"]

CAPACITY: Final = 16_384
# Of a credential and a request together; a usual pair has 200 bytes.
LONGEST: Final = 1_024


class Answer(NamedTuple):
    """A CheckResponse that allows. At `position`, under a lease that ends at `end_ns`; not to be given from `until_us` on."""

    position: Position | None
    end_ns: int
    until_us: int
    token_id: str
    response: bytes


class Answered:
    """The answers of late. Emptied when full, as the memory of pairs is."""

    __slots__ = ("_keyed", "_known")

    def __init__(self) -> None:
        self._keyed = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=32)
        self._known: dict[bytes, Answer] = {}

    def key_of(self, credential: str | None, request: bytes) -> bytes | None:
        """Where the answer to this question is kept; None: nowhere."""
        if credential is None or len(request) + len(credential) > LONGEST:
            return None
        hashing = self._keyed.copy()
        # No header has a NUL in it, so no two pairs make the same text.
        hashing.update(b"%b\0%b" % (credential.encode(), request))
        return hashing.digest()

    def find(self, key: bytes, position: Position | None, end_ns: int, now_us: int) -> Answer | None:
        """The answer, if it was made at this position, which is applied now, and nothing of it has ended by now_us."""
        answer = self._known.get(key)
        if answer is None or answer.position is not position or now_us >= answer.until_us:
            return None
        # Then it is recalled once more, so that the tables see what is in use.
        return answer if end_ns - answer.end_ns <= REFRESHED_NS else None

    def keep(self, key: bytes, answer: Answer) -> None:
        """Keeps what was allowed; its position was noted before anything was looked up."""
        if len(self._known) >= CAPACITY:
            self._known.clear()
        self._known[key] = answer
