"""Suspending, resuming and deleting accounts (contract: AccountAdmin). No token is written: a check looks at its account.

So each costs the same however many tokens there are, and what is deleted stays readable.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from doorward_server.model import Account, AccountState, Change
from doorward_server.service.accounts import account_deleted, account_not_found
from doorward_server.storage import accounts
from doorward_server.storage.changes import Decided, Transaction

if TYPE_CHECKING:
    from doorward_server.service.administration import Administration
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done

__all__ = ["AccountStates"]


class AccountStates:
    """The use cases."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def suspend(self, request: Request, account_id: str) -> Done[Account]:
        """Denies every check of the account's tokens until it is resumed.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
            FailedPrecondition: ACCOUNT_DELETED.
        """
        return await self._set(request, "SuspendAccount", account_id, AccountState.SUSPENDED)

    async def resume(self, request: Request, account_id: str) -> Done[Account]:
        """Lets the account's tokens work again.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
            FailedPrecondition: ACCOUNT_DELETED.
        """
        return await self._set(request, "ResumeAccount", account_id, AccountState.ACTIVE)

    async def delete(self, request: Request, account_id: str) -> Done[Account]:
        """Stops every token of the account for good.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        return await self._set(request, "DeleteAccount", account_id, AccountState.DELETED)

    async def _set(self, request: Request, action: str, account_id: str, wanted: AccountState) -> Done[Account]:
        async def decide(transaction: Transaction) -> Decided[Account]:
            before = await accounts.read(transaction.connection, account_id)
            if before is None:
                raise account_not_found(account_id)
            if before.state is AccountState.DELETED and wanted is not AccountState.DELETED:
                raise account_deleted(account_id)
            subject = f"account:{account_id}"
            if before.state is wanted:
                return Decided(before, None, request.audit_event(action, subject, account_id))
            after = await accounts.set_state(transaction, account_id, wanted)
            event = request.audit_event(
                action, subject, account_id, before={"state": before.state.name}, after={"state": after.state.name}
            )
            return Decided(after, Change(action, account_id, (subject,)), event)

        return await self._administration.run(
            request,
            decide,
            accounts=(account_id,),
            stamped=lambda account, number: replace(account, revision=number),
        )
