"""A catalog's TOML text becomes a `core.catalog.Catalog`, or every reason why it can't.

Also has the built-in text, which seeds an empty deployment and nothing else (design sections 1 and 6). Called at
start-up, and by the use cases that preview and apply a catalog. Knows neither database nor caller.
"""

import tomllib
from importlib import resources
from typing import Final

from doorward.core.catalog import Catalog, CatalogInvalid

LONGEST_TEXT: Final = 1024 * 1024  # bytes; a thousand sets with long descriptions take less


def load_catalog(toml_text: str, version: int) -> Catalog:
    """The catalog of this text, with `version`, the counter of what was applied.

    Raises:
        CatalogInvalid: the text is longer than 1 MiB, is no TOML, or describes no catalog; with every violation at once.
    """
    if len(toml_text) > LONGEST_TEXT or len(toml_text.encode("utf-8", "surrogatepass")) > LONGEST_TEXT:
        raise CatalogInvalid((f"catalog: has more than {LONGEST_TEXT} bytes",))
    try:
        values = tomllib.loads(toml_text)
    except RecursionError:
        raise CatalogInvalid(("catalog: nests deeper than any catalog does",)) from None
    except ValueError as error:  # also what int() says of a number of thousands of digits
        raise CatalogInvalid((f"catalog: is no TOML: {str(error)[:200]}",)) from None
    return Catalog.build(values, version)


def builtin_text() -> str:
    """The text of the catalog that ships with the server."""
    return resources.files(__package__).joinpath("permission_sets.toml").read_text(encoding="utf-8")
