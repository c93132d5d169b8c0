"""`doorward catalog diff | apply` against a real server of this module's own, whose catalog it changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from doorward_server.catalog.load import builtin_text
from tests.contract.test_cli import CommandLine, account_id, issue
from tests.support.server import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import ServerProcess

__all__ = ["account_id"]  # a fixture


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """This module's own server."""
    base = tmp_path_factory.mktemp("catalogs")
    running = start_server(base / "data", base / "scratch")
    yield running
    assert running.stop() == 0


@pytest.fixture
def line(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line in an empty directory, with the built-in catalog in force."""
    for name in list(os.environ):
        if name.startswith(("PG", "DOORWARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOORWARD_ADDRESS", server.address)
    monkeypatch.setenv("DOORWARD_DATA_DIR", str(server.data_dir))
    monkeypatch.chdir(tmp_path)
    line = CommandLine()
    line.done("catalog", "apply", "-", "--force", given=builtin_text())
    return line


def without_job_admin(tmp_path: Path) -> str:
    """The name of a file with the built-in catalog but for one set."""
    head, found, rest = builtin_text().partition("[permission_sets.job_admin]")
    tail = rest[rest.index("\n[") + 1 :]
    text = (head + tail).replace('"job_admin", ', "").replace('"2026.11.1"', '"without"')
    assert found
    (tmp_path / "next.toml").write_bytes(text.encode())
    return "next.toml"


def version_of(line: CommandLine) -> int:
    return int(line.answer("catalog", "show")["catalog_version"])


def test_the_catalog_in_force_does_not_differ_from_itself(line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "same.toml").write_text(line.done("catalog", "show", "--toml"))

    said = line.done("catalog", "diff", "same.toml")

    assert said.splitlines()[1:] == ["No check would be decided otherwise."]


def test_a_catalog_is_looked_at_and_applied(line: CommandLine, account_id: str, tmp_path: Path) -> None:
    token = issue(line, account_id)["token"]["token_id"]
    file, version = without_job_admin(tmp_path), version_of(line)

    said = line.done("catalog", "diff", file, "--tokens")
    told = line.answer("catalog", "diff", file)

    rows = {row.split()[0]: row.split() for row in said.splitlines() if row}
    assert rows["job_admin"][1] == "removed"
    assert rows["job_admin"][-1] == "1"
    assert rows["team"][:2] == ["team", "changed"]
    assert rows[account_id][1] == token
    assert "needs --force" in said
    assert f"doorward catalog apply {file} --expected-version {version}" in said
    assert (told["needs_force"], told["token_changes"]) == (True, [])

    refused = line.run("catalog", "apply", file, "--expected-version", str(version))
    checked = line.done("catalog", "apply", file, "--force", "--validate-only")
    applied = line.done("catalog", "apply", file, "--force", "--expected-version", str(version))
    late = line.run("catalog", "apply", file, "--force", "--expected-version", str(version))

    assert (refused.code, "CATALOG_IN_USE" in refused.err, "job_admin" in refused.err) == (2, True, True)
    assert f"version {version + 1}, labelled without, would be in force" in checked
    assert f"version {version + 1}, labelled without, is in force" in applied
    assert "True everywhere" in applied
    assert (late.code, "CATALOG_VERSION_MISMATCH" in late.err) == (2, True)
    assert "(suspended)" in line.done("token", "show", token)
    assert version_of(line) == version + 1


def test_the_text_is_kept_with_its_line_ends(line: CommandLine, tmp_path: Path) -> None:
    text = builtin_text().replace("\n", "\r\n") + "# Ünïcode\r\n"
    (tmp_path / "crlf.toml").write_bytes(text.encode())

    line.done("catalog", "apply", "crlf.toml")

    assert line.answer("catalog", "show")["catalog"] == text


def test_every_fault_of_a_file_is_told(line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("schema = 2\n[plans.team]\ntitle = 1\n")

    for command in ("diff", "apply"):
        ended = line.run("catalog", command, "bad.toml")
        assert ended.code == 2
        for place in ("catalog.schema", "catalog.version", "catalog.plans.team.title", "catalog.permission_sets"):
            assert place in ended.err


@pytest.mark.parametrize("name", ["nowhere.toml", "binary.toml", "long.toml"])
def test_a_file_that_cannot_be_one_is_refused_here(line: CommandLine, tmp_path: Path, name: str) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.toml").write_bytes(b"#" * (3 * 1024 * 1024))

    ended = line.run("catalog", "apply", name)

    assert (ended.code, name in ended.err) == (2, True)
