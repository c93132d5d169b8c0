"""What a watcher makes of the catalog that it is sent is the catalog that is in force here, and it fits a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from doorward._watch_wire import decoded
from doorward.core.catalog import Catalog
from doorward.core.watch_messages import CatalogSent as Sent
from doorward.core.watch_session import find_catalog
from doorward_server.api.watch_encoding import WatchEncoder
from doorward_server.app import MAX_MESSAGE
from doorward_server.catalog.load import builtin_text, load_catalog
from doorward_server.replica.watch_messages import CatalogSent, Taken

if TYPE_CHECKING:
    from collections.abc import Mapping

RESOURCES = ("billing", "jobs", "logs", "members")


def sent(catalog: Catalog) -> bytes:
    return WatchEncoder(5000, 1).encode(Taken(2, 7, CatalogSent(catalog)), 1)


def received(message: bytes) -> Catalog:
    body = decoded(message).body
    assert isinstance(body, Sent)
    catalog = find_catalog(body)
    assert catalog is not None
    return catalog


def meaning(catalog: Catalog) -> dict[str, Any]:
    """All that a decision reads of it, by name: bits are each process's own."""

    def names(account: int, project: int) -> set[str]:
        of_level = {"ACCOUNT": account, "PROJECT": project}
        return {found.name for found in catalog.permissions.values() if found.bit & of_level[found.level.name]}

    return {
        "version": catalog.version,
        "label": catalog.label,
        "permissions": {found.name: found.level for found in catalog.permissions.values()},
        "sets": {held.name: names(held.account_mask, held.project_mask) for held in catalog.permission_sets.values()},
        "plans": {plan.name: plan.permission_sets for plan in catalog.plans.values()},
    }


def test_the_built_in_catalog_is_understood() -> None:
    catalog = load_catalog(builtin_text(), 3)
    assert meaning(received(sent(catalog))) == meaning(catalog)


def some_of(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.one_of(st.just(["*"]), st.lists(st.sampled_from(values), unique=True) if values else st.just([]))


@st.composite
def documents(draw: st.DrawFn) -> Mapping[str, Any]:
    """Small catalogs of every shape: some resources can only be read, or only be written, or are of the account."""
    actions = {name: draw(st.sampled_from([["read"], ["write"], ["read", "write"]])) for name in RESOURCES}
    of_account = {name: draw(st.booleans()) for name in RESOURCES}
    able = {action: tuple(name for name in RESOURCES if action in actions[name]) for action in ("read", "write")}
    sets = {"all": {"title": "All", "read": ["*"], "write": ["*"]}}
    for number in range(draw(st.integers(0, 4))):
        read, write = draw(some_of(able["read"])), draw(some_of(able["write"]))
        gives = any(able["read"] if names == ["*"] else names for names in (read,)) or any(
            able["write"] if names == ["*"] else names for names in (write,)
        )
        if gives:
            sets[f"set{number}"] = {"title": "A set", "read": read, "write": write}
    plans = {
        f"plan{number}": {"title": "A plan", "permission_sets": draw(some_of(tuple(sets)))}
        for number in range(draw(st.integers(1, 3)))
    }
    resources: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for name in RESOURCES:
        resources[of_account[name]][name] = {"title": name, "actions": actions[name]}
    return {
        "schema": 1,
        "version": "a",
        "account_resources": resources[True],
        "project_resources": resources[False],
        "permission_sets": sets,
        "plans": plans,
    }


@given(document=documents())
def test_any_catalog_is_understood(document: Mapping[str, Any]) -> None:
    catalog = Catalog.build(document, 9)
    assert meaning(received(sent(catalog))) == meaning(catalog)


def test_the_largest_catalog_fits_a_message() -> None:
    """As many sets as there may be, in names of the longest, that write and read everything but what can only be read."""
    names = [f"{number:04}".rjust(63, "r").lower() for number in range(511)]
    project = {name: {"title": "R", "actions": ["read", "write"]} for name in names}
    project["only_read"] = {"title": "R", "actions": ["read"]}
    sets = {
        f"{number:04}".rjust(63, "s"): {"title": "S", "read": ["*"] if number % 2 else [], "write": ["*"]}
        for number in range(1_000)
    }
    document = {
        "schema": 1,
        "version": "a",
        "account_resources": {},
        "project_resources": project,
        "permission_sets": sets,
        "plans": {f"plan{number}": {"title": "P", "permission_sets": ["*"]} for number in range(20)},
    }
    catalog = Catalog.build(document, 1)
    message = sent(catalog)
    assert len(message) < MAX_MESSAGE // 4
    assert meaning(received(message)) == meaning(catalog)
