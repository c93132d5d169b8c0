"""From a presented credential to the `Caller`; the only place that builds one (design section 5).

A credential is a secret in the header, or the certificate of the connection, which names an operator (decision 0011).
`find` looks in memory only, under whatever lease the check that asks has captured; `authenticate_now` reads the database,
so that administration works on a replica without a lease and is never stale; `authority` reads again under a transaction's
locks, for whatever was true before them may not be so any more. An unknown, wrong, revoked or expired credential is one and
the same refusal.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from doorward.core.entries import (
    OPERATOR_EXPIRE_US,
    OPERATOR_ID,
    OPERATOR_IS_REVOKED,
    OPERATOR_ROLE,
    OPERATOR_SECRETS,
    TOKEN_ACCOUNT_ID,
    TOKEN_ID,
    find_live_secret,
)
from doorward.core.matrix import DenyReason, compile_grants, effective_state
from doorward.core.secret import SecretKind, find_secret
from doorward.core.token_table import UNKNOWN
from doorward_server.credentials.certificates import CertifiedOperator
from doorward_server.errors import Unauthenticated
from doorward_server.model import Caller, CallerKind, OperatorRole
from doorward_server.replica.caches import Missing, account_of, entry_of, operator_of
from doorward_server.service.delegation import Authority, Held, require_permission
from doorward_server.storage import changes, operators, tokens

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward.core.entries import OperatorEntry, TokenEntry
    from doorward.core.matrix import AccountEntry
    from doorward.core.secret import Secret
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.recognition import Recognition
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

__all__ = ["Callers", "bearer_text", "unrecognized"]

SCHEME: Final = "bearer "
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
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

    def __init__(self, holding: Holding, recognition: Recognition, database: Database, catalogs: Catalogs) -> None:
        self._holding = holding
        self._recognition = recognition
        self._find_operator = recognition.operators.find
        self._database = database
        self._catalogs = catalogs
        # Callers are few and records of them are equal: one object for each, made once.
        self._known: dict[tuple[str, str], Caller] = {}

    def find(
        self, credential: str | CertifiedOperator | None, now_us: int, refuted: set[bytes] | None
    ) -> Caller | Missing:
        """The caller, from memory, or what is missing to tell. Called by checks, which have captured a lease.

        Raises:
            Unauthenticated: no credential, or one that proves nobody.
        """
        if isinstance(credential, CertifiedOperator):
            return self._find_certified(credential, now_us)
        text = bearer_text(credential)
        if text.startswith(_TOKEN_PREFIX):
            return self._find_token(text.encode(), now_us, refuted)
        found = self._find_operator(text.encode(), now_us, refuted)
        if found is None:
            raise _unproved(text, SecretKind.OPERATOR)
        return found if isinstance(found, Missing) else self._operator(found, now_us)

    async def authenticate_now(
        self, credential: str | CertifiedOperator | None, method: str, needs_permission: str | None
    ) -> Caller:
        """The caller, as the database has it now; a service token must hold `needs_permission`, if that is one.

        Raises:
            Unauthenticated: no credential, or one that proves nobody.
            PermissionDenied: CALLER_NOT_PERMITTED, a token lacks what `method` needs.
            Unavailable: the database did not answer.
            Exhausted: HASHING_BUSY.
        """
        if isinstance(credential, CertifiedOperator):
            return await self._certified_now(credential)
        text = bearer_text(credential)
        secret = find_secret(text, SecretKind.OPERATOR)
        if secret is not None:
            return await self._operator_now(secret)
        secret = find_secret(text, SecretKind.TOKEN)
        if secret is not None:
            return await self._token_now(secret, method, needs_permission)
        raise _malformed()

    async def authority(self, transaction: Transaction, request: Request, catalog: Catalog) -> Authority:
        """What the caller may hand out, read under the transaction's locks; `catalog` must be the one in force there.

        The account of a token that calls must be among the locked ones: every change of the token takes that lock.

        Raises:
            Unauthenticated: it proves nobody any more.
            PermissionDenied: CALLER_NOT_PERMITTED, it no longer holds what the RPC needs.
        """
        caller = request.caller
        if caller.kind is CallerKind.OPERATOR:
            await self.recheck(transaction, caller)
            return Authority(caller, catalog)
        if caller.account_id not in transaction.locked_accounts:
            raise RuntimeError("A token's authority was read without the lock of its account.")
        stored = (await tokens.load(transaction.connection, caller.subject_id)).token
        record = await tokens.read(transaction.connection, caller.subject_id)
        now_us = _us(transaction.now)
        if stored is None or record is None or caller.secret_version is None:
            raise unrecognized()
        if find_live_secret(stored.secrets, caller.secret_version, now_us) is None:
            raise unrecognized()
        self._token(entry_of(stored), account_of(stored), now_us, caller.secret_version)
        compiled = compile_grants(stored.grants, catalog, stored.plan)
        if request.needs_permission is not None:
            require_permission(caller, compiled, catalog, request.method, request.needs_permission)
        return Authority(caller, catalog, Held(compiled, record.expire_time, record.allow_self_rotation))

    async def recheck(self, transaction: Transaction, caller: Caller) -> None:
        """Reads the operator that calls again under the transaction's locks: it may have been revoked meanwhile.

        Raises:
            Unauthenticated: it proves nobody any more.
        """
        operator = await operators.read(transaction.connection, caller.subject_id)
        if operator is None or operator.revoke_time is not None or operator.role is not caller.role:
            raise unrecognized()
        if operator.expire_time is not None and operator.expire_time <= transaction.now:
            raise unrecognized()

    def _find_certified(self, certified: CertifiedOperator, now_us: int) -> Caller | Missing:
        """The operator of a certificate, which the handshake proved: nothing is left to be compared, but all else holds."""
        entry = self._holding.tables.operators.get(certified.operator_id)
        if entry is None:
            return Missing("operator", certified.operator_id)
        if entry is UNKNOWN or now_us >= certified.expire_us:
            raise unrecognized()
        return self._operator(entry, now_us)

    async def _certified_now(self, certified: CertifiedOperator) -> Caller:
        async with self._database.reading() as connection:
            operator = (await operators.load(connection, certified.operator_id)).operator
            now_us = (await changes.read_end(connection)).database_us
        if operator is None or now_us >= certified.expire_us:
            raise unrecognized()
        return self._operator(operator_of(operator), now_us)

    async def _operator_now(self, secret: Secret) -> Caller:
        async with self._database.reading() as connection:
            operator = (await operators.load(connection, secret.subject_id)).operator
            now_us = (await changes.read_end(connection)).database_us
        if operator is None:
            raise unrecognized()
        entry = operator_of(operator)
        if await self._recognition.proved_version(secret, entry[OPERATOR_SECRETS], now_us) is None:
            raise unrecognized()
        return self._operator(entry, now_us)

    async def _token_now(self, secret: Secret, method: str, needs_permission: str | None) -> Caller:
        async with self._database.reading() as connection:
            stored = (await tokens.load(connection, secret.subject_id)).token
            now_us = (await changes.read_end(connection)).database_us
            catalog = None if needs_permission is None else await self._catalogs.now(connection)
        version = None if stored is None else await self._recognition.proved_version(secret, stored.secrets, now_us)
        if stored is None or version is None:
            raise unrecognized()
        caller = self._token(entry_of(stored), account_of(stored), now_us, version)
        if catalog is not None and needs_permission is not None:
            compiled = compile_grants(stored.grants, catalog, stored.plan)
            require_permission(caller, compiled, catalog, method, needs_permission)
        return caller

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
            raise unrecognized()
        return self._token(entry, account, now_us)

    def _operator(self, entry: OperatorEntry, now_us: int) -> Caller:
        expire_us = entry[OPERATOR_EXPIRE_US]
        if entry[OPERATOR_IS_REVOKED] or (expire_us is not None and now_us >= expire_us):
            raise unrecognized(f"{CallerKind.OPERATOR.value}:{entry[OPERATOR_ID]}")
        key = (entry[OPERATOR_ID], entry[OPERATOR_ROLE])
        caller = self._known.get(key)
        if caller is None:
            if len(self._known) >= 10_000:
                self._known.clear()
            caller = Caller(CallerKind.OPERATOR, key[0], role=OperatorRole[key[1]])
            self._known[key] = caller
        return caller

    @staticmethod
    def _token(entry: TokenEntry, account: AccountEntry, now_us: int, version: int | None = None) -> Caller:
        account_id = entry[TOKEN_ACCOUNT_ID]
        caller = Caller(CallerKind.TOKEN, entry[TOKEN_ID], account_id=account_id, secret_version=version)
        if effective_state(entry, account, now_us) is not DenyReason.ALLOWED:
            raise unrecognized(caller.actor, account_id)
        return caller


def _us(time: datetime) -> int:
    """Microseconds since the Unix epoch, exactly."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def _unproved(text: str | bytes, kind: SecretKind) -> Unauthenticated:
    """Why a text proves nobody. Whether it is whole, its sender can tell as well as we."""
    return _malformed() if find_secret(text, kind) is None else unrecognized()


def _malformed() -> Unauthenticated:
    return Unauthenticated(
        "CREDENTIAL_MALFORMED",
        "the metadata key authorization must hold one value, Bearer <credential>, and a whole credential: "
        "this one is cut off, mistyped, given twice or none at all",
    )


def unrecognized(actor: str | None = None, account_id: str | None = None) -> Unauthenticated:
    """One refusal for every credential that proves nobody, whatever is wrong with it.

    `actor` is whom it did prove, and no longer stands for: only the record of refusals is told.
    """
    refused = Unauthenticated(
        "CREDENTIAL_UNRECOGNIZED", "the credential is not recognized: it is unknown, wrong, revoked or has expired"
    )
    if actor is not None:
        refused.asked_by = (actor, account_id)
    return refused
