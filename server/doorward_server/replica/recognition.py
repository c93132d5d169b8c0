"""From a presented text to the entry it proves: proof, digest, and only then bcrypt (design section 4).

`find` is plain and fast and never waits; what it lacks it names as `Missing`, and whoever may wait brings that with
`fetch` and looks again. The proof of an identity is remembered, never a verdict: whether that version of the secret is
live is asked of the entry every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import structlog

from doorward.core.entries import (
    OPERATOR_SECRETS,
    TOKEN_SECRETS,
    OperatorEntry,
    TokenEntry,
    find_live_secret,
)
from doorward.core.secret import Secret, SecretKind, find_secret
from doorward.core.token_table import UNKNOWN, FencedTable
from doorward_server.credentials.matching import matches
from doorward_server.errors import Refused
from doorward_server.replica.caches import Caches, Missing
from doorward_server.storage import operators, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from doorward.core.entries import SecretEntry
    from doorward.core.proofs import Proofs
    from doorward_server.credentials.hashing import Hasher
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.replica.holding import Holding
    from doorward_server.storage.pool import Database

__all__ = ["Recognition", "Recognizer"]

log = structlog.get_logger()
E = TypeVar("E", bound="tuple[Any, ...]")

LONGEST_PRESENTED: Final = 128


class Recognizer(Generic[E]):
    """Recognizes the secrets of one kind."""

    def __init__(
        self,
        kind: SecretKind,
        table: FencedTable[E],
        proofs: Proofs,
        secrets_place: int,
        ring: PepperRing,
    ) -> None:
        self._kind = kind
        self._missing = "token" if kind is SecretKind.TOKEN else "operator"
        self._table = table
        self._proofs = proofs
        self._secrets_place = secrets_place
        self._ring = ring

    def find(self, text: bytes, now_us: int, refuted: frozenset[bytes] | set[bytes] | None) -> E | Missing | None:
        """The entry that `text` proves at `now_us`, None if it proves nothing, or what is missing to tell.

        `refuted` has the proofs of texts that bcrypt has just said no to. None: nothing may be written (a warm check).
        """
        if len(text) > LONGEST_PRESENTED:
            return None
        proof = self._proofs.proof_of(text)
        found = self._proofs.find(proof)
        if found is not None:
            subject_id, version = found
            entry = self._table.get(subject_id)
            if entry is None:
                return Missing(self._missing, subject_id)
            if entry is UNKNOWN or find_live_secret(entry[self._secrets_place], version, now_us) is None:
                return None
            return entry
        return self._compare(text, proof, now_us, refuted)

    def remember(self, text: bytes, subject_id: str, version: int) -> None:
        """Keeps the proof that `text` is this version of this subject's secret."""
        self._proofs.remember(self._proofs.proof_of(text), subject_id, version)

    def version_of(self, text: bytes) -> int | None:
        """Which version of its subject's secret `text` was proved to be, if that is remembered."""
        found = self._proofs.find(self._proofs.proof_of(text))
        return None if found is None else found[1]

    def match(self, secret: Secret, now_us: int) -> int | None:
        """Which live version of its subject the digests say that `secret` is."""
        entry = self._table.get(secret.subject_id)
        if entry is None or entry is UNKNOWN:
            return None
        return matches(entry[self._secrets_place], self._ring, secret.reveal(), now_us).version

    def proof_of(self, text: bytes) -> bytes:
        """What `refuted` holds of a text."""
        return self._proofs.proof_of(text)

    def _compare(
        self, text: bytes, proof: bytes, now_us: int, refuted: frozenset[bytes] | set[bytes] | None
    ) -> E | Missing | None:
        secret = find_secret(text, self._kind)
        if secret is None:
            return None
        entry = self._table.get(secret.subject_id)
        if entry is None:
            return Missing(self._missing, secret.subject_id)
        if entry is UNKNOWN:
            return None
        match = matches(entry[self._secrets_place], self._ring, text, now_us)
        if match.version is not None:
            if match.pepper_id != self._ring.current_id:
                # Else the former key could never be retired.
                return Missing("digest", secret.subject_id, secret)
            if refuted is None:
                return Missing("proof", secret.subject_id)
            self._proofs.remember(proof, secret.subject_id, match.version)
            return entry
        if match.is_wrong or (refuted is not None and proof in refuted):
            return None
        return Missing("bcrypt", secret.subject_id, secret)


class Recognition:
    """Both kinds, and how what they miss is brought."""

    def __init__(self, holding: Holding, caches: Caches, database: Database, ring: PepperRing, hasher: Hasher) -> None:
        self._holding = holding
        self._caches = caches
        self._database = database
        self._ring = ring
        self._hasher = hasher
        tables = holding.tables
        self.tokens = Recognizer(SecretKind.TOKEN, tables.tokens, holding.token_proofs, TOKEN_SECRETS, ring)
        self.operators = Recognizer(
            SecretKind.OPERATOR, tables.operators, holding.operator_proofs, OPERATOR_SECRETS, ring
        )

    async def fetch(self, missing: Missing, refuted: set[bytes]) -> None:
        """Brings what was missing, or adds to `refuted` what bcrypt says no to. Then look again.

        Raises:
            Unavailable: the database did not answer.
            Exhausted: HASHING_BUSY.
        """
        if missing.kind == "proof":
            return
        if missing.secret is None:
            await self._caches.fill(missing.kind, missing.key)
        elif missing.kind == "digest":
            await self._renew_digest(missing.secret)
        elif missing.secret.kind is SecretKind.TOKEN:
            await self._prove_token(missing.secret, refuted)
        else:
            await self._prove_operator(missing.secret, refuted)

    async def proved_version(self, secret: Secret, secrets: tuple[SecretEntry, ...], now_us: int) -> int | None:
        """Which of these secrets, live at `now_us`, `secret` is; None: none of them. By digest, else by bcrypt.

        Raises:
            Unavailable: the database did not answer.
            Exhausted: HASHING_BUSY.
        """
        match = matches(secrets, self._ring, secret.reveal(), now_us)
        if match.version is not None:
            if match.pepper_id != self._ring.current_id:
                await self.renew_digest(secret, match.version)
            return match.version
        return None if match.is_wrong else await self.prove(secret, match.undecided)

    def known_version(self, secret: Secret, secrets: tuple[SecretEntry, ...]) -> int | None:
        """Which of these secrets, live or not, `secret` is, as far as digests tell: no bcrypt for what has stopped."""
        return matches(secrets, self._ring, secret.reveal(), now_us=0).version

    async def prove(self, secret: Secret, versions: Iterable[int]) -> int | None:
        """Which of these versions of its subject `secret` is, by bcrypt; None: none of them. Writes the digest back.

        Raises:
            Unavailable: the database did not answer.
            Exhausted: HASHING_BUSY.
        """
        subject_id, is_token = secret.subject_id, secret.kind is SecretKind.TOKEN
        hashes: dict[int, str] = {}
        async with self._database.reading() as connection:
            for version in versions:
                stored = (
                    await tokens.read_hash(connection, subject_id, version)
                    if is_token
                    else await operators.read_hash(connection, subject_id)
                )
                if stored is not None:
                    hashes[version] = stored
        proved = await self._hasher.find_version(subject_id, secret, hashes)
        if proved is not None:
            await self._write_back(secret, proved)
        return proved

    async def renew_digest(self, secret: Secret, version: int) -> None:
        """Writes the digest of a proved secret under the current key; a failure is logged and costs nothing else."""
        await self._write_back(secret, version)

    async def _renew_digest(self, secret: Secret) -> None:
        recognizer = self.tokens if secret.kind is SecretKind.TOKEN else self.operators
        version = recognizer.match(secret, self._holding.latest_us())
        if version is not None:
            await self._write_back(secret, version)
            recognizer.remember(secret.reveal().encode(), secret.subject_id, version)

    async def _prove_token(self, secret: Secret, refuted: set[bytes]) -> None:
        entry = self._holding.tables.tokens.get(secret.subject_id)
        if entry is not None and entry is not UNKNOWN:
            await self._prove(self.tokens, secret, [stored[0] for stored in entry[TOKEN_SECRETS]], refuted)

    async def _prove_operator(self, secret: Secret, refuted: set[bytes]) -> None:
        await self._prove(self.operators, secret, [1], refuted)

    async def _prove(
        self,
        recognizer: Recognizer[TokenEntry] | Recognizer[OperatorEntry],
        secret: Secret,
        versions: Iterable[int],
        refuted: set[bytes],
    ) -> None:
        text = secret.reveal().encode()
        version = await self.prove(secret, versions)
        if version is None:
            refuted.add(recognizer.proof_of(text))
        else:
            recognizer.remember(text, secret.subject_id, version)

    async def _write_back(self, secret: Secret, version: int) -> None:
        pepper_id, digest = self._ring.digest(secret.reveal())
        try:
            # Only for the version that was proved: a rotation may have come in between.
            async with self._database.reading() as connection:
                if secret.kind is SecretKind.TOKEN:
                    await tokens.write_back_digest(connection, secret.subject_id, version, digest, pepper_id)
                else:
                    await operators.write_back_digest(connection, secret.subject_id, digest, pepper_id)
        except Refused as refused:
            # The proof stands; the next restart asks bcrypt once more.
            log.warning("digest_not_written", reason=refused.reason)
