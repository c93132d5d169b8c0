"""Finding an account's tokens (contract: TokenAdmin.ListTokens), and what a filter means in an account.

A page is read at one moment: its tokens, their grants, the plan and the catalog that suspend some of them. The same filter
chooses the tokens of `RevokeTokensByFilter`, in `revoke_many.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from doorward_server.errors import InvalidArgument, Violation
from doorward_server.model import AccountState, TokenState
from doorward_server.service.accounts import account_not_found, require_seen
from doorward_server.service.delegation import may_see
from doorward_server.service.shown import Shown
from doorward_server.service.tokens import database_now
from doorward_server.storage import accounts, token_entries, token_lists, tokens
from doorward_server.storage.snapshot import snapshot

if TYPE_CHECKING:
    from datetime import datetime

    from doorward.core.catalog import Catalog
    from doorward_server.model import Account, Caller, Page, TokenFilter
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["FindTokens", "FoundPage", "settled_filter"]


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page of tokens. `next_key`: where the next one begins; None: this was the last."""

    shown: Shown
    next_key: tuple[str, ...] | None


class FindTokens:
    """The use case."""

    def __init__(self, database: Database, catalogs: Catalogs) -> None:
        self._database = database
        self._catalogs = catalogs

    async def list_tokens(self, caller: Caller, account_id: str, wanted: TokenFilter, page: Page) -> FoundPage:
        """One page of the account's tokens that match; it may be short without being the last.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
            InvalidArgument: INVALID_FIELDS, of the filter.
        """
        require_seen(caller, account_id)
        async with snapshot(self._database) as connection:
            account = await accounts.read(connection, account_id)
            if account is None:
                raise account_not_found(account_id)
            catalog, now = await self._catalogs.now(connection), await database_now(connection)
            settled = await settled_filter(connection, account, wanted, catalog, now)
            if settled is None:
                return FoundPage(Shown([], catalog, account.plan, now), None)
            found = await token_lists.find_page(connection, account_id, settled, page, now)
            records = await tokens.read_many(connection, [token.token_id for token in found.tokens])
        shown = Shown(records, catalog, account.plan, now, account_deleted=account.state is AccountState.DELETED)
        return FoundPage(shown, found.next_key)

    async def further_violations(self, caller: Caller, account_id: str, wanted: TokenFilter) -> list[Violation]:
        """What else is wrong with a filter whose shape is wrong already, so that one answer tells all."""
        if not may_see(caller, account_id):
            return []
        async with snapshot(self._database) as connection:
            if await accounts.read(connection, account_id) is None:
                return []
            catalog, now = await self._catalogs.now(connection), await database_now(connection)
            return await _violations(connection, account_id, wanted, catalog, now)


async def settled_filter(
    connection: Connection, account: Account, wanted: TokenFilter, catalog: Catalog, now: datetime
) -> TokenFilter | None:
    """The filter in the account's own terms: a set by name instead of alias; None: nothing can match.

    Raises:
        InvalidArgument: INVALID_FIELDS.
    """
    violations = await _violations(connection, account.account_id, wanted, catalog, now)
    if violations:
        raise InvalidArgument.of(tuple(violations))
    known = catalog.find_permission_set(wanted.permission_set) if wanted.permission_set else None
    settled = wanted if known is None else replace(wanted, permission_set=known.name)
    return _of_deleted_account(settled) if account.state is AccountState.DELETED else settled


def _of_deleted_account(wanted: TokenFilter) -> TokenFilter | None:
    """All tokens of a deleted account are revoked, without a write to any of them."""
    is_about_live = wanted.live_only or wanted.unused_since is not None or wanted.expires_before is not None
    if is_about_live or wanted.state not in {None, TokenState.REVOKED}:
        return None
    return replace(wanted, state=None)


async def _violations(
    connection: Connection, account_id: str, wanted: TokenFilter, catalog: Catalog, now: datetime
) -> list[Violation]:
    violations = []
    name = wanted.permission_set
    # One that the catalog has lost can still be asked for while some token holds it: who else would find those grants?
    if (
        name
        and catalog.find_permission_set(name) is None
        and not await token_entries.holds_set(connection, account_id, name)
    ):
        known = ", ".join(sorted(catalog.permission_sets))
        text = f"there is no permission set {name!r} in the catalog; it has: {known}"
        violations.append(Violation("permission_set", text, "PERMISSION_SET_UNKNOWN"))
    if wanted.unused_since is not None and wanted.unused_since >= now:
        text = f"must be earlier than now, {now.isoformat()} at the database"
        violations.append(Violation("unused_since", text, "FIELD_OUT_OF_RANGE"))
    return violations
