"""The permission catalog as a watcher gets it (contract, WatchResponse.Catalog): no longer than its file.

A catalog may have a thousand sets and a thousand resources, so "*" is not written out, and neither is the read that a
write includes: the watcher builds the catalog by the same rules. Called by `watch_encoding.py`, once for each version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.core.catalog import Level
from doorward.v1 import authorizer_pb2 as pb

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog, PermissionSet

__all__ = ["encoded_catalog"]

EVERY: Final = ["*"]
SCHEMA: Final = 1
# Of permissions, one for each level.
Masks = tuple[int, int]


def encoded_catalog(catalog: Catalog) -> pb.WatchResponse.Catalog:
    """The message."""
    message = pb.WatchResponse.Catalog(catalog_version=catalog.version, label=catalog.label, schema=SCHEMA)
    for resource in catalog.resources.values():
        of_level = message.account_resources if resource.level is Level.ACCOUNT else message.project_resources
        of_level.add(name=resource.name, actions=resource.actions)
    names = _Names(catalog)
    for held in catalog.permission_sets.values():
        read, write = names.of(held)
        message.permission_sets.add(name=held.name, read=read, write=write)
    every = frozenset(catalog.permission_sets)
    for plan in catalog.plans.values():
        covered = EVERY if plan.permission_sets == every else sorted(plan.permission_sets)
        message.plans.add(name=plan.name, permission_sets=covered)
    return message


class _Names:
    """From the masks of a set to the names of resources under each action."""

    def __init__(self, catalog: Catalog) -> None:
        self._resource_of: tuple[dict[int, str], dict[int, str]] = ({}, {})
        self._read_of: dict[str, int] = {}
        every = {"read": [0, 0], "write": [0, 0]}
        for permission in catalog.permissions.values():
            place = _place(permission.level)
            self._resource_of[place][permission.bit] = permission.resource
            every[permission.action][place] |= permission.bit
            if permission.action == "read":
                self._read_of[permission.resource] = permission.bit
        self._reads, self._writes = _masks(every["read"]), _masks(every["write"])
        # What writes include; many sets have the same, all of them above all.
        self._included: dict[Masks, Masks] = {}

    def of(self, held: PermissionSet) -> tuple[list[str], list[str]]:
        """The names under read and under write."""
        given = (held.account_mask, held.project_mask)
        read, write = _both(given, self._reads), _both(given, self._writes)
        if read != self._reads:
            included = self._reads_included_in(write)
            read = (read[0] & ~included[0], read[1] & ~included[1])
        return self._listed(read, self._reads), self._listed(write, self._writes)

    def _reads_included_in(self, write: Masks) -> Masks:
        found = self._included.get(write)
        if found is None:
            masks = [0, 0]
            for place, resource in self._resources(write):
                masks[place] |= self._read_of.get(resource, 0)
            found = self._included[write] = _masks(masks)
        return found

    def _listed(self, masks: Masks, every: Masks) -> list[str]:
        if masks == every and any(masks):
            return EVERY
        return [resource for _, resource in self._resources(masks)]

    def _resources(self, masks: Masks) -> list[tuple[int, str]]:
        found = []
        for place, mask in enumerate(masks):
            left = mask
            while left:
                bit = left & -left
                left ^= bit
                found.append((place, self._resource_of[place][bit]))
        return found


def _place(level: Level) -> int:
    return 0 if level is Level.ACCOUNT else 1


def _masks(pair: list[int]) -> Masks:
    account, project = pair
    return account, project


def _both(masks: Masks, others: Masks) -> Masks:
    return masks[0] & others[0], masks[1] & others[1]
