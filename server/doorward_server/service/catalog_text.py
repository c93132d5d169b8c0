"""A catalog's text as somebody sends it: the catalog that it describes, or everything that is wrong with it.

Used by what previews and applies catalogs. The text is kept and shown as it was given, so there must be no secret in it.
A mebibyte of TOML takes seconds to read (measured: 100,000 keys, 1 to 3 s), in which checks must be answered and the lease
renewed: so that is done in a thread, one text at a time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from doorward.core.catalog import CatalogInvalid
from doorward.core.secret import contains_secret
from doorward_server.catalog.diff import Difference
from doorward_server.catalog.load import LONGEST_TEXT, load_catalog
from doorward_server.errors import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doorward.core.catalog import Catalog

__all__ = ["CatalogTexts", "read_catalog"]

FIELD: Final = "catalog"
# The version of a catalog that is not in force.
NOT_APPLIED: Final = 0
# An error shows the first ones anyhow.
MOST_VIOLATIONS: Final = 1000


class CatalogTexts:
    """Reads and compares catalogs without keeping the loop from anything else."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def read(self, toml_text: str) -> tuple[Catalog | None, list[Violation]]:
        """As `read_catalog`."""
        async with self._turn:
            return await asyncio.to_thread(read_catalog, toml_text)

    async def compare(self, before: Catalog, after: Catalog) -> Difference:
        """The two side by side."""
        async with self._turn:
            return await asyncio.to_thread(Difference, before, after)


def read_catalog(toml_text: str) -> tuple[Catalog | None, list[Violation]]:
    """The catalog, or its faults, each with its path in the file behind `catalog.`."""
    if not toml_text:
        return None, [Violation(FIELD, "is required: a whole catalog as a TOML file", "FIELD_REQUIRED")]
    if len(toml_text.encode()) > LONGEST_TEXT:
        text = f"has more than {LONGEST_TEXT} bytes, which are allowed"
        return None, [Violation(FIELD, text, "FIELD_TOO_LONG")]
    try:
        catalog = load_catalog(toml_text, NOT_APPLIED)
    except CatalogInvalid as invalid:
        return None, [_violation(sentence) for sentence in invalid.violations[:MOST_VIOLATIONS]]
    if contains_secret(toml_text) or any(contains_secret(text) for text in _texts(catalog)):
        text = "contains a secret; secrets must never be written down here"
        return None, [Violation(FIELD, text, "FIELD_CONTAINS_SECRET")]
    return catalog, []


def _violation(sentence: str) -> Violation:
    """`permission_sets.job_admin.read: 'jbs' is no resource …` as a fault of that place."""
    path, _, description = sentence.partition(": ")
    return Violation(FIELD if path == FIELD else f"{FIELD}.{path}", description, "FIELD_MALFORMED")


def _texts(catalog: Catalog) -> Iterator[str]:
    """What people read of it: in the file it may be written with escapes."""
    yield catalog.label
    for resource in catalog.resources.values():
        yield resource.title
    for permission_set in catalog.permission_sets.values():
        yield permission_set.title
        yield permission_set.description
    for plan in catalog.plans.values():
        yield plan.title
        yield from plan.set_titles.values()
