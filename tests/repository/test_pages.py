"""The pages say nothing that is not there: every link leads somewhere, every symbol of the architecture exists."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.repository.sources import ROOT, files_of_the_repository, name_of

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [path for path in files_of_the_repository() if path.suffix == ".md"]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PARTS = {path.stem for path in (ROOT / "server" / "doorward_server").iterdir()} | {"core"}
SYMBOLS = [name for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", ARCHITECTURE) if name.partition(".")[0] in PARTS]


def resolved(name: str) -> object:
    """What a symbol of the page names: the longest beginning that is a module, then attributes."""
    path = f"doorward.{name}" if name.startswith("core.") else f"doorward_server.{name}"
    module, attributes = path, ""
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            attributes = f"{last}.{attributes}"
    for attribute in filter(None, attributes.split(".")):
        found = getattr(found, attribute)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`(?!\])", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_architecture_names_many_symbols() -> None:
    assert len(set(SYMBOLS)) > 30


@pytest.mark.parametrize("name", sorted(set(SYMBOLS)))
def test_every_symbol_of_the_architecture_exists(name: str) -> None:
    assert resolved(name) is not None


def test_a_symbol_that_is_gone_is_noticed() -> None:
    with pytest.raises(AttributeError):
        resolved("service.revoke.Revoke.forget_token")


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda path: path.name)
def test_every_decision_says_what_it_costs_and_what_would_change_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", page.name)
    assert re.match(rf"# {page.name[:4]}\. \S", text)
    assert headings == ["Situation", "Decision", "What it costs", "What would change our mind"]
