"""Reading tokens, and what an account may grant (contract: TokenAdmin's reads)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from doorward_server.model import AccountState
from doorward_server.service.accounts import account_not_found, require_seen
from doorward_server.service.delegation import may_see, token_not_found
from doorward_server.service.shown import Shown
from doorward_server.storage import accounts, changes, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.model import Caller, Token
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

    async def get_token(self, caller: Caller, token_id: str) -> Shown:
        """One token, also a revoked one.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
        """
        async with self._database.reading() as connection:
            token = await tokens.read(connection, token_id)
            # Before anything else is read: nor does the time it takes tell a foreign token from an unknown one.
            if token is None or not may_see(caller, token.account_id):
                raise token_not_found(token_id)
            return await self._shown(connection, token.account_id, [token])

    async def get_presented(self, token_id: str) -> Shown:
        """The token whose secret somebody has presented, whoever asks.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
        """
        async with self._database.reading() as connection:
            token = await tokens.read(connection, token_id)
            if token is None:
                raise token_not_found(token_id)
            return await self._shown(connection, token.account_id, [token])

    async def list_permission_sets(self, caller: Caller, account_id: str) -> Shown:
        """The catalog and the account's plan: what it may grant, and what its plan calls it.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        require_seen(caller, account_id)
        async with self._database.reading() as connection:
            return await self._shown(connection, account_id, [])

    async def _shown(self, connection: Connection, account_id: str, found: Sequence[Token]) -> Shown:
        account = await accounts.read(connection, account_id)
        if account is None:
            raise account_not_found(account_id)
        catalog, now = await self._catalogs.now(connection), await database_now(connection)
        return Shown(found, catalog, account.plan, now, account.state is AccountState.DELETED)


async def database_now(connection: Connection) -> datetime:
    """The database's time."""
    end = await changes.read_end(connection)
    return _EPOCH + timedelta(microseconds=end.database_us)
