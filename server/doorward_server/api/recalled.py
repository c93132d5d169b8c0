"""Who asks about which token, recalled from one warm check to the next (design section 11).

To recognize the two is most of a check, and nothing about them can change while nothing is applied. So what one check
found is kept under the position of the log that it was found at, and is void with the next change, whatever that
touches. **It holds who they are, never the verdict**, and only of those whom no
passing of time ends: a caller or a secret with an expiry is recognized every time, a token's own expiry is the
decision's to see. There is no secret in it: the key is a keyed BLAKE2b of the credential and the secret.

Only in the event loop's thread: to it, a change is applied in one step. Called by `warm.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from doorward.core.proofs import LONGEST_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.core.catalog import Catalog
    from doorward.core.history import Position
    from doorward_server.replica.caches import Missing
    from doorward_server.service.authorize import Holder

__all__ = ["Recalled"]

# Pairs of a caller and a token. Emptied when full: what is in use is found anew, at the price of one whole check each.
CAPACITY: Final = 16_384


# Then they are looked up once more, so that the caches see what is in use and do not evict it.
REFRESHED_NS: Final = 60_000_000_000
# The position and the end of the lease that it was found at, the catalog, the token with its account.
Found: TypeAlias = "tuple[Position | None, int, Catalog, Holder | Missing | None]"


class Recalled:
    """The pairs that were recognized of late."""

    __slots__ = ("_known", "_proof_of")

    def __init__(self, proof_of: Callable[[bytes], bytes]) -> None:
        self._proof_of = proof_of
        self._known: dict[bytes, Found] = {}

    def find(self, credential: str | None, secret: str, position: Position | None, end_ns: int) -> Found | None:
        """What was found of the two, if at this very position; `end_ns` is that of the lease now."""
        # No header has a NUL in it, so no two pairs make the same text.
        text = f"{credential}\0{secret}".encode()
        if len(text) > LONGEST_TEXT:
            return None
        found = self._known.get(self._proof_of(text))
        if found is None or found[0] is not position or end_ns - found[1] > REFRESHED_NS:
            return None
        return found

    def keep(self, credential: str, secret: str, found: Found) -> None:
        """Keeps what was found; its position was noted before anything was looked up."""
        text = f"{credential}\0{secret}".encode()
        if len(text) > LONGEST_TEXT:
            return
        if len(self._known) >= CAPACITY:
            self._known.clear()
        self._known[self._proof_of(text)] = found
