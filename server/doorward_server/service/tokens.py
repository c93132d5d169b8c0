"""Reading tokens, and what an account may grant (contract: TokenAdmin's reads)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from doorward_server.service.accounts import account_not_found
from doorward_server.service.revoke import token_not_found
from doorward_server.service.shown import Shown
from doorward_server.storage import accounts, changes, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.model import Page, Token, TokenState
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Tokens", "database_now"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Tokens:
    """The use cases."""

    def __init__(self, database: Database, catalogs: Catalogs) -> None:
        self._database = database
        self._catalogs = catalogs

    async def get_token(self, token_id: str) -> Shown:
        """One token, also a revoked one.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
        """
        async with self._database.reading() as connection:
            token = await tokens.read(connection, token_id)
            if token is None:
                raise token_not_found(token_id)
            return await self._shown(connection, token.account_id, [token])

    async def list_tokens(self, account_id: str, state: TokenState | None, page: Page) -> Shown:
        """One page of an account's tokens, newest first.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        async with self._database.reading() as connection:
            now = await database_now(connection)
            found = await tokens.list_page(connection, account_id, state, page, now)
            return await self._shown(connection, account_id, found)

    async def list_permission_sets(self, account_id: str) -> Shown:
        """The catalog and the account's plan: what it may grant, and what its plan calls it.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        async with self._database.reading() as connection:
            return await self._shown(connection, account_id, [])

    async def _shown(self, connection: Connection, account_id: str, found: Sequence[Token]) -> Shown:
        account = await accounts.read(connection, account_id)
        if account is None:
            raise account_not_found(account_id)
        return Shown(found, await self._catalogs.now(connection), account.plan, await database_now(connection))


async def database_now(connection: Connection) -> datetime:
    """The database's time."""
    end = await changes.read_end(connection)
    return _EPOCH + timedelta(microseconds=end.database_us)
