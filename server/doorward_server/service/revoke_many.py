"""Revoking many tokens of one account (contract: TokenAdmin.BatchRevokeTokens, RevokeTokensByFilter).

Each transaction takes the account's lock, reads the caller anew under it and revokes at most a thousand: one change and one
audit event, which name them all. There is one wait, for the last change, and with it for those before. A token that revokes
others by a filter goes with the last transaction, since the others need it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from doorward_server.errors import NotFound
from doorward_server.model import AccountState, CallerKind, Change, Page
from doorward_server.service.accounts import account_not_found, require_seen
from doorward_server.service.delegation import token_not_found
from doorward_server.service.find_tokens import settled_filter
from doorward_server.service.shown import Shown
from doorward_server.storage import accounts, token_lists, tokens
from doorward_server.storage.changes import Committed, Decided, commit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from doorward.core.catalog import Catalog
    from doorward_server.model import Account, AuditEvent, Json, Token, TokenFilter
    from doorward_server.service.callers import Callers
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done, Mutations
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database
    from doorward_server.storage.token_lists import FoundToken

__all__ = ["MOST_AT_ONCE", "RevokeMany"]

T = TypeVar("T")
U = TypeVar("U")

# Tokens in one transaction: some 100 ms under the account's lock, and 20 kB in the change that every replica reads.
MOST_AT_ONCE: Final = 1_000
BATCH: Final = "BatchRevokeTokens"
BY_FILTER: Final = "RevokeTokensByFilter"


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tokens as they are shown, and which of them this call has revoked: only those carry its revision."""

    shown: Shown
    revoked: frozenset[str]

    def at_revision(self, number: int) -> Shown:
        stamped = [
            replace(token, revision=number) if token.token_id in self.revoked else token for token in self.shown.tokens
        ]
        return replace(self.shown, tokens=stamped)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one transaction of several revokes, and whether it is the last one."""

    tokens: Sequence[FoundToken]
    is_last: bool


class RevokeMany:
    """The two use cases."""

    def __init__(self, database: Database, mutations: Mutations, callers: Callers, catalogs: Catalogs) -> None:
        self._database = database
        self._mutations = mutations
        self._callers = callers
        self._catalogs = catalogs

    async def revoke_batch(
        self, request: Request, account_id: str, token_ids: Sequence[str], reason: str
    ) -> Done[Shown]:
        """Revokes these tokens, at most MOST_AT_ONCE, all or none; answers them in this order.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND; TOKEN_NOT_FOUND, with all that the account does not have.
        """
        require_seen(request.caller, account_id)

        async def decide(transaction: Transaction) -> Decided[_Batch]:
            account, catalog = await self._standing(transaction, request, account_id)
            found = await tokens.read_many(transaction.connection, token_ids)
            own = {token.token_id for token in found if token.account_id == account_id}
            if missing := [token_id for token_id in token_ids if token_id not in own]:
                raise _tokens_not_found(missing)
            revoked: frozenset[str] = frozenset()
            if not request.validate_only:
                revoked = await tokens.revoke_many(transaction, token_ids, reason)
            after = [_revoked(transaction, token, reason) if token.token_id in revoked else token for token in found]
            event = _event(request, BATCH, account_id, reason if revoked else None)
            # A repeat changes nothing, and its event says all the same which tokens it was about.
            event = event if revoked else replace(event, tokens=tuple(token_ids))
            return Decided(
                _Batch(_shown(after, account, catalog, transaction), revoked),
                _change(BATCH, account_id, [token_id for token_id in token_ids if token_id in revoked]),
                event,
                catalog.version,
            )

        async def transaction() -> Committed[Shown]:
            committed = await self._commit(request, account_id, decide)
            return _with_value(committed, committed.value.at_revision(committed.revision.number))

        return await self._run(request, transaction)

    async def revoke_by_filter(
        self, request: Request, account_id: str, wanted: TokenFilter, reason: str
    ) -> Done[list[str]]:
        """Revokes the account's live tokens that match, in as many transactions as it takes; answers their ids, newest first.

        When a transaction fails, those before it stand.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND; TOKEN_NOT_FOUND, of `obtained_by`.
            InvalidArgument: INVALID_FIELDS, of the filter.
        """
        require_seen(request.caller, account_id)
        wanted = replace(wanted, live_only=True)
        caller_id = request.caller.subject_id if request.caller.kind is CallerKind.TOKEN else None

        async def decide(transaction: Transaction) -> Decided[_Part]:
            account, catalog = await self._standing(transaction, request, account_id)
            found = await _matching(transaction, account, wanted, catalog, whole=request.validate_only)
            part = _Part(found, is_last=True) if request.validate_only else _part(found, caller_id)
            token_ids = [] if request.validate_only else [token.token_id for token in part.tokens]
            await tokens.revoke_many(transaction, token_ids, reason)
            event = _event(request, BY_FILTER, account_id, reason if token_ids else None, wanted)
            return Decided(part, _change(BY_FILTER, account_id, token_ids), event, catalog.version)

        async def transactions() -> Committed[list[str]]:
            revoked: list[FoundToken] = []
            while True:
                committed = await self._commit(request, account_id, decide)
                revoked += committed.value.tokens
                if committed.value.is_last:
                    revoked.sort(key=lambda token: -token.ordinal)
                    return _with_value(committed, [token.token_id for token in revoked])

        return await self._run(request, transactions)

    async def _standing(self, transaction: Transaction, request: Request, account_id: str) -> tuple[Account, Catalog]:
        """The account and the catalog; that the caller may still do this is seen to."""
        catalog = await self._catalogs.of(transaction)
        await self._callers.authority(transaction, request, catalog)
        account = await accounts.read(transaction.connection, account_id)
        if account is None:
            raise account_not_found(account_id)
        return account, catalog

    async def _commit(
        self, request: Request, account_id: str, decide: Callable[[Transaction], Awaitable[Decided[T]]]
    ) -> Committed[T]:
        return await commit(
            self._database,
            decide,
            accounts=(account_id,),
            operators_share=request.operators_share,
            dry_run=request.validate_only,
        )

    async def _run(self, request: Request, work: Callable[[], Awaitable[Committed[T]]]) -> Done[T]:
        if request.validate_only:
            return await self._mutations.validate(work)
        return await self._mutations.run(work, request.until_ns)


async def _matching(
    transaction: Transaction, account: Account, wanted: TokenFilter, catalog: Catalog, *, whole: bool
) -> list[FoundToken]:
    """The live tokens that match: all of them, or as many as show whether one transaction is enough."""
    connection, now, account_id = transaction.connection, transaction.now, account.account_id
    settled = await settled_filter(connection, account, wanted, catalog, now)
    if wanted.obtained_by:
        source = await tokens.read(connection, wanted.obtained_by)
        if source is None or source.account_id != account_id:
            raise token_not_found(wanted.obtained_by)
    if settled is None:
        return []
    found: list[FoundToken] = []
    # One more than a transaction takes, and the caller, who is not counted.
    page: Page | None = Page(MOST_AT_ONCE + 2)
    while page is not None and (whole or len(found) < page.size):
        part = await token_lists.find_page(connection, account_id, settled, page, now)
        found += part.tokens
        page = None if part.next_key is None else Page(page.size, part.next_key)
    return found


def _part(found: Sequence[FoundToken], caller_id: str | None) -> _Part:
    """What of `found` this transaction takes: the caller only with all that are left."""
    if len(found) <= MOST_AT_ONCE:
        return _Part(found, is_last=True)
    others = [token for token in found if token.token_id != caller_id]
    return _Part(others[:MOST_AT_ONCE], is_last=False)


def _shown(found: Sequence[Token], account: Account, catalog: Catalog, transaction: Transaction) -> Shown:
    is_deleted = account.state is AccountState.DELETED
    return Shown(found, catalog, account.plan, transaction.now, account_deleted=is_deleted)


def _revoked(transaction: Transaction, token: Token, reason: str) -> Token:
    return replace(token, revoke_time=transaction.now, update_time=transaction.now, revoke_reason=reason)


def _change(action: str, account_id: str, token_ids: Sequence[str]) -> Change | None:
    return Change(action, account_id, tuple(f"token:{token_id}" for token_id in token_ids)) if token_ids else None


def _event(
    request: Request, action: str, account_id: str, reason: str | None, wanted: TokenFilter | None = None
) -> AuditEvent:
    """The audit event; `reason` None: nothing was revoked."""
    before: dict[str, Json] | None = None if reason is None else {"state": "live"}
    after: dict[str, Json] = {} if reason is None else {"state": "revoked", "reason": reason}
    if wanted is not None:
        after["filter"] = _described(wanted)
    return request.audit_event(action, f"account:{account_id}", account_id, before=before, after=after or None)


def _described(wanted: TokenFilter) -> dict[str, Json]:
    """What is set of a filter, as the audit shows it."""
    values: dict[str, Json] = {
        "state": None if wanted.state is None else wanted.state.name,
        "permission_set": wanted.permission_set,
        "project_id": wanted.project_id,
        "labels": dict(wanted.labels),
        "created_by": wanted.created_by,
        "unused_since": None if wanted.unused_since is None else wanted.unused_since.isoformat(),
        "expires_before": None if wanted.expires_before is None else wanted.expires_before.isoformat(),
        "display_name_prefix": wanted.display_name_prefix,
        "obtained_by": wanted.obtained_by,
        "include_descendants": wanted.include_descendants,
    }
    return {name: value for name, value in values.items() if value}


def _with_value(committed: Committed[T], value: U) -> Committed[U]:
    return Committed(value, committed.revision, committed.nonce, committed.changed)


def _tokens_not_found(token_ids: Sequence[str]) -> NotFound:
    """As for one that is unknown; several are all named."""
    first = token_not_found(token_ids[0])
    if len(token_ids) == 1:
        return first
    named = ", ".join(repr(token_id) for token_id in token_ids)
    return NotFound(first.reason, f"there are no tokens {named}", metadata=first.metadata)
