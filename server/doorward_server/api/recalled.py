"""Who asks about which token, recalled from one warm check to the next (design section 11).

To recognize the two is most of a check. So what one check found is kept: the operator's, the token's and the account's
entries and the catalog. They are good at the position of the log that they were found at, as nothing about them changes
while nothing is applied; and beyond it for as long as each is still the very one that the tables hold, for a change takes
out what it touches. **It holds who they are, never the verdict.** There is no secret in it: the key is a keyed BLAKE2b of
the credential and the secret.

Only for the event loop's thread, to which a change is applied in one step. Called by `warm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from doorward.core.entries import (
    OPERATOR_EXPIRE_US,
    OPERATOR_ID,
    OPERATOR_SECRETS,
    SECRET_NOT_AFTER_US,
    TOKEN_ACCOUNT_ID,
    TOKEN_ID,
    TOKEN_SECRETS,
)
from doorward.core.proofs import LONGEST_TEXT
from doorward.core.token_table import CATALOG_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.core.catalog import Catalog
    from doorward.core.entries import OperatorEntry
    from doorward.core.history import Position
    from doorward.core.token_table import Tables
    from doorward_server.service.authorize import Holder

__all__ = ["Found", "Recalled"]

# Pairs of a caller and a token. Emptied when full: what is in use is found anew, at the price of one whole check each.
CAPACITY: Final = 16_384
# Then they are looked up once more, so that the tables see what is in use and do not evict it.
REFRESHED_NS: Final = 60_000_000_000
NEVER_US: Final = 2**63


@dataclass(frozen=True, slots=True)
class Found:
    """A pair as it was recognized.

    At `position`, under a lease that ends at `end_ns`; it proves nobody any more from `until_us` on.
    """

    position: Position | None
    end_ns: int
    until_us: int
    catalog: Catalog
    holder: Holder
    operator: OperatorEntry


def until_us(operator: OperatorEntry, holder: Holder, now_us: int) -> int:
    """When the first of what proves them ends: the operator, one of its secrets, or one of the token's."""
    secrets = (*operator[OPERATOR_SECRETS], *holder[0][TOKEN_SECRETS])
    ends = [operator[OPERATOR_EXPIRE_US], *(secret[SECRET_NOT_AFTER_US] for secret in secrets)]
    return min((end for end in ends if end is not None and end > now_us), default=NEVER_US)


class Recalled:
    """The pairs that were recognized of late."""

    __slots__ = ("_known", "_proof_of", "_tables")

    def __init__(self, tables: Tables, proof_of: Callable[[bytes], bytes]) -> None:
        self._tables = tables
        self._proof_of = proof_of
        self._known: dict[bytes, Found] = {}

    def find(
        self, credential: str | None, secret: str, position: Position | None, end_ns: int, now_us: int
    ) -> Found | None:
        """What was found of the two, if it is true at this position, which is applied now, and at this time."""
        try:
            # No header has a NUL in it, so no two pairs make the same text.
            proof = self._proof_of(f"{credential}\0{secret}".encode())
        except ValueError:  # too long to be two that were kept
            return None
        found = self._known.get(proof)
        if found is None or now_us >= found.until_us:
            return None
        if found.position is position and end_ns - found.end_ns <= REFRESHED_NS:
            return found
        return self._looked_up_anew(proof, found, position, end_ns)

    def keep(self, credential: str, secret: str, found: Found) -> None:
        """Keeps what was found; its position was noted before anything was looked up."""
        text = f"{credential}\0{secret}".encode()
        if len(text) > LONGEST_TEXT:
            return
        if len(self._known) >= CAPACITY:
            self._known.clear()
        self._known[self._proof_of(text)] = found

    def _looked_up_anew(self, proof: bytes, found: Found, position: Position | None, end_ns: int) -> Found | None:
        tables, operator, (token, account) = self._tables, found.operator, found.holder
        if (
            tables.operators.get(operator[OPERATOR_ID]) is operator
            and tables.tokens.get(token[TOKEN_ID]) is token
            and tables.accounts.get(token[TOKEN_ACCOUNT_ID]) is account
            and tables.catalogs.get(CATALOG_KEY) is found.catalog
        ):
            found = self._known[proof] = replace(found, position=position, end_ns=end_ns)
            return found
        del self._known[proof]
        return None
