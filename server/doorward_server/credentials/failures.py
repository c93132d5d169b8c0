"""What is remembered of wrong secrets: which were wrong, and how long a token's next attempt waits (design section 4).

Pure and bounded; the owner is `hashing.py`. A presentation is remembered as a keyed BLAKE2b, under a key of this
process, together with the hash that it failed against: the same text may be right for a hash that comes later (a
rotation that this replica has not applied yet). A right secret is not remembered here; `doorward.core.proofs` does that.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from doorward.core.secret import Secret

__all__ = ["FIRST_BACK_OFF_NS", "LONGEST_BACK_OFF_NS", "QUIET_NS", "Failures"]

# Twice one bcrypt at cost 10. The longest is short because it also keeps out the token's rightful holder; it leaves an
# attacker 3 % of the thread for each token, and the queue's bound does the rest.
FIRST_BACK_OFF_NS: Final = 100_000_000
LONGEST_BACK_OFF_NS: Final = 2_000_000_000
# After so long without a failure the next one is a first one again.
QUIET_NS: Final = 60_000_000_000
# 32 bytes and some 100 of bookkeeping each: 1.5 MB.
_CAPACITY: Final = 10_000


@dataclass(frozen=True, slots=True)
class _BackOff:
    failures: int
    failed_at: int  # ns of the clock that is handed in
    until_at: int


class Failures:
    """Wrong presentations and the back-offs they caused, `capacity` of each; what is oldest goes first."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._key = secrets.token_bytes(32)
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._back_offs: OrderedDict[str, _BackOff] = OrderedDict()

    def __len__(self) -> int:
        return len(self._wrong)

    def proof_of(self, subject_id: str, secret: Secret, bcrypt_hash: str) -> bytes:
        """What stands for this presentation. The text itself is in no variable, so that no traceback can show it."""
        return hashlib.blake2b(
            "\0".join((subject_id, bcrypt_hash, secret.reveal())).encode(), key=self._key, digest_size=32
        ).digest()

    def holds(self, proof: bytes) -> bool:
        """Whether this presentation is known to be wrong; asking keeps it longer."""
        if proof not in self._wrong:
            return False
        self._wrong.move_to_end(proof)
        return True

    def record_failure(self, subject_id: str, proofs: Iterable[bytes], now_ns: int) -> None:
        """One attempt was wrong against every hash that `proofs` stand for: the next one waits, longer each time."""
        for proof in proofs:
            self._wrong[proof] = None
        former = self._back_offs.pop(subject_id, None)
        failures = 1
        if former is not None and now_ns - former.failed_at < QUIET_NS:
            failures = former.failures + 1
        # The exponent is bounded too, or the number would grow for as long as somebody tries.
        length_ns = min(FIRST_BACK_OFF_NS << min(failures - 1, 16), LONGEST_BACK_OFF_NS)
        self._back_offs[subject_id] = _BackOff(failures, now_ns, now_ns + length_ns)
        while len(self._wrong) > self._capacity:
            self._wrong.popitem(last=False)
        while len(self._back_offs) > self._capacity:
            self._back_offs.popitem(last=False)

    def record_success(self, subject_id: str) -> None:
        """The subject's next failure is a first one again."""
        self._back_offs.pop(subject_id, None)

    def back_off_ns(self, subject_id: str, now_ns: int) -> int:
        """How long no attempt for this subject may begin; 0 when one may."""
        back_off = self._back_offs.get(subject_id)
        return 0 if back_off is None else max(0, back_off.until_at - now_ns)
