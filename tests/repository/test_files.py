"""What must hold of the repository's files: no trace of a machine or a secret, copies equal, locks locked, help whole."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.repository.sources import ROOT, files_of_the_repository, name_of

if TYPE_CHECKING:
    from pathlib import Path

# Written so that no expression finds itself. A host that serves packages belongs into pip's settings, not in here.
REGISTRIES = r"pythonhoste[d]|pyp[i]\.(org|python)|proxy\.golan[g]|artifactor[y]|registry\.npmj[s]|devp[i]\b"
PLACES = r"(?<![\w.}])/(home|User[s])/[a-z]|(?<![\w.}])/wor[k]/"
SECRETS = {
    "a token's or an operator's secret": r"dw(st|op)_[0-9A-Za-z]{16}_[0-9A-Za-z]{38}",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KE[Y]",
    "a cloud's key": r"AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}",
    "a forge's or a chat's token": r"gh[pousr]_[0-9A-Za-z]{36}|xox[abprs]-[0-9A-Za-z-]{10}",
}
LOCKS = sorted(ROOT.glob("requirements*.lock"))
# Called by other targets only.
UNTOLD_TARGETS = {"check-python"}


def places_with(expression: str) -> list[str]:
    """`file:line` of everything that it finds."""
    wanted = re.compile(expression)
    return [
        f"{name_of(path)}:{number}"
        for path in files_of_the_repository()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if wanted.search(line)
    ]


def this_checkout() -> str:
    """Finds the path of this checkout, where it is long enough to be no part of something else."""
    return rf"(?<![\w./}}]){re.escape(str(ROOT))}(?![\w.-])" if len(ROOT.parts) > 2 else r"(?!)"


@pytest.mark.parametrize("expression", [REGISTRIES, PLACES, this_checkout()], ids=["registries", "places", "checkout"])
def test_no_file_names_a_machine(expression: str) -> None:
    assert places_with(expression) == []


@pytest.mark.parametrize("what", SECRETS)
def test_no_file_holds_a_secret(what: str) -> None:
    assert places_with(SECRETS[what]) == []


def test_the_search_finds_what_it_looks_for() -> None:
    (found,) = places_with("^def test_the_search_finds_what_it_looks_for")
    assert found.startswith("tests/repository/test_files.py:")
    host = "https://files.python" + "hosted.org/packages"
    assert re.search(REGISTRIES, host)
    assert re.search(PLACES, "cd /ho" + "me/alice/doorward")
    assert re.search(SECRETS["a token's or an operator's secret"], "dwst_" + "a" * 16 + "_" + "b" * 38)


def test_the_licence_is_the_same_everywhere() -> None:
    texts = {(ROOT / folder / "LICENSE").read_bytes() for folder in ("", "client", "server")}
    assert len(texts) == 1
    assert b"Apache License" in texts.pop()


def test_both_packages_have_one_version() -> None:
    projects = [tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in ("client", "server")]
    (version,) = {project["version"] for project in projects}
    assert f"doorward=={version}" in projects[1]["dependencies"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_help_tells_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (declared,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    told = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split()[1] for line in told.stdout.splitlines()} == set(declared.split()) - UNTOLD_TARGETS
    assert all(len(line.split()) > 2 for line in told.stdout.splitlines())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes_and_no_lock_an_address(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    packages = re.findall(r"^\S.*(?:\n .*)*", text, re.MULTILINE)
    assert packages
    pinned = re.compile(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+( ; [^\\]+)? \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+")
    assert [package.partition("\n")[0] for package in packages if not pinned.fullmatch(package)] == []
    assert re.findall(r"://|--(?:extra-)?index|--find-links| @ ", text) == []


def test_there_are_the_locks_that_make_installs_from() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {path.name for path in LOCKS} == set(re.findall(r"requirements[a-z-]*\.lock", makefile))
