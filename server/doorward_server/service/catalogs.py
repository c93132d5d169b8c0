"""The catalog that a mutation is validated under: read with its transaction, never from the replica's cache.

`storage.changes.commit` makes sure that it is still the one in force when the change commits (design section 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.catalog.load import load_catalog
from doorward_server.storage import state

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.connect import Connection

__all__ = ["Catalogs"]


class Catalogs:
    """Remembers the one catalog that was parsed last: a version never changes its contents."""

    def __init__(self) -> None:
        self._latest: Catalog | None = None

    async def of(self, transaction: Transaction) -> Catalog:
        """The catalog in force in `transaction`."""
        if self._latest is not None and self._latest.version == transaction.catalog_version:
            return self._latest
        return await self.now(transaction.connection)

    async def now(self, connection: Connection) -> Catalog:
        """The catalog in force now, in a snapshot of its own. Its text, up to 1 MiB, is read only if it is another one."""
        seen = await state.read_state(connection)
        if seen is not None and self._latest is not None and self._latest.version == seen.catalog_version:
            return self._latest
        loaded = await state.load_catalog(connection)
        if self._latest is None or self._latest.version != loaded.version:
            self._latest = load_catalog(loaded.toml, loaded.version)
        return self._latest
