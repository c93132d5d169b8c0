"""A built catalog says in bits what its document says in names."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings

from doorward.core.catalog import Catalog, CatalogInvalid, Level
from tests.support import oracle, strategies

DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "version": "2026.11.1",
    "account_resources": {
        "billing": {"title": "Billing", "actions": ["write", "read"]},
        "audit_logs": {"title": "Audit logs", "actions": ["read"]},
    },
    "project_resources": {
        "jobs": {"title": "Jobs", "actions": ["read", "write"]},
        "develop": {"title": "Development", "actions": ["write"]},
    },
    "permission_sets": {
        "everything": {"title": "Everything", "aliases": ["owner"], "read": ["*"], "write": ["*"]},
        "developer": {"title": "Developer", "description": "Develops.", "write": ["develop", "jobs"]},
        "viewer": {"title": "Viewer", "read": ["*"]},
    },
    "plans": {
        "team": {"title": "Team", "permission_sets": ["everything"], "set_titles": {"everything": "Owner"}},
        "enterprise": {"title": "Enterprise", "permission_sets": ["*"]},
    },
}


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.build(DOCUMENT, 7)


def names_of(catalog: Catalog, permission_set: str) -> set[str]:
    found = catalog.permission_sets[permission_set]
    at_account = catalog.permission_names(Level.ACCOUNT, found.account_mask)
    return {*at_account, *catalog.permission_names(Level.PROJECT, found.project_mask)}


def test_version_counts_applies_and_label_is_the_files_own(catalog: Catalog) -> None:
    assert (catalog.version, catalog.label) == (7, "2026.11.1")


def test_each_level_numbers_its_permissions_from_one(catalog: Catalog) -> None:
    bits = {level: sorted(p.bit for p in catalog.permissions.values() if p.level is level) for level in Level}

    assert bits == {Level.ACCOUNT: [1, 2, 4], Level.PROJECT: [1, 2, 4]}


def test_write_includes_read_where_the_resource_can_be_read(catalog: Catalog) -> None:
    assert names_of(catalog, "developer") == {"develop:write", "jobs:read", "jobs:write"}


def test_a_star_is_every_resource_that_has_the_action(catalog: Catalog) -> None:
    assert names_of(catalog, "everything") == set(catalog.permissions)
    assert names_of(catalog, "viewer") == {"audit_logs:read", "billing:read", "jobs:read"}


@settings(deadline=None)
@given(strategies.documents())
def test_the_masks_of_any_catalog_name_what_its_document_gives(document: dict[str, Any]) -> None:
    catalog = Catalog.build(document, 1)

    assert set(catalog.permissions) == oracle.every_permission(document)
    for name in document["permission_sets"]:
        assert names_of(catalog, name) == oracle.permissions_in_set(document, name)
    for plan in document["plans"]:
        assert {name for name in catalog.permission_sets if catalog.covers(plan, name)} == oracle.covered_sets(
            document, plan
        )


def test_find_knows_names_and_for_sets_aliases(catalog: Catalog) -> None:
    owner = catalog.find_permission_set("owner")
    permission = catalog.find_permission("jobs:write")
    plan = catalog.find_plan("team")

    assert owner is catalog.find_permission_set("everything") is not None
    assert permission is not None
    assert (permission.resource, permission.action, permission.level) == ("jobs", "write", Level.PROJECT)
    assert plan is not None
    assert plan.title == "Team"


@pytest.mark.parametrize("name", ["", "jobs", "jobs:", "jobs:delete", "develop:read", "JOBS:READ", "jobs:read "])
def test_find_permission_knows_no_other_text(catalog: Catalog, name: str) -> None:
    assert catalog.find_permission(name) is None


def test_find_is_none_for_what_the_catalog_does_not_have(catalog: Catalog) -> None:
    assert catalog.find_permission_set("nothing") is None
    assert catalog.find_plan("free") is None


def test_covers_by_name_and_an_unknown_plan_covers_nothing(catalog: Catalog) -> None:
    assert catalog.covers("team", "everything")
    assert not catalog.covers("team", "viewer")
    assert catalog.covers("enterprise", "viewer")
    assert not catalog.covers("enterprise", "owner")
    assert not catalog.covers("free", "everything")


@pytest.mark.parametrize(
    ("permission_set", "plan", "title"),
    [
        ("everything", "team", "Owner"),
        ("everything", "enterprise", "Everything"),
        ("viewer", "team", "Viewer"),
        ("viewer", "free", "Viewer"),
        ("gone", "team", "gone"),
        ("gone", "free", "gone"),
    ],
)
def test_title_of_is_the_plans_own_then_the_sets_then_the_name(
    catalog: Catalog, permission_set: str, plan: str, title: str
) -> None:
    assert catalog.title_of(permission_set, plan) == title


def test_permission_names_are_sorted_and_of_one_level(catalog: Catalog) -> None:
    assert catalog.permission_names(Level.ACCOUNT, ~0) == ("audit_logs:read", "billing:read", "billing:write")
    assert catalog.permission_names(Level.PROJECT, 0) == ()


def test_resources_list_their_actions_in_one_order(catalog: Catalog) -> None:
    assert catalog.resources["billing"].actions == ("read", "write")
    assert catalog.resources["develop"].level is Level.PROJECT


def test_a_catalog_cannot_be_changed(catalog: Catalog) -> None:
    plan: Any = catalog.plans["team"]
    anything: Any = catalog

    with pytest.raises(FrozenInstanceError):
        anything.version = 8
    with pytest.raises(TypeError):
        anything.permission_sets["mine"] = catalog.permission_sets["everything"]
    with pytest.raises(TypeError):
        plan.set_titles["viewer"] = "Mine"


def test_a_catalog_keeps_nothing_of_the_values_it_was_built_from() -> None:
    document = {**DOCUMENT, "plans": {"team": {"title": "Team", "permission_sets": ["viewer"], "set_titles": {}}}}
    catalog = Catalog.build(document, 1)

    document["plans"]["team"]["set_titles"]["viewer"] = "Changed"

    assert catalog.title_of("viewer", "team") == "Viewer"


def test_build_refuses_what_is_no_catalog() -> None:
    with pytest.raises(CatalogInvalid):
        Catalog.build({}, 1)
