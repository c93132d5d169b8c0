"""Applying a catalog (contract: SystemAdmin.ApplyCatalog). No token is written: replicas compile anew on first use.

Whether something is in use must still be true at the commit, or a token could be issued with a set that goes at the same
moment. So the state row, which every change locks last, is locked *before* that is looked at: then no other change can
commit until this one has. Nothing is locked after it, so there is no deadlock; others wait for a few reads by index, and
no longer than the transaction's time-outs say. A change that waits was decided under the former catalog: its last statement
finds another version, and it starts over (`storage/changes.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward_server.catalog.diff import Difference
from doorward_server.errors import Aborted, FailedPrecondition
from doorward_server.model import Change
from doorward_server.service.catalog_use import InUse, read_use
from doorward_server.storage import state
from doorward_server.storage.changes import Decided, Transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward.core.catalog import Catalog
    from doorward_server.model import Json
    from doorward_server.service.administration import Administration
    from doorward_server.service.catalog_text import CatalogTexts
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done
    from doorward_server.storage.pool import Database

__all__ = ["Applied", "ApplyCatalog", "CatalogApply"]

SUBJECT: Final = "catalog:"
# Characters of names in an error: a status with more metadata than 8 KiB would not arrive.
LONGEST_LIST: Final = 1000


@dataclass(frozen=True, slots=True)
class ApplyCatalog:
    """A catalog that shall be in force, and its text. `expected_version` 0: whatever it replaces."""

    catalog: Catalog
    toml: str
    expected_version: int
    force: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """The version that is in force, and what the file calls itself."""

    version: int
    label: str


class CatalogApply:
    """The use case."""

    def __init__(
        self, database: Database, administration: Administration, catalogs: Catalogs, texts: CatalogTexts
    ) -> None:
        self._database = database
        self._administration = administration
        self._catalogs = catalogs
        self._texts = texts

    async def apply(self, request: Request, wanted: ApplyCatalog) -> Done[Applied]:
        """Replaces the catalog; with `request.validate_only` only says what its version would be.

        Raises:
            Aborted: CATALOG_VERSION_MISMATCH.
            FailedPrecondition: CATALOG_IN_USE, without `force`.
        """
        async with self._database.reading() as connection:
            in_force = await self._catalogs.now(connection)
        # Parsed and compared already, so that the lock is not held for it; unless another catalog comes in between.
        usual = await self._texts.compare(in_force, wanted.catalog)

        async def decide(transaction: Transaction) -> Decided[Applied]:
            await state.lock(transaction)
            before = await self._catalogs.now(transaction.connection)
            if wanted.expected_version not in {0, before.version}:
                raise _version_mismatch(wanted.expected_version, before.version)
            difference = usual if before is in_force else Difference(before, wanted.catalog)
            used = await read_use(transaction.connection, difference)
            if used and not wanted.force:
                raise _in_use(used)
            version = await state.apply_catalog(transaction, wanted.toml)
            event = request.audit_event(
                "ApplyCatalog",
                SUBJECT,
                None,
                before=_described(before.version, before.label),
                after=_described(version, wanted.catalog.label) | _forced(used),
            )
            return Decided(Applied(version, wanted.catalog.label), Change("ApplyCatalog", None, (SUBJECT,)), event)

        return await self._administration.run(request, decide)


def _described(version: int, label: str) -> dict[str, Json]:
    return {"catalog_version": version, "label": label}


def _forced(used: InUse) -> dict[str, Json]:
    """What went although it was in use."""
    kinds: dict[str, Sequence[str]] = {
        "permission_sets": used.permission_sets,
        "resources": used.resources,
        "plans": used.plans,
    }
    return {f"forced_{kind}": list(names) for kind, names in kinds.items() if names}


def _version_mismatch(expected: int, version: int) -> Aborted:
    return Aborted(
        "CATALOG_VERSION_MISMATCH",
        f"catalog version {expected} was expected, and {version} is in force; look at what has changed, and repeat",
        metadata={"catalog_version": str(version)},
    )


def _in_use(used: InUse) -> FailedPrecondition:
    metadata = {
        kind: _listed(names)
        for kind, names in (
            ("permission_sets", used.permission_sets),
            ("resources", used.resources),
            ("plans", used.plans),
        )
        if names
    }
    named = "; ".join(f"{kind.replace('_', ' ')}: {names}" for kind, names in metadata.items())
    return FailedPrecondition(
        "CATALOG_IN_USE",
        f"the catalog lacks what grants or accounts use ({named}); keep it, or say force to suspend those grants",
        metadata=metadata,
    )


def _listed(names: Sequence[str]) -> str:
    """The names with commas; of very many, the first ones whole and an ellipsis."""
    text = ",".join(names)
    return text if len(text) <= LONGEST_LIST else text[:LONGEST_LIST].rpartition(",")[0] + ",…"
