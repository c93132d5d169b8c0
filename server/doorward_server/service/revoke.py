"""Revoking a token (contract: TokenAdmin.RevokeToken): final, and no check that begins after the return says yes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from doorward_server.service.token_mutations import Outcome
from doorward_server.storage import tokens

if TYPE_CHECKING:
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done
    from doorward_server.service.shown import Shown
    from doorward_server.service.token_mutations import Standing, TokenMutations

__all__ = ["Revoke"]


class Revoke:
    """The use case."""

    def __init__(self, mutations: TokenMutations) -> None:
        self._mutations = mutations

    async def revoke_token(
        self, request: Request, token_id: str, reason: str, action: str = "RevokeToken"
    ) -> Done[Shown]:
        """Revokes the token; a repeat changes nothing and waits again. `action` is the RPC that asks for it.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
        """

        async def decide(standing: Standing) -> Outcome:
            token, transaction = standing.token, standing.transaction
            if token.revoke_time is not None:
                # Written all the same: a deposed primary cannot, and so cannot say "revoked before".
                return Outcome(None)
            await tokens.revoke(transaction, token_id, reason)
            revoked = replace(token, revoke_time=transaction.now, update_time=transaction.now, revoke_reason=reason)
            return Outcome(revoked, {"state": "live"}, {"state": "revoked", "reason": reason})

        return await self._mutations.run(request, action, token_id, decide, of_deleted_accounts=True)
