"""Which presented texts have been proved to be which secret: a bounded map without a secret in it.

The key of an entry is a keyed BLAKE2b of the presented bytes, under a key that is random for each process; the entry is
the public id and the version of the secret. **It holds the proof of identity, never the verdict:** whoever finds an
entry still asks the token whether that version is live. Written by recognition and by the feed, read at every check
(design section 4).
"""

import hashlib
import secrets
from typing import Final

from doorward.core.second_chance import SecondChanceMap

LONGEST_TEXT: Final = 128
_KEY_BYTES: Final = 32
_PROOF_BYTES: Final = 32


class Proofs:
    """At most `capacity` proofs; what is used stays longer. `key`, 16 to 64 bytes, is random unless given."""

    __slots__ = ("_by_proof", "_by_subject", "_keyed", "_look_up", "_touch")

    def __init__(self, capacity: int, key: bytes | None = None) -> None:
        if key is not None and not 16 <= len(key) <= 64:
            raise ValueError("the key of the proofs has 16 to 64 bytes")
        self._keyed = hashlib.blake2b(key=key or secrets.token_bytes(_KEY_BYTES), digest_size=_PROOF_BYTES)
        self._by_proof: SecondChanceMap[bytes, tuple[str, int]] = SecondChanceMap(capacity)
        self._by_subject: dict[str, tuple[bytes, ...]] = {}
        self._look_up, self._touch = self._by_proof.look_up, self._by_proof.touch

    def __len__(self) -> int:
        return len(self._by_proof)

    def proof_of(self, text: bytes) -> bytes:
        """The proof that a presented text would have, 32 bytes; only this process can compute it.

        Raises:
            ValueError: text is longer than 128 bytes; the message does not repeat it.
        """
        if len(text) > LONGEST_TEXT:
            raise ValueError("a presented secret has at most 128 bytes")
        hashing = self._keyed.copy()
        hashing.update(text)
        return hashing.digest()

    def find(self, proof: bytes) -> tuple[str, int] | None:
        """The public id and the secret's version that the text was proved to be, or None. Only reads."""
        found = self._look_up(proof)
        if found is not None:
            self._touch(proof)
        return found

    def remember(self, proof: bytes, subject_id: str, version: int) -> None:
        """Keeps a proof; when full, another one goes that was not used lately."""
        former = self._by_proof.peek(proof)
        if former is not None:
            self._drop_from_index(proof, former[0])
        evicted = self._by_proof.put(proof, (subject_id, version))
        if evicted is not None:
            self._drop_from_index(evicted[0], evicted[1][0])
        self._by_subject[subject_id] = (*self._by_subject.get(subject_id, ()), proof)

    def forget(self, subject_id: str) -> None:
        """Drops every proof of this id."""
        for proof in self._by_subject.pop(subject_id, ()):
            self._by_proof.pop(proof)

    def clear(self) -> None:
        """Drops everything; the key stays."""
        self._by_proof.clear()
        self._by_subject.clear()

    def _drop_from_index(self, proof: bytes, subject_id: str) -> None:
        rest = tuple(other for other in self._by_subject.get(subject_id, ()) if other != proof)
        if rest:
            self._by_subject[subject_id] = rest
        else:
            self._by_subject.pop(subject_id, None)
