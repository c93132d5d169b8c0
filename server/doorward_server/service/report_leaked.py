"""Ending a secret that has leaked (contract: TokenAdmin.ReportLeakedToken): who holds it has proved it by sending it.

Everybody gets the same answer, which is none. What is recognized has stopped everywhere by then: the current secret's token
is revoked, one that was rotated out ends alone. What has stopped before is not written again, but waited for, since the
report that stopped it may not have been able to. What is not recognized leaves a rate-limited record. Reads the database,
as administration does, so that it works on a replica without a lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward.core.entries import SECRET_VERSION
from doorward.core.revision import Revision
from doorward.core.secret import Secret, SecretKind, find_secret
from doorward_server.errors import DeadlineExceeded
from doorward_server.model import AccountState, AuditEvent, Change
from doorward_server.service.refusals import ANONYMOUS
from doorward_server.storage import changes, token_secrets, tokens
from doorward_server.storage.changes import Decided, commit

if TYPE_CHECKING:
    from doorward_server.model import Json
    from doorward_server.replica.recognition import Recognition
    from doorward_server.service.allowances import Allowances
    from doorward_server.service.mutations import Mutations
    from doorward_server.service.refusals import Refusals
    from doorward_server.storage.changes import Committed, Transaction
    from doorward_server.storage.pool import Database
    from doorward_server.storage.tokens import StoredToken

__all__ = ["REPORTS_AT_ONCE", "REPORT_EVERY_NS", "ReportLeaked"]

# For each peer. A scanner that has found a hundred reports them within a minute or two; who only tries gets nowhere.
REPORTS_AT_ONCE: Final = 60
REPORT_EVERY_NS: Final = 1_000_000_000

ACTION: Final = "ReportLeakedToken"
REASON: Final = "reported as leaked"


@dataclass(frozen=True, slots=True)
class _Recognized:
    """Which token's secret was reported, and which of its versions."""

    token_id: str
    account_id: str
    version: int


class ReportLeaked:
    """The use case."""

    def __init__(
        self,
        database: Database,
        mutations: Mutations,
        recognition: Recognition,
        refusals: Refusals,
        allowances: Allowances,
    ) -> None:
        self._database = database
        self._mutations = mutations
        self._recognition = recognition
        self._refusals = refusals
        self._allowances = allowances

    async def report(self, presented: bytes, peer: str, until_ns: int | None) -> None:
        """Ends what `presented` is a secret of, and returns when it has stopped everywhere; or at once, if it is none.

        Raises:
            Exhausted: TOO_MANY_REQUESTS, HASHING_BUSY.
            DeadlineExceeded: DEADLINE_TOO_SHORT; of a recognized secret as any mutation.
        """
        self._allowances.take(peer)
        # Before anything is recognized: else a short deadline would tell a live secret from others, and not end it.
        self._mutations.require_time(until_ns)
        secret = find_secret(presented, SecretKind.TOKEN)
        if secret is None:
            self._take_note(None, None, peer)
            return
        async with self._database.reading() as connection:
            loaded = await tokens.load(connection, secret.subject_id)
            ended = await token_secrets.read_ended(connection, secret.subject_id)
            now_us = (await changes.read_end(connection)).database_us
        stored = loaded.token
        version = None if stored is None else await self._recognition.proved_version(secret, stored.secrets, now_us)
        if stored is not None and version is not None and not _has_stopped(stored):
            await self._end(_Recognized(stored.token_id, stored.account_id, version), peer, until_ns)
            return
        former = ended if stored is None else (*ended, *stored.secrets)
        has_stopped = self._recognition.known_version(secret, former) is not None
        self._take_note(secret, stored, peer, has_stopped=has_stopped)
        if has_stopped:
            await self._mutations.await_propagation(Revision(loaded.epoch, loaded.number), until_ns)

    async def _end(self, recognized: _Recognized, peer: str, until_ns: int | None) -> None:
        async def transaction() -> Committed[None]:
            return await commit(
                self._database, lambda tx: _decide(tx, recognized, peer), accounts=(recognized.account_id,)
            )

        try:
            await self._mutations.run(transaction, until_ns)
        except DeadlineExceeded as late:
            if late.reason != "DEADLINE_TOO_SHORT":
                raise
            # It was long enough when this call began, and who sent the secret must not learn that it still works.
            await self._mutations.run(transaction, None)

    def _take_note(
        self, secret: Secret | None, stored: StoredToken | None, peer: str, *, has_stopped: bool = False
    ) -> None:
        self._refusals.record(
            actor=ANONYMOUS,
            action=ACTION,
            subject="" if secret is None else f"token:{secret.subject_id}",
            account_id=None if stored is None else stored.account_id,
            reason="TOKEN_IS_REVOKED" if has_stopped else "CREDENTIAL_UNRECOGNIZED",
            peer=peer,
        )


async def _decide(transaction: Transaction, recognized: _Recognized, peer: str) -> Decided[None]:
    """Revokes the token, or ends the version that was presented, unless either has happened since it was recognized."""
    token_id, version = recognized.token_id, recognized.version
    stored = (await tokens.load(transaction.connection, token_id)).token
    before: dict[str, Json] | None = None
    after: dict[str, Json] | None = None
    if stored is not None and not _has_stopped(stored):
        if version == max(secret[SECRET_VERSION] for secret in stored.secrets):
            await tokens.revoke(transaction, token_id, REASON)
            before, after = {"state": "live"}, {"state": "revoked", "reason": REASON}
        elif (end := await token_secrets.end(transaction, token_id, version)) is not None:
            before = {"former_secrets_end": {str(version): end.isoformat()}}
            after = {"former_secrets_end": {str(version): transaction.now.isoformat()}}
    subject = f"token:{token_id}"
    event = AuditEvent(ANONYMOUS, ACTION, subject, recognized.account_id, before, after, peer=peer)
    change = None if after is None else Change(ACTION, recognized.account_id, (subject,))
    return Decided(None, change, event)


def _has_stopped(stored: StoredToken) -> bool:
    """Whether no secret of the token works any more, nor ever will; it could be enabled, and its expiry put off."""
    return stored.revoked or stored.account_state is AccountState.DELETED
