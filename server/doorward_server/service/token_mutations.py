"""What every change of one token has in common: find its account, lock it, read caller and token anew, decide, audit, show.

A use case hands in what is its own, a decision on a `Standing`. To a caller that may not see the token it does not exist.
Used by `revoke.py`, `update.py`, `switch.py` and `rotate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from doorward_server.errors import FailedPrecondition
from doorward_server.model import AccountState, Change
from doorward_server.service.accounts import account_deleted, account_not_found
from doorward_server.service.delegation import may_see, token_not_found
from doorward_server.service.shown import Shown
from doorward_server.storage import accounts, tokens
from doorward_server.storage.changes import Committed, Decided, Transaction, commit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from doorward.core.catalog import Catalog
    from doorward_server.model import Account, Json, Token
    from doorward_server.service.callers import Callers
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.delegation import Authority
    from doorward_server.service.mutations import Done, Mutations
    from doorward_server.storage.pool import Database

__all__ = ["Outcome", "Standing", "TokenMutations", "require_not_revoked"]


def require_not_revoked(token: Token) -> None:
    """Sees that the token can still be changed.

    Raises:
        FailedPrecondition: TOKEN_IS_REVOKED.
    """
    if token.revoke_time is not None:
        raise FailedPrecondition(
            "TOKEN_IS_REVOKED",
            f"token {token.token_id!r} is revoked, which is final; issue another one",
            metadata={"token_id": token.token_id},
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """What a decision on one token stands on, all of it read under the transaction's locks."""

    transaction: Transaction
    token: Token
    account: Account
    authority: Authority

    @property
    def catalog(self) -> Catalog:
        """The catalog in force."""
        return self.authority.catalog


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision came to. `after` is the token as written; None: there was nothing to change, nothing was written.

    `before` and `changed` are the audit's: what has changed, as it was and as it is.
    """

    after: Token | None
    before: Mapping[str, Json] | None = None
    changed: Mapping[str, Json] | None = None


class TokenMutations:
    """Runs decisions on one token."""

    def __init__(self, database: Database, mutations: Mutations, callers: Callers, catalogs: Catalogs) -> None:
        self._database = database
        self._mutations = mutations
        self._callers = callers
        self._catalogs = catalogs

    async def run(
        self,
        request: Request,
        action: str,
        token_id: str,
        decide: Callable[[Standing], Awaitable[Outcome]],
        *,
        of_deleted_accounts: bool = False,
    ) -> Done[Shown]:
        """Changes the token as `decide` says; with `request.validate_only` checks everything and leaves nothing behind.

        `action` is the name of the RPC. `decide` may run several times.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
            FailedPrecondition: ACCOUNT_DELETED, unless it may be done `of_deleted_accounts`.
            Unauthenticated, PermissionDenied: the caller is no longer what it was when it was recognized.
        """
        # A token never moves: its account can be read before it is locked.
        async with self._database.reading() as connection:
            found = await tokens.read(connection, token_id)
        if found is None or not may_see(request.caller, found.account_id):
            raise token_not_found(token_id)
        account_id = found.account_id

        async def decided(transaction: Transaction) -> Decided[Shown]:
            catalog = await self._catalogs.of(transaction)
            authority = await self._callers.authority(transaction, request, catalog)
            token = await tokens.read(transaction.connection, token_id)
            if token is None:
                raise token_not_found(token_id)
            account = await accounts.read(transaction.connection, account_id)
            if account is None:
                raise account_not_found(account_id)
            if account.state is AccountState.DELETED and not of_deleted_accounts:
                raise account_deleted(account_id)
            outcome = await decide(Standing(transaction, token, account, authority))
            subject = f"token:{token_id}"
            event = request.audit_event(action, subject, account_id, before=outcome.before, after=outcome.changed)
            change = None if outcome.after is None else Change(action, account_id, (subject,))
            is_deleted = account.state is AccountState.DELETED
            shown = Shown([outcome.after or token], catalog, account.plan, transaction.now, is_deleted)
            return Decided(shown, change, event, catalog.version)

        async def transaction() -> Committed[Shown]:
            committed = await commit(
                self._database,
                decided,
                accounts=(account_id,),
                operators_share=request.operators_share,
                dry_run=request.validate_only,
            )
            if not committed.changed or request.validate_only:
                return committed
            return replace(committed, value=committed.value.at_revision(committed.revision.number))

        if request.validate_only:
            return await self._mutations.validate(transaction)
        return await self._mutations.run(transaction, request.until_ns)
