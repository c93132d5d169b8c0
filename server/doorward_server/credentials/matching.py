"""Whether a presented text is one of a token's live secrets: the comparison of digests, pure (design section 4).

Every live version is compared, in constant time and to the end: neither which version matched nor how much of a digest
was right shows in the time taken. A wrong text for a known token costs one HMAC for each live version and no bcrypt.
`replica/recognition.py` calls this for tokens, `service/callers.py` for operators.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward.core.entries import SECRET_VERSION

if TYPE_CHECKING:
    from doorward.core.entries import SecretEntry
    from doorward_server.credentials.pepper import PepperRing

__all__ = ["MatchResult", "matches"]


@dataclass(frozen=True, slots=True)
class MatchResult:
    """What the digests say of a text.

    `version`: the live version whose digest it has (None: of none). `pepper_id`: the key of that digest; if it is not
    the ring's current one, the digest is due to be written anew. `undecided`: live versions, newest first, without a
    digest under a key of the ring: unless a version matched, only bcrypt can say.
    """

    version: int | None
    pepper_id: str | None
    undecided: tuple[int, ...]

    @property
    def is_wrong(self) -> bool:
        """No live version has this text, and bcrypt need not be asked."""
        return self.version is None and not self.undecided


def matches(secrets: tuple[SecretEntry, ...], ring: PepperRing, text: bytes | str, now_us: int) -> MatchResult:
    """Compares `text` with every version that is live at `now_us`; one whose `not_after` has come is none."""
    version: int | None = None
    matched_under: str | None = None
    undecided: list[int] = []
    for candidate, stored, pepper_id, not_after_us in sorted(secrets, key=_version_of, reverse=True):
        if not_after_us is not None and not_after_us <= now_us:
            continue
        presented = None if stored is None or pepper_id is None else ring.digest_under(pepper_id, text)
        if stored is None or presented is None:
            undecided.append(candidate)
        elif hmac.compare_digest(presented, stored) and version is None:
            version, matched_under = candidate, pepper_id
    return MatchResult(version, matched_under, tuple(undecided))


def _version_of(secret: SecretEntry) -> int:
    return secret[SECRET_VERSION]
