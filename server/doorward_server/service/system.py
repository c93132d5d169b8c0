"""The deployment itself: its catalog and its replicas (contract: SystemAdmin's reads)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward_server.catalog.load import load_catalog
from doorward_server.storage import changes, replicas, state

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward_server.model import ReplicaRow
    from doorward_server.storage.changes import LogEnd
    from doorward_server.storage.pool import Database

__all__ = ["ShownCatalog", "ShownReplicas", "System"]


@dataclass(frozen=True, slots=True)
class ShownCatalog:
    """The catalog in force, and its text as it was applied."""

    catalog: Catalog
    toml: str


@dataclass(frozen=True, slots=True)
class ShownReplicas:
    """The rows of the replicas, by their start, and where the log ended."""

    rows: list[ReplicaRow]
    end: LogEnd


class System:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_catalog(self) -> ShownCatalog:
        """The catalog in force, as the database has it now."""
        async with self._database.reading() as connection:
            loaded = await state.load_catalog(connection)
        return ShownCatalog(load_catalog(loaded.toml, loaded.version), loaded.toml)

    async def list_replicas(self) -> ShownReplicas:
        """Every registered replica."""
        async with self._database.reading() as connection:
            end = await changes.read_end(connection)
            rows = await replicas.read_rows(connection)
        return ShownReplicas(sorted(rows, key=lambda row: (row.started_time, row.replica_id)), end)
