"""Makes a secret and what is stored of it, for tokens and operators: it is told once, and its text not kept (design section 4).

bcrypt takes some 50 ms in a bounded queue: a secret is made before its transaction, never under the locks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from doorward.core.secret import Secret, SecretKind, generate
from doorward_server.model import StoredSecret

if TYPE_CHECKING:
    from doorward_server.credentials.hashing import Hasher
    from doorward_server.credentials.pepper import PepperRing

__all__ = ["NewSecret", "NewSecrets"]


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret that nobody has seen, with its hash and its digest."""

    secret: Secret
    bcrypt_hash: str = field(repr=False)
    digest: bytes = field(repr=False)
    pepper_id: str

    def stored(self, version: int) -> StoredSecret:
        """What the database keeps of it, as this version of its subject's secret."""
        return StoredSecret(version, self.bcrypt_hash, self.digest, self.pepper_id)


class NewSecrets:
    """Makes them."""

    def __init__(self, ring: PepperRing, hasher: Hasher) -> None:
        self._ring = ring
        self._hasher = hasher

    async def make(self, subject_id: str, kind: SecretKind = SecretKind.TOKEN) -> NewSecret:
        """A new secret of this token, or of this operator.

        Raises:
            Exhausted: HASHING_BUSY.
            Unavailable: SHUTTING_DOWN.
        """
        secret = generate(kind, subject_id)
        bcrypt_hash = await self._hasher.hash(secret)
        pepper_id, digest = self._ring.digest(secret.reveal())
        return NewSecret(secret, bcrypt_hash, digest, pepper_id)
