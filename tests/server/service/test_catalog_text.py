"""A catalog's text: every fault with its path, no secret in whatever spelling, and the loop is kept from nothing."""

from __future__ import annotations

import asyncio

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward_server.catalog.load import LONGEST_TEXT, builtin_text
from doorward_server.errors import Violation
from doorward_server.service.catalog_text import MOST_VIOLATIONS, CatalogTexts, read_catalog
from tests.support.stepped import settled


def test_the_built_in_catalog_is_read() -> None:
    catalog, violations = read_catalog(builtin_text())

    assert catalog is not None
    assert ("job_admin" in catalog.permission_sets, catalog.label, violations) == (True, "2026.11.1", [])


def test_a_fault_has_its_path_in_the_file_behind_the_field() -> None:
    catalog, violations = read_catalog(builtin_text().replace("schema = 1", "schema = 2"))

    assert catalog is None
    assert violations == [Violation("catalog.schema", "must be 1", "FIELD_MALFORMED")]


def test_a_fault_of_the_whole_has_the_field_alone() -> None:
    (no_toml,), (nothing,), (too_long,) = (
        read_catalog(text)[1] for text in ("= nothing", "", "#" * (LONGEST_TEXT + 1))
    )

    assert (no_toml.field, no_toml.reason) == ("catalog", "FIELD_MALFORMED")
    assert (nothing.field, nothing.reason) == ("catalog", "FIELD_REQUIRED")
    assert (too_long.field, too_long.reason) == ("catalog", "FIELD_TOO_LONG")


def test_the_length_is_counted_in_bytes() -> None:
    text = "#" + "é" * (LONGEST_TEXT // 2)

    assert [violation.reason for violation in read_catalog(text)[1]] == ["FIELD_TOO_LONG"]


def test_of_very_many_faults_the_first_ones_are_told() -> None:
    _, violations = read_catalog("".join(f"k{number} = 1\n" for number in range(5000)))

    assert len(violations) == MOST_VIOLATIONS


@pytest.mark.parametrize("kind", SecretKind)
@pytest.mark.parametrize(
    "place",
    [
        'version = "{}"',
        'title = "{}"',
        'title = "Team"\nset_titles = {{ job_admin = "{}" }}',
        'description = "x {} y"',
        "# {}",
    ],
)
def test_a_secret_is_found_however_it_is_written(kind: SecretKind, place: str) -> None:
    secret = generate(kind, new_id()).reveal()
    former = {
        'version = "{}"': 'version = "2026.11.1"',
        'title = "{}"': 'title = "Jobs"',
        'title = "Team"\nset_titles = {{ job_admin = "{}" }}': 'title = "Team"\npermission_sets',
        'description = "x {} y"': 'description = "Unrestricted access to projects."',
        "# {}": "schema = 1",
    }[place]
    assert former in builtin_text()
    rest = "\nschema = 1" if place == "# {}" else "\npermission_sets" if "set_titles" in place else ""
    base = builtin_text().replace('set_titles = { account_admin = "Owner" }\n', "")

    for spelled in (secret, "".join(f"\\u{ord(character):04x}" for character in secret)):
        if place == "# {}" and spelled != secret:
            continue  # a comment has no escapes: this is no secret
        text = base.replace(former, place.format(spelled) + rest, 1)
        assert read_catalog(text)[1] == [
            Violation("catalog", "contains a secret; secrets must never be written down here", "FIELD_CONTAINS_SECRET")
        ]


async def test_while_a_large_text_is_read_the_loop_goes_on() -> None:
    texts, text = CatalogTexts(), "".join(f"k{number} = 1\n" for number in range(50_000))
    reading = [asyncio.ensure_future(texts.read(text)) for _ in range(2)]
    rounds = 0
    while not reading[0].done():
        await settled()
        rounds += 1

    assert rounds > 5
    # One at a time: whoever sends many keeps only the next one waiting.
    assert not reading[1].done()
    assert (await reading[1])[0] is None
