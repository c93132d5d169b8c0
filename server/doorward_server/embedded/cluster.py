"""The cluster's files: where they are, how they come to be, whose version they are, and who may connect.

Promises that a cluster is there whole or not at all (it is made beside its place and renamed into it, so a killed first
start leaves nothing that counts), that it is never made anew where one should be, and that only the server's own user
may connect. Called by `postgres.py` under the lock of the data directory. Design section 6.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from doorward_server.embedded.directory import DataDirectory, write_whole
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.leftovers import ABANDONED, end_processes
from doorward_server.embedded.programs import run_program

if TYPE_CHECKING:
    from doorward_server.embedded.binaries import Binaries
    from doorward_server.embedded.identity import Identity

ROLE: Final = "doorward"
DATABASE: Final = "doorward"
CLUSTER: Final = "postgres"
LOCATION: Final = "postgres.location"
UNFINISHED_LOCATION: Final = "postgres.location.new"
# Where clusters of another user are: DIR is root's and 0700, so it can't be below it.
SHARED_HOME: Final = Path("/var/lib/doorward")
_UNFINISHED: Final = f"{CLUSTER}.new-"

_ACCESS: Final = f"""\
# Written by Doorward at every start.
local all         {ROLE} peer map={ROLE}
local replication {ROLE} peer map={ROLE}
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The files of one cluster, `home/postgres`, and by what and as whom they are used."""

    home: Path
    binaries: Binaries
    identity: Identity

    @property
    def path(self) -> Path:
        """PostgreSQL's data directory."""
        return self.home / CLUSTER

    async def prepare(self, directory: DataDirectory, major: int) -> None:
        """Makes the cluster if there is none, and refuses one of another version."""
        with directory.named_failure():
            await self._clear_unfinished()
        if not self.path.exists():
            await self._initialise(directory)
        with directory.named_failure():
            self._require_version(major)

    def admit(self, directory: DataDirectory) -> None:
        """Says anew who may connect: only whoever runs this server, by whatever name it goes this time."""
        with directory.named_failure():
            owner = (self.identity.uid, self.identity.gid) if self.identity.mode == "user" else None
            write_whole(self.path / "pg_hba.conf", _ACCESS, owner)
            write_whole(self.path / "pg_ident.conf", f'{ROLE} "{self.identity.peer_name}" {ROLE}\n', owner)

    async def _clear_unfinished(self) -> None:
        """Removes what a first start left that was killed; the lock is ours, so nobody else is at it."""
        for unfinished in self.home.glob(f"{_UNFINISHED}*"):
            await end_processes(unfinished, None, ABANDONED)
            await asyncio.to_thread(shutil.rmtree, unfinished)

    async def _initialise(self, directory: DataDirectory) -> None:
        """Makes it beside its place, with the database in it, and moves it there once it is whole and on disk."""
        new = self.home / f"{_UNFINISHED}{secrets.token_hex(4)}"
        try:
            with directory.named_failure():
                new.mkdir(mode=0o700)
                if self.identity.mode == "user":
                    os.chown(new, self.identity.uid, self.identity.gid)
            await self._run(directory, self.binaries.initdb, f"--pgdata={new}", f"--username={ROLE}",
                            "--encoding=UTF8", "--locale=C", "--data-checksums", "--auth=peer", "--no-instructions")  # fmt: skip
            await self._run(directory, self.binaries.postgres, "--single", "-D", str(new), "-c", "log_checkpoints=off",
                            "-c", "exit_on_error=on", "template1", text=f"CREATE DATABASE {DATABASE}\n")  # fmt: skip
            with directory.named_failure():
                new.rename(self.path)
                _sync_directory(self.home)
        except BaseException:
            await end_processes(new, None, ABANDONED)  # initdb's own child may still be writing
            await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
            raise

    async def _run(self, directory: DataDirectory, program: Path, *arguments: str, text: str = "") -> None:
        status, output = await run_program(self.identity.command(program, *arguments, reach=self.path), text=text)
        if status != 0:
            raise EmbeddedUnavailable(
                f"PostgreSQL's cluster can't be made in {self.home}: {program.name} ended with {status}"
                f"{directory.space_left()}: {output}; mend that, choose another --data-dir, or name another server "
                "with --database-url"
            )

    def _require_version(self, major: int) -> None:
        """Refuses the files of another major version: PostgreSQL can't read them, and we don't convert them."""
        try:
            found = (self.path / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            found = "none (PG_VERSION is missing)"
        if found != str(major):
            raise EmbeddedUnavailable(
                f"the cluster {self.path} is of PostgreSQL version {found}, and the programs in "
                f"{self.binaries.directory} are version {major}; point DOORWARD_POSTGRES_BIN at the programs of "
                f"version {found}, move the data with pg_dump and pg_restore or pg_upgrade, choose another --data-dir, "
                "or name another server with --database-url"
            )


def place(directory: DataDirectory, binaries: Binaries, identity: Identity, home: Path | None) -> Cluster:
    """Where the cluster of DIR is or shall be: `home` if it is outside already, else in DIR, or where the user whom
    root becomes can reach it.

    Raises: EmbeddedUnavailable: the cluster is in DIR and out of that user's reach.
    """
    if home is not None:
        return Cluster(home, binaries, identity)
    if identity.mode != "user":
        return Cluster(directory.path, binaries, identity)
    if (directory.path / CLUSTER).exists():
        raise EmbeddedUnavailable(
            f"the cluster {directory.path / CLUSTER} was made in a user namespace, which is refused now, and "
            "PostgreSQL does not run as root; allow user namespaces again, run the server as an ordinary user that "
            "owns the directory, or name another server with --database-url"
        )
    _forget_unfinished(directory)
    home = SHARED_HOME / secrets.token_hex(8)
    # First the note, then the directory: what a killed first start made can be found and removed.
    directory.write(UNFINISHED_LOCATION, str(home))
    with directory.named_failure():
        if not SHARED_HOME.exists():
            _make_passable(SHARED_HOME)
        _make_passable(home)
    return Cluster(home, binaries, identity)


def find_home(directory: DataDirectory) -> Path | None:
    """Where DIR says that its cluster is, None when it is in DIR or not yet anywhere.

    Raises: EmbeddedUnavailable: it is not where DIR says. To begin anew there would be to lose it in silence.
    """
    location = directory.read(LOCATION)
    if location is None:
        return None
    if not (Path(location) / CLUSTER).is_dir():
        raise EmbeddedUnavailable(
            f"{directory.path / LOCATION} says that the cluster is in {location}, and it is not there; bring it back, "
            "choose another --data-dir, or name another server with --database-url"
        )
    return Path(location)


def settle(directory: DataDirectory, cluster: Cluster) -> None:
    """Makes the note of a cluster outside of DIR final, now that the cluster is whole."""
    if cluster.identity.mode == "user" and directory.read(LOCATION) is None:
        directory.write(LOCATION, str(cluster.home))
        directory.remove(UNFINISHED_LOCATION)


def _forget_unfinished(directory: DataDirectory) -> None:
    unfinished = directory.read(UNFINISHED_LOCATION)
    if unfinished is not None and Path(unfinished).parent == SHARED_HOME:
        with directory.named_failure():
            if Path(unfinished).exists():
                shutil.rmtree(unfinished)


def _make_passable(path: Path) -> None:
    """Makes a directory that others may pass through, and neither list nor write, whatever the umask."""
    path.mkdir(parents=True)
    path.chmod(0o711)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
