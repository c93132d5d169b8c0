"""Two catalogs side by side: what the comparison tells of sets, plans, resources and tokens, against the naive oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.core.catalog import Catalog
from doorward.core.matrix import Grant
from doorward_server.catalog.diff import Difference, Effect, Kind, PlanChange, ResourceChange, SetChange
from doorward_server.catalog.load import builtin_text, load_catalog
from tests.support import strategies
from tests.support.oracle import (
    NaiveGrant,
    account_permissions,
    covered_sets,
    every_permission,
    permissions_in_set,
    project_permissions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACES = (None, *strategies.PROJECTS, "p_unknown", "a project that no grant names")
EXAMPLE: dict[str, Any] = {
    "schema": 1,
    "version": "1",
    "account_resources": {"billing": {"title": "Billing", "actions": ["read", "write"]}},
    "project_resources": {
        "jobs": {"title": "Jobs", "actions": ["read", "write"]},
        "runs": {"title": "Runs", "actions": ["read"]},
    },
    "permission_sets": {
        "owner": {"title": "Owner", "read": ["*"], "write": ["*"]},
        "runner": {"title": "Runner", "read": ["jobs", "runs"], "aliases": ["operator"]},
    },
    "plans": {
        "big": {"title": "Big", "permission_sets": ["*"]},
        "small": {"title": "Small", "permission_sets": ["owner"]},
    },
}


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Difference:
    return Difference(Catalog.build(before, 1), Catalog.build(after, 2))


def changed(**tables: Any) -> dict[str, Any]:
    """The example with other tables."""
    return {**EXAMPLE, **tables}


def without(table: str, name: str) -> dict[str, Any]:
    return {key: value for key, value in EXAMPLE[table].items() if key != name}


# ---- against the oracle


def given_by(
    document: Mapping[str, Any], plan: str, grant: NaiveGrant, permission: str, project_id: str | None
) -> bool:
    """Whether this grant, by itself, makes a check of the permission a yes: at the account (None), or on a project."""
    of_this_level = account_permissions(document) if project_id is None else project_permissions(document)
    if permission not in of_this_level or grant.permission_set not in covered_sets(document, plan):
        return False
    if permission not in permissions_in_set(document, grant.permission_set):
        return False
    return grant.project_ids is None or (project_id is not None and project_id in grant.project_ids)


def decided_everywhere(
    before: Mapping[str, Any], after: Mapping[str, Any], plan: str, grants: tuple[NaiveGrant, ...]
) -> Effect:
    """Every permission at every place, under either catalog."""
    gained, lost, gaining, losing = (set[str]() for _ in range(4))
    for permission in every_permission(before) | every_permission(after):
        for place in PLACES:
            old = {grant.permission_set for grant in grants if given_by(before, plan, grant, permission, place)}
            new = {grant.permission_set for grant in grants if given_by(after, plan, grant, permission, place)}
            if new and not old:
                gained.add(permission)
                gaining |= new
            if old and not new:
                lost.add(permission)
                losing |= old
    return Effect(frozenset(gained), frozenset(lost), frozenset(gaining), frozenset(losing))


@settings(max_examples=400, deadline=None)
@given(
    strategies.documents(),
    strategies.documents(),
    st.sampled_from([*strategies.PLANS * 3, "vanished"]),
    strategies.grants(),
)
def test_a_token_gains_and_loses_what_its_checks_would_answer_otherwise(
    before: dict[str, Any], after: dict[str, Any], plan: str, grants: tuple[NaiveGrant, ...]
) -> None:
    given_grants = tuple(Grant(grant.permission_set, grant.project_ids) for grant in grants)
    compared = difference(before, after)

    effect = compared.effect(plan, given_grants)

    assert effect == decided_everywhere(before, after, plan, grants)
    # Whoever reads tokens for a preview may leave out those that hold none of these.
    if effect != Effect():
        assert compared.affected_sets & {name for name, _ in given_grants}
    # A remembered effect is the same one.
    assert compared.effect(plan, given_grants) == effect


@settings(deadline=None)
@given(strategies.documents(), strategies.documents())
def test_the_sets_and_plans_that_changed_are_told_with_what_is_new_and_what_is_gone(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    sets: dict[str, tuple[set[str], set[str]]] = {}
    for name in before["permission_sets"].keys() | after["permission_sets"].keys():
        old, new = (
            permissions_in_set(document, name) if name in document["permission_sets"] else set[str]()
            for document in (before, after)
        )
        aliases = [set(document["permission_sets"].get(name, {}).get("aliases", [])) for document in (before, after)]
        if old != new or aliases[0] != aliases[1]:
            sets[name] = (new - old, old - new)
    plans = {
        plan: (
            covered_sets(after, plan) - covered_sets(before, plan),
            covered_sets(before, plan) - covered_sets(after, plan),
        )
        for plan in strategies.PLANS
        if covered_sets(before, plan) != covered_sets(after, plan)
    }

    compared = difference(before, after)

    assert {name: (set(told.gained), set(told.lost)) for name, told in compared.set_changes().items()} == sets
    assert {told.name: (set(told.sets_added), set(told.sets_removed)) for told in compared.plan_changes()} == plans


@settings(deadline=None)
@given(strategies.documents(), st.randoms(use_true_random=False))
def test_a_file_in_another_order_with_other_titles_has_no_changes(document: dict[str, Any], random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            entries = [(key, shuffled(entry)) for key, entry in value.items()]
            random.shuffle(entries)
            return dict(entries)
        return random.sample(value, len(value)) if isinstance(value, list) else value

    renamed = shuffled(document)
    for table in ("account_resources", "project_resources", "permission_sets", "plans"):
        for entry in renamed[table].values():
            entry["title"] = "Another title"

    compared = difference(document, renamed)

    assert (compared.set_changes(), compared.plan_changes(), compared.resource_changes()) == ({}, [], [])
    assert compared.affected_sets == frozenset()


# ---- by example


def test_a_set_that_is_new_gains_all_and_one_that_is_gone_loses_all() -> None:
    sets = {**without("permission_sets", "runner"), "auditor": {"title": "Auditor", "read": ["runs", "billing"]}}

    compared = difference(EXAMPLE, changed(permission_sets=sets))

    assert compared.set_changes() == {
        "auditor": SetChange("auditor", Kind.ADDED, ("billing:read", "runs:read"), ()),
        "runner": SetChange("runner", Kind.REMOVED, (), ("jobs:read", "runs:read")),
    }
    assert compared.plan_changes() == [PlanChange("big", Kind.CHANGED, ("auditor",), ("runner",))]
    assert compared.removed_sets() == {"runner"}


def test_another_alias_is_a_change_without_permissions() -> None:
    sets = {**EXAMPLE["permission_sets"], "runner": {**EXAMPLE["permission_sets"]["runner"], "aliases": ["driver"]}}

    compared = difference(EXAMPLE, changed(permission_sets=sets))

    assert compared.set_changes() == {"runner": SetChange("runner", Kind.CHANGED)}
    assert compared.affected_sets == frozenset()


def test_plans_come_and_go() -> None:
    plans = {**without("plans", "small"), "tiny": {"title": "Tiny", "permission_sets": ["runner"]}}

    compared = difference(EXAMPLE, changed(plans=plans))

    assert compared.plan_changes() == [
        PlanChange("small", Kind.REMOVED, (), ("owner",)),
        PlanChange("tiny", Kind.ADDED, ("runner",), ()),
    ]
    assert compared.removed_plans() == {"small"}


def test_a_removed_resource_is_told_with_the_sets_that_give_something_on_it() -> None:
    after = changed(
        project_resources=without("project_resources", "runs"),
        permission_sets={
            "owner": EXAMPLE["permission_sets"]["owner"],
            "runner": {"title": "Runner", "read": ["jobs"], "aliases": ["operator"]},
        },
    )

    compared = difference(EXAMPLE, after)

    assert compared.resource_changes() == [ResourceChange("runs", Kind.REMOVED, (), ("read",))]
    assert compared.sets_of_removed_resources() == {"runs": frozenset({"owner", "runner"})}


def test_a_resource_that_moves_to_the_other_level_is_lost_there_and_gained_here() -> None:
    after = changed(
        account_resources={**EXAMPLE["account_resources"], "runs": EXAMPLE["project_resources"]["runs"]},
        project_resources=without("project_resources", "runs"),
    )

    compared = difference(EXAMPLE, after)
    on_all = compared.effect("big", [Grant("runner", None)])
    on_one = compared.effect("big", [Grant("runner", ("p1",))])

    assert compared.resource_changes() == [ResourceChange("runs", Kind.CHANGED, (), ())]
    assert compared.set_changes()["runner"] == SetChange("runner", Kind.CHANGED, ("runs:read",), ("runs:read",))
    assert (set(on_all.gained), set(on_all.lost)) == ({"runs:read"}, {"runs:read"})
    assert (set(on_one.gained), set(on_one.lost)) == (set(), {"runs:read"})


def test_what_another_grant_gives_in_the_same_place_is_not_lost() -> None:
    compared = difference(EXAMPLE, changed(permission_sets=without("permission_sets", "runner")))
    owner_on_p1, runner_on_p1, runner_on_both = (
        Grant("owner", ("p1",)),
        Grant("runner", ("p1",)),
        Grant("runner", ("p1", "p2")),
    )

    assert compared.effect("big", [owner_on_p1, runner_on_p1]) == Effect()
    assert compared.effect("big", [owner_on_p1, runner_on_both]).lost == {"jobs:read", "runs:read"}
    assert compared.effect("small", [owner_on_p1, runner_on_both]) == Effect()
    assert compared.effect("big", [Grant("owner", None), runner_on_both]) == Effect()
    assert compared.effect("big", [Grant("runner", None), owner_on_p1]).lost == {"jobs:read", "runs:read"}


@pytest.mark.parametrize("version", ["2026.11.1", "another"])
def test_the_built_in_catalog_does_not_differ_from_itself(version: str) -> None:
    text = builtin_text()
    compared = Difference(load_catalog(text, 1), load_catalog(text.replace("2026.11.1", version), 2))

    assert (compared.set_changes(), compared.plan_changes(), compared.resource_changes()) == ({}, [], [])
