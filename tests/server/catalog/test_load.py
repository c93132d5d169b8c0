"""A catalog's text is loaded, or refused with every reason and never with another error."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.core.catalog import CatalogInvalid
from doorward_server.catalog.load import builtin_text, load_catalog

SMALL = """
schema = 1
version = "1"
[project_resources]
jobs = { title = "Jobs", actions = ["read", "write"] }
[plans.team]
title = "Team"
permission_sets = ["*"]
[permission_sets.viewer]
title = "Viewer"
read = ["jobs"]
"""


def violations_of(text: str) -> tuple[str, ...]:
    with pytest.raises(CatalogInvalid) as raised:
        load_catalog(text, 1)
    return raised.value.violations


def test_the_builtin_catalog_loads() -> None:
    catalog = load_catalog(builtin_text(), 1)

    assert (catalog.version, catalog.label) == (1, "2026.11.1")
    assert catalog.title_of("account_admin", "team") == "Owner"
    assert catalog.find_permission_set("owner") is catalog.permission_sets["account_admin"]


def test_every_violation_of_a_text_is_told_at_once() -> None:
    text = SMALL.replace("schema = 1", "schema = 3").replace('["jobs"]', '["runs"]').replace('title = "Team"', "")

    assert [violation.partition(":")[0] for violation in violations_of(text)] == [
        "schema",
        "permission_sets.viewer.read",
        "plans.team.title",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("schema = ", "is no TOML: Invalid value (at end of document)"),
        ("\0", "is no TOML"),
        ("schema = 1\nschema = 1\n", "is no TOML: Cannot overwrite a value (at line 2, column 11)"),
        ("n = " + "9" * 10_000, "is no TOML"),
        ("a = " + "[" * 100_000, "nests deeper"),
        ("a = " + "{a = " * 100_000, "nests deeper"),
        (SMALL + "\ud800", "is no TOML"),
    ],
)
def test_a_text_that_is_no_toml_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    (violation,) = violations_of(text)

    assert violation.startswith("catalog: ")
    assert sentence in violation


def test_a_text_may_have_a_mebibyte_and_not_more() -> None:
    room = 1024 * 1024 - len(SMALL.encode())

    load_catalog(SMALL + "#" * room, 1)

    assert violations_of(SMALL + "#" * (room + 1)) == ("catalog: has more than 1048576 bytes",)
    assert violations_of(SMALL + "#" + "é" * (room // 2 + 1)) == ("catalog: has more than 1048576 bytes",)


@settings(deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="[]{}=\"'.,#\n ab1-:", max_size=60))
def test_no_text_raises_anything_else(text: Any) -> None:
    assert violations_of(text)
