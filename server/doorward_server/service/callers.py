"""From a presented credential to the `Caller`; the only place that builds one (design section 5).

Two ways: `find` looks in memory only, under whatever lease the check that asks has captured; `authenticate_now` reads the
database, so that administration works on a replica without a lease and is never stale. An unknown, wrong, revoked or
expired credential is one and the same refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.core.entries import (
    OPERATOR_EXPIRE_US,
    OPERATOR_ID,
    OPERATOR_IS_REVOKED,
    OPERATOR_ROLE,
    OPERATOR_SECRETS,
    TOKEN_ACCOUNT_ID,
    TOKEN_ID,
)
from doorward.core.matrix import DenyReason, effective_state
from doorward.core.secret import SecretKind, find_secret
from doorward.core.token_table import UNKNOWN
from doorward_server.credentials.matching import matches
from doorward_server.errors import Unauthenticated
from doorward_server.model import Caller, CallerKind, OperatorRole
from doorward_server.replica.caches import Missing, account_of, entry_of, operator_of
from doorward_server.storage import changes, operators, tokens

if TYPE_CHECKING:
    from doorward.core.entries import OperatorEntry, SecretEntry, TokenEntry
    from doorward.core.matrix import AccountEntry
    from doorward.core.secret import Secret
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.recognition import Recognition
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

__all__ = ["Callers", "bearer_text"]

SCHEME: Final = "bearer "
_TOKEN_PREFIX: Final = SecretKind.TOKEN.value
LONGEST_CREDENTIAL: Final = 160


def bearer_text(credential: str | None) -> str:
    """The credential in the value of an `authorization` header (RFC 6750, section 2.1).

    Raises:
        Unauthenticated: CREDENTIAL_MISSING or CREDENTIAL_MALFORMED; what was presented is not repeated.
    """
    if not credential:
        raise Unauthenticated(
            "CREDENTIAL_MISSING", "a credential is needed, in the metadata: authorization: Bearer <credential>"
        )
    scheme, text = credential[: len(SCHEME)], credential[len(SCHEME) :].strip(" ")
    if scheme.lower() != SCHEME or not text or len(text) > LONGEST_CREDENTIAL or not text.isascii():
        raise _malformed()
    return text


class Callers:
    """Recognizes callers: operators, and service tokens acting on their own account."""

    def __init__(self, holding: Holding, recognition: Recognition, database: Database, ring: PepperRing) -> None:
        self._holding = holding
        self._recognition = recognition
        self._find_operator = recognition.operators.find
        self._database = database
        self._ring = ring
        # Callers are few and records of them are equal: one object for each, made once.
        self._known: dict[tuple[str, str], Caller] = {}

    def find(self, credential: str | None, now_us: int, refuted: set[bytes] | None) -> Caller | Missing:
        """The caller, from memory, or what is missing to tell. Called by checks, which have captured a lease.

        Raises:
            Unauthenticated: no credential, or one that proves nobody.
        """
        text = bearer_text(credential)
        if text.startswith(_TOKEN_PREFIX):
            return self._find_token(text.encode(), now_us, refuted)
        found = self._find_operator(text.encode(), now_us, refuted)
        if found is None:
            raise _unproved(text, SecretKind.OPERATOR)
        return found if isinstance(found, Missing) else self._operator(found, now_us)

    async def authenticate_now(self, credential: str | None) -> Caller:
        """The caller, as the database has it now.

        Raises:
            Unauthenticated: no credential, or one that proves nobody.
            Unavailable: the database did not answer.
            Exhausted: HASHING_BUSY.
        """
        text = bearer_text(credential)
        secret = find_secret(text, SecretKind.OPERATOR)
        if secret is not None:
            return await self._operator_now(secret)
        secret = find_secret(text, SecretKind.TOKEN)
        if secret is not None:
            return await self._token_now(secret)
        raise _malformed()

    async def recheck(self, transaction: Transaction, caller: Caller) -> None:
        """Reads the caller again under the transaction's locks: it may have been revoked since it was recognized.

        Raises:
            Unauthenticated: it proves nobody any more.
        """
        operator = await operators.read(transaction.connection, caller.subject_id)
        if operator is None or operator.revoke_time is not None or operator.role is not caller.role:
            raise _unrecognized()
        if operator.expire_time is not None and operator.expire_time <= transaction.now:
            raise _unrecognized()

    async def _operator_now(self, secret: Secret) -> Caller:
        async with self._database.reading() as connection:
            operator = (await operators.load(connection, secret.subject_id)).operator
            now_us = (await changes.read_end(connection)).database_us
        if operator is None:
            raise _unrecognized()
        entry = operator_of(operator)
        if not await self._is_proved(secret, entry[OPERATOR_SECRETS], now_us):
            raise _unrecognized()
        return self._operator(entry, now_us)

    async def _token_now(self, secret: Secret) -> Caller:
        async with self._database.reading() as connection:
            stored = (await tokens.load(connection, secret.subject_id)).token
            now_us = (await changes.read_end(connection)).database_us
        if stored is None or not await self._is_proved(secret, stored.secrets, now_us):
            raise _unrecognized()
        return self._token(entry_of(stored), account_of(stored), now_us)

    async def _is_proved(self, secret: Secret, secrets: tuple[SecretEntry, ...], now_us: int) -> bool:
        match = matches(secrets, self._ring, secret.reveal(), now_us)
        if match.version is not None:
            if match.pepper_id != self._ring.current_id:
                await self._recognition.renew_digest(secret, match.version)
            return True
        if match.is_wrong:
            return False
        return await self._recognition.prove(secret, match.undecided) is not None

    def _find_token(self, text: bytes, now_us: int, refuted: set[bytes] | None) -> Caller | Missing:
        entry = self._recognition.tokens.find(text, now_us, refuted)
        if entry is None:
            raise _unproved(text, SecretKind.TOKEN)
        if isinstance(entry, Missing):
            return entry
        account = self._holding.tables.accounts.get(entry[TOKEN_ACCOUNT_ID])
        if account is None:
            return Missing("account", entry[TOKEN_ACCOUNT_ID])
        if account is UNKNOWN:
            raise _unrecognized()
        return self._token(entry, account, now_us)

    def _operator(self, entry: OperatorEntry, now_us: int) -> Caller:
        expire_us = entry[OPERATOR_EXPIRE_US]
        if entry[OPERATOR_IS_REVOKED] or (expire_us is not None and now_us >= expire_us):
            raise _unrecognized()
        key = (entry[OPERATOR_ID], entry[OPERATOR_ROLE])
        caller = self._known.get(key)
        if caller is None:
            if len(self._known) >= 10_000:
                self._known.clear()
            caller = Caller(CallerKind.OPERATOR, key[0], role=OperatorRole[key[1]])
            self._known[key] = caller
        return caller

    @staticmethod
    def _token(entry: TokenEntry, account: AccountEntry, now_us: int) -> Caller:
        if effective_state(entry, account, now_us) is not DenyReason.ALLOWED:
            raise _unrecognized()
        return Caller(CallerKind.TOKEN, entry[TOKEN_ID], account_id=entry[TOKEN_ACCOUNT_ID])


def _unproved(text: str | bytes, kind: SecretKind) -> Unauthenticated:
    """Why a text proves nobody. Whether it is whole, its sender can tell as well as we."""
    return _malformed() if find_secret(text, kind) is None else _unrecognized()


def _malformed() -> Unauthenticated:
    return Unauthenticated(
        "CREDENTIAL_MALFORMED",
        "the metadata key authorization must hold one value, Bearer <credential>, and a whole credential: "
        "this one is cut off, mistyped, given twice or none at all",
    )


def _unrecognized() -> Unauthenticated:
    return Unauthenticated(
        "CREDENTIAL_UNRECOGNIZED", "the credential is not recognized: it is unknown, wrong, revoked or has expired"
    )
