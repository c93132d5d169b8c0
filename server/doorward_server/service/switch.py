"""Disabling and enabling a token (contract: TokenAdmin.DisableToken, EnableToken): reversible, unlike a revocation.

Stopping needs no more than `service_tokens:write`; starting hands out what the token holds, and so is bounded by what
the caller holds (design section 5).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from doorward_server.service.token_mutations import Outcome, require_not_revoked
from doorward_server.storage import token_changes

if TYPE_CHECKING:
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done
    from doorward_server.service.shown import Shown
    from doorward_server.service.token_mutations import Standing, TokenMutations

__all__ = ["Switch"]


class Switch:
    """The two use cases. A token that is as it is wanted is left alone, and the call waits all the same."""

    def __init__(self, mutations: TokenMutations) -> None:
        self._mutations = mutations

    async def disable_token(self, request: Request, token_id: str) -> Done[Shown]:
        """Disables the token: it keeps its secrets, grants and expiry.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
            FailedPrecondition: TOKEN_IS_REVOKED, ACCOUNT_DELETED.
        """

        async def decide(standing: Standing) -> Outcome:
            require_not_revoked(standing.token)
            return await _switched(standing, disabled=True)

        return await self._mutations.run(request, "DisableToken", token_id, decide)

    async def enable_token(self, request: Request, token_id: str) -> Done[Shown]:
        """Lets a disabled token work again; an expired one stays expired.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
            FailedPrecondition: TOKEN_IS_REVOKED, ACCOUNT_DELETED.
            PermissionDenied: EXCEEDS_CALLER.
        """

        async def decide(standing: Standing) -> Outcome:
            require_not_revoked(standing.token)
            standing.authority.require_within(standing.token)
            return await _switched(standing, disabled=False)

        return await self._mutations.run(request, "EnableToken", token_id, decide)


async def _switched(standing: Standing, *, disabled: bool) -> Outcome:
    token, transaction = standing.token, standing.transaction
    if token.disabled is disabled:
        return Outcome(None)
    await token_changes.set_disabled(transaction, token.token_id, disabled=disabled)
    after = replace(token, disabled=disabled, update_time=transaction.now)
    return Outcome(after, {"disabled": token.disabled}, {"disabled": disabled})
