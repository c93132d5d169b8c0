"""Reading the audit (contract: TokenAdmin.ListAuditEvents): operators everything, a service token what is of its account."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from doorward_server.model import CallerKind
from doorward_server.service.accounts import account_not_found, require_seen
from doorward_server.storage import accounts, audit_lists, tokens

if TYPE_CHECKING:
    from doorward_server.model import Caller, Page
    from doorward_server.storage.audit_lists import AuditQuery, EventPage
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Audit"]


class Audit:
    """The use case."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_events(self, caller: Caller, query: AuditQuery, page: Page) -> EventPage:
        """One page of events or refusals, newest first. Whoever calls has seen to it that a token names an account.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        # To a service token no other account exists, nor is anything read of one.
        require_seen(caller, query.account_id or "")
        async with self._database.reading() as connection:
            if query.account_id is not None and await accounts.read(connection, query.account_id) is None:
                raise account_not_found(query.account_id)
            if caller.kind is CallerKind.TOKEN and not await _names_its_own(connection, query):
                query = replace(query, within_account=True)
            return await audit_lists.list_events(connection, query, page)


async def _names_its_own(connection: Connection, query: AuditQuery) -> bool:
    """Whether every token that the query names is the account's: then its rows may be read by the token."""
    kind, _, actor_id = (query.actor or "").partition(":")
    named = {query.token_id, actor_id if kind == CallerKind.TOKEN.value else None} - {None}
    found = await tokens.read_many(connection, sorted(token_id for token_id in named if token_id))
    return named == {token.token_id for token in found if token.account_id == query.account_id}
