"""What another catalog would change: of sets, plans and resources, and for whoever holds grants. Pure; reads nothing.

What is compared is what decides: permissions with "*" and "write includes read" resolved, aliases, what plans cover. The
order of a file, titles and descriptions change nothing here. Called by the use cases that preview and apply a catalog
(design section 3, SystemAdmin).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Final

from doorward.core.catalog import Level
from doorward.core.matrix import Grant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from doorward.core.catalog import Catalog, PermissionSet

__all__ = ["Difference", "Effect", "Kind", "PlanChange", "ResourceChange", "SetChange"]

# What one set gives: account-level permissions, project-level ones, each as bits of the two catalogs' common space.
Masks = tuple[int, int]
NOTHING: Final[Masks] = (0, 0)
# Remembered effects of one preview: most tokens have one of a few hundred shapes of grants.
MOST_REMEMBERED: Final = 10_000


class Kind(enum.IntEnum):
    """What becomes of a thing; the numbers are the contract's."""

    ADDED = 1
    REMOVED = 2
    CHANGED = 3


@dataclass(frozen=True, slots=True)
class SetChange:
    """A permission set, and which permissions the new catalog adds to it and takes from it, sorted."""

    name: str
    kind: Kind
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanChange:
    """A plan, and which sets it comes to cover and no longer covers, sorted."""

    name: str
    kind: Kind
    sets_added: tuple[str, ...]
    sets_removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResourceChange:
    """A resource, and which actions only the new catalog and only the old one has; one that moved to another level has none."""

    name: str
    kind: Kind
    actions_added: tuple[str, ...]
    actions_removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a token's checks would answer otherwise: permissions gained and lost somewhere, and the sets that this is through.

    Somewhere: at the account, on a project that a grant names, or on any other project, also one that is put later. A
    permission that another grant gives in the same place is neither gained nor lost there.
    """

    gained: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    gaining_sets: frozenset[str] = frozenset()
    losing_sets: frozenset[str] = frozenset()


NO_EFFECT: Final = Effect()


class Difference:
    """Two catalogs side by side: `before` is in force, `after` would be."""

    def __init__(self, before: Catalog, after: Catalog) -> None:
        self._before, self._after = before, after
        self._space = _Space((before, after))
        self._given = (self._space.masks_of(before), self._space.masks_of(after))
        self._affected = {plan: self._affected_under(plan) for plan in {**before.plans, **after.plans}}
        self._effects: dict[object, Effect] = {}
        self.affected_sets = frozenset[str]().union(*self._affected.values())

    def set_changes(self) -> dict[str, SetChange]:
        """The sets that are added, removed, or given other permissions or aliases, by name."""
        before, after = self._before.permission_sets, self._after.permission_sets
        changes: dict[str, SetChange] = {}
        for name, kind in _kinds(before, after):
            had, has = self._given[0].get(name, NOTHING), self._given[1].get(name, NOTHING)
            if kind is Kind.CHANGED and had == has and set(before[name].aliases) == set(after[name].aliases):
                continue
            gained, lost = (self._space.sorted_names(masks) for masks in (_without(has, had), _without(had, has)))
            changes[name] = SetChange(name, kind, gained, lost)
        return changes

    def plan_changes(self) -> list[PlanChange]:
        """The plans that are added, removed, or cover other sets, sorted by name."""
        before, after = self._before.plans, self._after.plans
        changes: list[PlanChange] = []
        for name, kind in _kinds(before, after):
            had = before[name].permission_sets if name in before else frozenset()
            has = after[name].permission_sets if name in after else frozenset()
            if kind is not Kind.CHANGED or had != has:
                changes.append(PlanChange(name, kind, tuple(sorted(has - had)), tuple(sorted(had - has))))
        return changes

    def resource_changes(self) -> list[ResourceChange]:
        """The resources that are added, removed, or have other actions or another level, sorted by name."""
        before, after = self._before.resources, self._after.resources
        changes: list[ResourceChange] = []
        for name, kind in _kinds(before, after):
            had = before[name].actions if name in before else ()
            has = after[name].actions if name in after else ()
            same_level = kind is not Kind.CHANGED or before[name].level is after[name].level
            if kind is not Kind.CHANGED or had != has or not same_level:
                added = tuple(action for action in has if action not in had)
                removed = tuple(action for action in had if action not in has)
                changes.append(ResourceChange(name, kind, added, removed))
        return changes

    def removed_sets(self) -> frozenset[str]:
        """The sets that the new catalog lacks."""
        return frozenset(self._before.permission_sets.keys() - self._after.permission_sets.keys())

    def removed_plans(self) -> frozenset[str]:
        """The plans that the new catalog lacks."""
        return frozenset(self._before.plans.keys() - self._after.plans.keys())

    def sets_of_removed_resources(self) -> dict[str, frozenset[str]]:
        """The resources that the new catalog lacks, each with the sets that give something on it as long as it is there."""
        removed = self._before.resources.keys() - self._after.resources.keys()
        return {resource: self._sets_giving(resource) for resource in sorted(removed)}

    def effect(self, plan: str, grants: Sequence[Grant]) -> Effect:
        """What would change for a token with these grants in an account on this plan."""
        affected = self._affected.get(plan, frozenset())
        if not any(name in affected for name, _ in grants):
            return NO_EFFECT
        places = _places(grants)
        key = (plan, tuple((name, project_ids is None) for name, project_ids in grants), places)
        found = self._effects.get(key)
        if found is None:
            if len(self._effects) >= MOST_REMEMBERED:
                self._effects.clear()
            found = self._effects[key] = self._effect(plan, grants, places)
        return found

    def _effect(self, plan: str, grants: Sequence[Grant], places: frozenset[int]) -> Effect:
        had, has = (self._contributions(side, plan, grants) for side in (0, 1))
        on_all = sum(1 << index for index, (_, project_ids) in enumerate(grants) if project_ids is None)
        gained, lost = NOTHING, NOTHING
        gaining: set[str] = set()
        losing: set[str] = set()
        for active in (on_all, *(place | on_all for place in places)):
            # What holds on any one project; account-level permissions come from grants on all projects alone.
            before, after = (_together(masks, active, on_all) for masks in (had, has))
            more, less = _without(after, before), _without(before, after)
            gained, lost = _union(gained, more), _union(lost, less)
            gaining |= _givers(more, has, active, on_all, grants)
            losing |= _givers(less, had, active, on_all, grants)
        names = self._space.names
        return Effect(names(gained), names(lost), frozenset(gaining), frozenset(losing))

    def _contributions(self, side: int, plan: str, grants: Sequence[Grant]) -> list[Masks]:
        """What each grant gives under one of the two catalogs, 0 the former."""
        found = (self._before, self._after)[side].find_plan(plan)
        covered = frozenset[str]() if found is None else found.permission_sets
        return [self._given[side].get(name, NOTHING) if name in covered else NOTHING for name, _ in grants]

    def _affected_under(self, plan: str) -> frozenset[str]:
        """The sets that give something else to an account on this plan."""
        every = [Grant(name, None) for name in {**self._before.permission_sets, **self._after.permission_sets}]
        had, has = (self._contributions(side, plan, every) for side in (0, 1))
        return frozenset(name for (name, _), old, new in zip(every, had, has, strict=True) if old != new)

    def _sets_giving(self, resource: str) -> frozenset[str]:
        catalog = self._before
        of_it = [permission for permission in catalog.permissions.values() if permission.resource == resource]
        return frozenset(
            name
            for name, held in catalog.permission_sets.items()
            if any(permission.bit & _mask_of(held, permission.level) for permission in of_it)
        )


class _Space:
    """Bits for every permission of several catalogs: the bits of one mean nothing beside another's."""

    def __init__(self, catalogs: Iterable[Catalog]) -> None:
        self._bits: dict[Level, dict[str, int]] = {level: {} for level in Level}
        for catalog in catalogs:
            for permission in catalog.permissions.values():
                bits = self._bits[permission.level]
                bits.setdefault(permission.name, 1 << len(bits))
        # Many sets and tokens gain and lose the same.
        self._names: dict[tuple[Level, int], frozenset[str]] = {}
        self._sorted: dict[Masks, tuple[str, ...]] = {}

    def masks_of(self, catalog: Catalog) -> dict[str, Masks]:
        """What each set of `catalog` gives, by name."""
        translated: dict[tuple[Level, int], int] = {}
        own = {
            level: [
                (permission.bit, self._bits[level][permission.name])
                for permission in catalog.permissions.values()
                if permission.level is level
            ]
            for level in Level
        }

        def translate(level: Level, mask: int) -> int:
            # Many sets may give the same, "*" above all.
            if (level, mask) not in translated:
                translated[level, mask] = sum(bit for own_bit, bit in own[level] if own_bit & mask)
            return translated[level, mask]

        return {
            name: (translate(Level.ACCOUNT, held.account_mask), translate(Level.PROJECT, held.project_mask))
            for name, held in catalog.permission_sets.items()
        }

    def names(self, masks: Masks) -> frozenset[str]:
        """The names of the permissions in these masks."""
        return self._named(Level.ACCOUNT, masks[0]) | self._named(Level.PROJECT, masks[1])

    def sorted_names(self, masks: Masks) -> tuple[str, ...]:
        """The same, sorted."""
        if masks not in self._sorted:
            self._sorted[masks] = tuple(sorted(self.names(masks)))
        return self._sorted[masks]

    def _named(self, level: Level, mask: int) -> frozenset[str]:
        if (level, mask) not in self._names:
            self._names[level, mask] = frozenset(name for name, bit in self._bits[level].items() if bit & mask)
        return self._names[level, mask]


def _kinds(before: Mapping[str, object], after: Mapping[str, object]) -> list[tuple[str, Kind]]:
    """Every name, sorted; CHANGED for what both have, whether it changed or not."""
    return [
        (name, Kind.CHANGED if name in before and name in after else Kind.ADDED if name in after else Kind.REMOVED)
        for name in sorted({**before, **after})
    ]


def _places(grants: Sequence[Grant]) -> frozenset[int]:
    """For each project that is named: which grants name it, as bits by their order. Where these are equal, all else is."""
    naming: dict[str, int] = {}
    for index, (_, project_ids) in enumerate(grants):
        for project_id in project_ids or ():
            naming[project_id] = naming.get(project_id, 0) | 1 << index
    return frozenset(naming.values())


def _together(masks: Sequence[Masks], active: int, on_all: int) -> Masks:
    """What grants give together on a project where the `active` ones hold."""
    account = reduce(or_, (mask[0] for index, mask in enumerate(masks) if on_all >> index & 1), 0)
    project = reduce(or_, (mask[1] for index, mask in enumerate(masks) if active >> index & 1), 0)
    return account, project


def _givers(wanted: Masks, masks: Sequence[Masks], active: int, on_all: int, grants: Sequence[Grant]) -> set[str]:
    """The sets through which some of `wanted` is given on a project where the `active` grants hold."""
    return {
        name
        for index, ((name, _), (account, project)) in enumerate(zip(grants, masks, strict=True))
        if (on_all >> index & 1 and account & wanted[0]) or (active >> index & 1 and project & wanted[1])
    }


def _mask_of(held: PermissionSet, level: Level) -> int:
    return held.account_mask if level is Level.ACCOUNT else held.project_mask


def _without(left: Masks, right: Masks) -> Masks:
    return left[0] & ~right[0], left[1] & ~right[1]


def _union(left: Masks, right: Masks) -> Masks:
    return left[0] | right[0], left[1] | right[1]
