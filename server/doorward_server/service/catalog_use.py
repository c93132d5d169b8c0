"""What a new catalog lacks although it is in use, so that applying it needs `force` (contract: CATALOG_IN_USE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward_server.storage import catalog_use

if TYPE_CHECKING:
    from doorward_server.catalog.diff import Difference
    from doorward_server.storage.connect import Connection

__all__ = ["InUse", "read_use"]


@dataclass(frozen=True, slots=True)
class InUse:
    """The sets and resources that grants of live tokens use, and the plans that accounts are on; each sorted by name."""

    permission_sets: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.permission_sets or self.resources or self.plans)


async def read_use(connection: Connection, difference: Difference) -> InUse:
    """What of all that the new catalog lacks is in use now.

    A resource is in use if a live token's grant has a set that gives something on it, whether the plan covers it or not.
    """
    removed_sets = difference.removed_sets()
    of_resources = difference.sets_of_removed_resources()
    asked = removed_sets.union(*of_resources.values())
    used_sets = await catalog_use.find_used_sets(connection, asked)
    return InUse(
        permission_sets=tuple(sorted(used_sets & removed_sets)),
        resources=tuple(resource for resource, sets in of_resources.items() if sets & used_sets),
        plans=tuple(sorted(await catalog_use.find_used_plans(connection, difference.removed_plans()))),
    )
