"""The two calls to bcrypt, for the worker thread of `hashing.py`, and the form that a stored hash must have (design 4)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

import bcrypt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from doorward.core.secret import Secret

__all__ = ["BCRYPT_COST", "BCRYPT_MAX_BYTES", "Bcrypt", "BcryptCalls", "HashMalformed", "require_well_formed"]

# The secret has 190 random bits, so the cost buys nothing beyond what the format asks for: about 60 ms of a core.
BCRYPT_COST: Final = 10
# bcrypt reads no more; bcrypt 5 raises beyond it, older ones cut. A secret has 60.
BCRYPT_MAX_BYTES: Final = 72

# A row's cost decides how long the thread is held, so an absurd one is refused.
_HASH: Final = re.compile(r"\$2[aby]\$(0[4-9]|1[0-4])\$[./0-9A-Za-z]{53}")


class HashMalformed(Exception):
    """A stored hash is not of bcrypt's form, or of a cost that no version of Doorward used: the row is damaged."""


class BcryptCalls(Protocol):
    """What the worker thread calls."""

    def hash(self, secret: Secret) -> str:
        """A new hash of `secret`."""

    def check(self, secret: Secret, bcrypt_hash: str) -> bool:
        """Whether `bcrypt_hash` is one of `secret`."""


class Bcrypt:
    """bcrypt as it is stored: `$2b$`, with a salt of its own for every hash."""

    def __init__(self, cost: int = BCRYPT_COST) -> None:
        self._cost = cost

    def hash(self, secret: Secret) -> str:
        """A new hash of `secret`. Raises ValueError beyond `BCRYPT_MAX_BYTES`."""
        return bcrypt.hashpw(_bounded(secret), bcrypt.gensalt(self._cost)).decode("ascii")

    def check(self, secret: Secret, bcrypt_hash: str) -> bool:
        """Whether `bcrypt_hash` is one of `secret`. Raises ValueError beyond `BCRYPT_MAX_BYTES`."""
        return bcrypt.checkpw(_bounded(secret), bcrypt_hash.encode("ascii"))


def require_well_formed(bcrypt_hashes: Iterable[str]) -> None:
    """Raises HashMalformed unless each is a hash of bcrypt, of cost 4 to 14."""
    if not all(_HASH.fullmatch(bcrypt_hash) for bcrypt_hash in bcrypt_hashes):
        raise HashMalformed("a stored hash is not of bcrypt's form, or not of cost 4 to 14")


def _bounded(secret: Secret) -> bytes:
    # The text is in no variable, here and above, so that no traceback can show it.
    if len(secret.reveal().encode()) > BCRYPT_MAX_BYTES:
        raise ValueError(f"a secret of more than {BCRYPT_MAX_BYTES} bytes would not be hashed whole")
    return secret.reveal().encode()
