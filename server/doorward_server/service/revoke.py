"""Revoking a token (contract: TokenAdmin.RevokeToken): final, and no check that begins after the return says yes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from doorward_server.errors import NotFound
from doorward_server.model import Change
from doorward_server.service.accounts import account_not_found
from doorward_server.service.shown import Shown
from doorward_server.storage import accounts, tokens
from doorward_server.storage.changes import Committed, Decided, Transaction, commit

if TYPE_CHECKING:
    from doorward_server.model import Token
    from doorward_server.service.callers import Callers
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done, Mutations
    from doorward_server.storage.pool import Database

__all__ = ["Revoke", "token_not_found"]


def token_not_found(token_id: str) -> NotFound:
    """One sentence for every token that does not exist or that the caller may not see."""
    return NotFound("TOKEN_NOT_FOUND", f"there is no token {token_id!r}", metadata={"token_id": token_id})


class Revoke:
    """The use case."""

    def __init__(self, database: Database, mutations: Mutations, callers: Callers, catalogs: Catalogs) -> None:
        self._database = database
        self._mutations = mutations
        self._callers = callers
        self._catalogs = catalogs

    async def revoke_token(self, request: Request, token_id: str, reason: str) -> Done[Shown]:
        """Revokes the token; a repeat changes nothing and waits again.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
        """
        # A token never moves: its account can be read before it is locked.
        async with self._database.reading() as connection:
            found = await tokens.read(connection, token_id)
        if found is None:
            raise token_not_found(token_id)
        account_id = found.account_id

        async def decide(transaction: Transaction) -> Decided[Shown]:
            await self._callers.recheck(transaction, request.caller)
            token = await tokens.read(transaction.connection, token_id)
            if token is None:
                raise token_not_found(token_id)
            subject = f"token:{token_id}"
            if token.revoke_time is not None:
                # Written all the same: a deposed primary cannot, and so cannot say "revoked before".
                shown = await self._shown(transaction, token)
                return Decided(shown, None, request.audit_event("RevokeToken", subject, account_id))
            await tokens.revoke(transaction, token_id, reason)
            revoked = replace(token, revoke_time=transaction.now, update_time=transaction.now, revoke_reason=reason)
            event = request.audit_event(
                "RevokeToken",
                subject,
                account_id,
                before={"state": "live"},
                after={"state": "revoked", "reason": reason},
            )
            shown = await self._shown(transaction, revoked)
            return Decided(shown, Change("RevokeToken", account_id, (subject,)), event)

        async def transaction() -> Committed[Shown]:
            committed = await commit(
                self._database, decide, accounts=(account_id,), operators_share=request.operators_share
            )
            if not committed.changed:
                return committed
            return replace(committed, value=committed.value.at_revision(committed.revision.number))

        return await self._mutations.run(transaction, request.until_ns)

    async def _shown(self, transaction: Transaction, token: Token) -> Shown:
        account = await accounts.read(transaction.connection, token.account_id)
        if account is None:
            raise account_not_found(token.account_id)
        return Shown([token], await self._catalogs.of(transaction), account.plan, transaction.now)
