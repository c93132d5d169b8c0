"""Several statements that see the database at one moment, for what is read together and must fit together.

A page of a list, its account's plan and the catalog are read so: else a page could show tokens from before a change and
their grants from after it. Reads only; takes no lock, so that nobody waits for it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from doorward_server.storage.transaction import roll_back

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["snapshot"]

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

# A process that stops in the middle must not keep the database from clearing what has been outdated since.
SET_LOCAL = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"


@contextlib.asynccontextmanager
async def snapshot(database: Database) -> AsyncIterator[Connection]:
    """A connection whose statements see what was committed before the first of them. The whole block may take one hold.

    Raises: errors.Unavailable; StatementRefused.
    """
    async with database.reading() as connection:
        await connection.execute(BEGIN)
        try:
            await connection.execute(SET_LOCAL, str(database.hold_ms))
            yield connection
        except Exception:
            await roll_back(connection)
            raise
        await connection.execute("COMMIT")
