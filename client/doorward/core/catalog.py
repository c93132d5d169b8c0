"""Resources, permissions, permission sets and plans, as one immutable value; permissions as bits.

A permission is one bit of an `int`, in a number space of its own for each level. Bits are given here, anew whenever a
catalog is built: they are never stored and never sent, and mean nothing beside another catalog. Built from a document
that `catalog_document` has checked; used by `matrix` and by whoever names permissions (design sections 1 and 2).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from doorward.core.catalog_document import CatalogInvalid, Document, ResourceText, read_document

__all__ = ["Catalog", "CatalogInvalid", "Level", "Permission", "PermissionSet", "Plan", "Resource"]


class Level(StrEnum):
    """What a permission is about: an account as a whole, or one project."""

    ACCOUNT = "account"
    PROJECT = "project"


@dataclass(frozen=True, slots=True)
class Permission:
    """`name` is `resource:action`; `bit` is a power of two within its level."""

    name: str
    resource: str
    action: str
    level: Level
    bit: int


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that can be read or written, and at which level; `actions` in the order read, write."""

    name: str
    title: str
    level: Level
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PermissionSet:
    """A named bundle of permissions: one mask for each level. Write includes read already."""

    name: str
    title: str
    description: str
    aliases: tuple[str, ...]
    account_mask: int
    project_mask: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The permission sets that an account on this plan may assign, by name, and what it calls some of them."""

    name: str
    title: str
    permission_sets: frozenset[str]
    set_titles: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Catalog:
    """A whole catalog. `version` counts what was applied; `label` is the `version` that the file gives itself.

    The mappings go from name to value, in the order of the document, and cannot be changed.
    """

    version: int
    label: str
    resources: Mapping[str, Resource]
    permissions: Mapping[str, Permission]
    permission_sets: Mapping[str, PermissionSet]
    plans: Mapping[str, Plan]
    _set_of_alias: Mapping[str, PermissionSet] = field(repr=False)

    @classmethod
    def build(cls, values: Mapping[str, object], version: int) -> "Catalog":
        """The catalog of a document's plain values, as a TOML parser returns them.

        Raises:
            CatalogInvalid: with every violation at once.
        """
        document = read_document(values)
        resources = _resources(document)
        permissions = {permission.name: permission for permission in _permissions(resources)}
        bits = {
            level: {name: given.bit for name, given in permissions.items() if given.level is level} for level in Level
        }
        # Many sets may give the same, "*" above all.
        masks: dict[frozenset[str], tuple[int, int]] = {}
        sets: dict[str, PermissionSet] = {}
        for name, text in document.permission_sets.items():
            if text.permissions not in masks:
                masks[text.permissions] = (
                    _mask(text.permissions, bits[Level.ACCOUNT]),
                    _mask(text.permissions, bits[Level.PROJECT]),
                )
            sets[name] = PermissionSet(name, text.title, text.description, text.aliases, *masks[text.permissions])
        plans = {
            name: Plan(name, text.title, text.permission_sets, MappingProxyType(dict(text.set_titles)))
            for name, text in document.plans.items()
        }
        return cls(
            version,
            document.label,
            MappingProxyType({resource.name: resource for resource in resources}),
            MappingProxyType(permissions),
            MappingProxyType(sets),
            MappingProxyType(plans),
            MappingProxyType({alias: entry for entry in sets.values() for alias in entry.aliases}),
        )

    def find_permission(self, name: str) -> Permission | None:
        """The permission `resource:action`, or None."""
        return self.permissions.get(name)

    def find_permission_set(self, name_or_alias: str) -> PermissionSet | None:
        """The set with this name or alias, or None."""
        return self.permission_sets.get(name_or_alias) or self._set_of_alias.get(name_or_alias)

    def find_plan(self, name: str) -> Plan | None:
        """The plan, or None."""
        return self.plans.get(name)

    def covers(self, plan: str, permission_set: str) -> bool:
        """Whether the plan may assign the set, both by name; an unknown plan covers nothing."""
        found = self.plans.get(plan)
        return found is not None and permission_set in found.permission_sets

    def title_of(self, permission_set: str, plan: str) -> str:
        """What the plan calls the set: its own title for it, else the catalog's, else, for an unknown set, its name."""
        found_plan, found_set = self.plans.get(plan), self.permission_sets.get(permission_set)
        title = found_set.title if found_set is not None else permission_set
        return found_plan.set_titles.get(permission_set, title) if found_plan is not None else title

    def permission_names(self, level: Level, mask: int) -> tuple[str, ...]:
        """The names of the permissions in a mask of this level, sorted."""
        return tuple(
            sorted(name for name, given in self.permissions.items() if given.level is level and given.bit & mask)
        )


def _resources(document: Document) -> list[Resource]:
    levels: tuple[tuple[Level, Mapping[str, ResourceText]], ...] = (
        (Level.ACCOUNT, document.account_resources),
        (Level.PROJECT, document.project_resources),
    )
    return [Resource(name, text.title, level, text.actions) for level, texts in levels for name, text in texts.items()]


def _permissions(resources: Iterable[Resource]) -> Iterable[Permission]:
    next_bit = dict.fromkeys(Level, 1)
    for resource in resources:
        for action in resource.actions:
            yield Permission(
                f"{resource.name}:{action}", resource.name, action, resource.level, next_bit[resource.level]
            )
            next_bit[resource.level] <<= 1


def _mask(names: frozenset[str], bits: Mapping[str, int]) -> int:
    """The bits of those of these permissions that are of one level. Each has a bit of its own, so a sum is their union."""
    return sum(bits[name] for name in bits.keys() & names)
