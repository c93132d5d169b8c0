"""Every violation of a catalog's document is told, at once, with its path; nothing else is ever raised."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.core.catalog_document import CatalogInvalid, read_document
from tests.support import strategies

Change = Callable[[dict[str, Any]], object]


def a_document() -> dict[str, Any]:
    return {
        "schema": 1,
        "version": "1",
        "account_resources": {"billing": {"title": "Billing", "actions": ["read", "write"]}},
        "project_resources": {
            "jobs": {"title": "Jobs", "actions": ["read", "write"]},
            "develop": {"title": "Development", "actions": ["write"]},
        },
        "permission_sets": {
            "admin": {"title": "Admin", "aliases": ["owner"], "write": ["*"]},
            "viewer": {"title": "Viewer", "read": ["jobs"]},
        },
        "plans": {"team": {"title": "Team", "permission_sets": ["admin"], "set_titles": {"admin": "Owner"}}},
    }


def violations_of(document: Any) -> tuple[str, ...]:
    with pytest.raises(CatalogInvalid) as raised:
        read_document(document)
    return raised.value.violations


def changed(part: str, name: str, **values: object) -> Change:
    """The entry `name` of a table with some values set, or taken away if ..."""

    def change(document: dict[str, Any]) -> None:
        entry = document[part].setdefault(name, {"title": "Added"})
        for key, value in values.items():
            entry.pop(key, None) if value is ... else entry.__setitem__(key, value)

    return change


def top(**values: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        for key, value in values.items():
            document.pop(key, None) if value is ... else document.__setitem__(key, value)

    return change


WRONG: list[tuple[Change, str, str]] = [
    (top(schema=...), "schema", "must be 1"),
    (top(schema=2), "schema", "must be 1"),
    (top(schema="1"), "schema", "must be 1"),
    (top(schema=True), "schema", "must be 1"),
    (top(schema=1.0), "schema", "must be 1"),
    (top(version=...), "version", "must be a text"),
    (top(version=1), "version", "must be a text"),
    (top(version=""), "version", "0 characters, 1 to 200"),
    (top(version="v" * 201), "version", "201 characters, 1 to 200"),
    (top(version="v\n1"), "version", "a control character"),
    (top(plan={}), "plan", "is unknown here"),
    (top(plans=...), "plans", "at least one"),
    (top(plans=[]), "plans", "must be a table"),
    (top(permission_sets=..., plans={"team": {"title": "T", "permission_sets": []}}), "permission_sets", "at least one"),
    (changed("account_resources", "billing", title=...), "account_resources.billing.title", "must be a text"),
    (changed("account_resources", "billing", title="t" * 201), "account_resources.billing.title", "201 characters"),
    (changed("account_resources", "billing", colour="red"), "account_resources.billing.colour", "is unknown here"),
    (changed("account_resources", "logs", actions=[]), "account_resources.logs.actions", 'must be ["read"]'),
    (changed("account_resources", "logs", actions="read"), "account_resources.logs.actions", "a list of names"),
    (changed("account_resources", "logs", actions=["run"]), "account_resources.logs.actions", "'run' is no action"),
    (changed("account_resources", "logs", actions=["read", "read"]), "account_resources.logs.actions", "more than once"),
    (changed("account_resources", "jobs", actions=["read"]), "project_resources.jobs", "is an account resource too"),
    (changed("account_resources", "Logs", actions=["read"]), "account_resources.Logs", "a name is"),
    (changed("account_resources", "a" * 64, actions=["read"]), f"account_resources.{'a' * 64}", "a name is"),
    (changed("account_resources", "9a", actions=["read"]), "account_resources.9a", "a name is"),
    (changed("account_resources", "", actions=["read"]), "account_resources.", "a name is"),
    (changed("account_resources", "é", actions=["read"]), "account_resources.é", "a name is"),
    (changed("permission_sets", "viewer", title=...), "permission_sets.viewer.title", "must be a text"),
    (changed("permission_sets", "viewer", description=1), "permission_sets.viewer.description", "must be a text"),
    (changed("permission_sets", "viewer", description="d" * 1001), "permission_sets.viewer.description", "0 to 1000"),
    (changed("permission_sets", "viewer", description="\0"), "permission_sets.viewer.description", "a control character"),
    (changed("permission_sets", "viewer", title="\ud800"), "permission_sets.viewer.title", "a control character"),
    (changed("permission_sets", "viewer", title="\x9b"), "permission_sets.viewer.title", "a control character"),
    (changed("permission_sets", "viewer", writes=[]), "permission_sets.viewer.writes", "is unknown here"),
    (changed("permission_sets", "viewer", read=[]), "permission_sets.viewer", "must give a permission"),
    (changed("permission_sets", "viewer", read=...), "permission_sets.viewer", "must give a permission"),
    (changed("permission_sets", "viewer", read="*"), "permission_sets.viewer.read", "a list of names"),
    (changed("permission_sets", "viewer", read=["runs"]), "permission_sets.viewer.read", "'runs' is no resource"),
    (changed("permission_sets", "viewer", read=["develop"]), "permission_sets.viewer.read", "no action read, only write"),
    (changed("permission_sets", "viewer", read=["jobs", "jobs"]), "permission_sets.viewer.read", "more than once"),
    (changed("permission_sets", "viewer", read=["*", "jobs"]), "permission_sets.viewer.read", "must stand alone"),
    (changed("permission_sets", "viewer", aliases=["owner"]), "permission_sets.viewer.aliases", "already names the set admin"),
    (changed("permission_sets", "viewer", aliases=["admin"]), "permission_sets.viewer.aliases", "already names the set admin"),
    (changed("permission_sets", "viewer", aliases=["viewer"]), "permission_sets.viewer.aliases", "already names the set viewer"),
    (changed("permission_sets", "viewer", aliases=["a b"]), "permission_sets.viewer.aliases", "'a b' is no name"),
    (changed("permission_sets", "Viewer", read=["jobs"]), "permission_sets.Viewer", "a name is"),
    (changed("plans", "team", title=...), "plans.team.title", "must be a text"),
    (changed("plans", "team", price=1), "plans.team.price", "is unknown here"),
    (changed("plans", "team", permission_sets=...), "plans.team.permission_sets", "a list of names"),
    (changed("plans", "team", permission_sets=["admin", "owner"]), "plans.team.permission_sets", "'owner' is no permission set"),
    (changed("plans", "team", permission_sets=["*", "admin"]), "plans.team.permission_sets", "must stand alone"),
    (changed("plans", "team", set_titles={"viewer": "V"}), "plans.team.set_titles.viewer", "that the plan covers"),
    (changed("plans", "team", set_titles={"admin": ""}), "plans.team.set_titles.admin", "0 characters"),
    (changed("plans", "team", set_titles=["admin"]), "plans.team.set_titles", "must be a table"),
    (changed("plans", "te-am", permission_sets=["*"]), "plans.te-am", "a name is"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "path", "sentence"), WRONG, ids=[f"{path}: {words}"[:70] for _, path, words in WRONG]
)
def test_a_violation_names_its_path_and_what_would_be_right(change: Change, path: str, sentence: str) -> None:
    document = a_document()
    change(document)

    found = violations_of(document)

    assert any(violation.startswith(f"{path}: ") and sentence in violation for violation in found), found


def test_every_violation_is_told_at_once() -> None:
    document = a_document()
    document["schema"] = 2
    document["project_resources"]["jobs"]["actions"] = ["read", "run"]
    document["permission_sets"]["viewer"]["read"] = ["runs", "develop"]
    document["plans"]["team"]["permission_sets"] = ["nobody"]

    assert [violation.partition(":")[0] for violation in violations_of(document)] == [
        "schema",
        "project_resources.jobs.actions",
        "permission_sets.viewer.read",
        "permission_sets.viewer.read",
        "plans.team.permission_sets",
        "plans.team.set_titles.admin",
    ]


def filled(part: str, count: int) -> dict[str, Any]:
    """A valid document whose table has this many entries."""
    document = a_document()
    pattern = {
        "account_resources": {"title": "R", "actions": ["read"]},
        "project_resources": {"title": "R", "actions": ["read"]},
        "permission_sets": {"title": "S", "read": ["jobs"]},
        "plans": {"title": "P", "permission_sets": []},
    }[part]
    for number in range(count - len(document[part])):
        document[part][f"x{part[0]}{number}"] = copy.deepcopy(pattern)
    return document


@pytest.mark.parametrize(
    ("part", "most"),
    [("account_resources", 512), ("project_resources", 512), ("permission_sets", 1000), ("plans", 100)],
)
def test_a_table_may_be_full_and_not_fuller(part: str, most: int) -> None:
    read_document(filled(part, most))

    assert violations_of(filled(part, most + 1)) == (f"{part}: has {most + 1} entries, at most {most} are allowed",)


def test_a_text_and_a_name_may_be_as_long_as_the_bound() -> None:
    document = a_document()
    document["version"] = "v" * 200
    document["permission_sets"]["viewer"] |= {"title": "t" * 200, "description": "d" * 1000}
    document["permission_sets"]["admin"]["description"] = "Two lines:\n\tand é\u00a0!"
    document["permission_sets"]["a" * 63] = {"title": "t", "read": ["jobs"]}

    assert "a" * 63 in read_document(document).permission_sets


def test_a_violation_stays_short_however_long_the_text_is_that_it_is_about() -> None:
    document = a_document()
    document["permission_sets"]["x" * 100_000] = {"title": "t", "read": ["y" * 100_000], "z" * 100_000: 1}

    assert max(map(len, violations_of(document))) < 400


def test_resources_may_be_of_one_level_only() -> None:
    document = a_document()
    del document["account_resources"]

    assert read_document(document).account_resources == {}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(strategies.documents(), st.data())
def test_whatever_stands_in_a_document_it_is_read_or_refused_as_invalid(document: Any, data: st.DataObject) -> None:
    place = document
    while isinstance(place, dict) and place and (place is document or data.draw(st.booleans())):
        inner = place[key := data.draw(st.sampled_from(sorted(place)))]
        if not isinstance(inner, dict) or data.draw(st.booleans()):
            place[key] = data.draw(JUNK)
            break
        place = inner

    try:
        read_document(document)
    except CatalogInvalid as invalid:
        assert invalid.violations  # noqa: PT017 either outcome is right, but never an empty one


@given(JUNK)
def test_junk_is_refused_as_invalid(junk: Any) -> None:
    assert violations_of(junk)
