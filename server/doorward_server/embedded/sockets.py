"""The short private directory of PostgreSQL's Unix socket: made, recorded in DIR/postgres.socket, removed.

A socket's whole path must fit 108 bytes (104 on macOS) and DIR's may be of any length, so it lives where paths are
short. Promises mode 0700, a name nobody could take beforehand, that what a killed server left is cleared by the next
one, and that a later start listens at the same path while it is to be had: whoever joined by DIR/database.url finds the
database again. Called by `postgres.py`. Design section 6.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from doorward_server.embedded.errors import EmbeddedUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doorward_server.embedded.directory import DataDirectory
    from doorward_server.embedded.identity import Identity

RECORD: Final = "postgres.socket"
PREFIX: Final = "doorward-"
# 104 bytes with the final zero, less "/doorward-xxxxxxxx" and "/.s.PGSQL.5432.lock".
_LONGEST_PARENT: Final = 104 - 1 - 18 - 19


class SocketDirectory:
    """Where the socket is; the app's URL and PostgreSQL's listener meet here."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._owners = {os.geteuid()}

    @property
    def path(self) -> Path:
        """The directory, once it is made."""
        if self._path is None:
            raise EmbeddedUnavailable("the embedded PostgreSQL is not started, so it has no address")
        return self._path

    def recorded(self) -> Path | None:
        """The directory of the last start, if DIR is the one that recorded it, and not a copy of it."""
        path, _, mark = (self._directory.read(RECORD) or "").partition("\n")
        return Path(path) if path and mark == self._mark() else None

    def make(self, identity: Identity) -> None:
        """A directory for `identity` to listen in: the last one again, or else a new one. Raises: EmbeddedUnavailable.

        What was left in the last one is removed, so nothing of ours may be listening there any more.
        """
        if identity.mode == "user":
            self._owners.add(identity.uid)
        parents = list(_parents(identity))
        if (last := self.recorded()) is not None:
            _clear(last, self._owners)
            if last.parent in parents and _made(last):
                self._hand_over(last, identity)
                return
        refused: list[str] = []
        for parent in parents:
            try:
                made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            except OSError as error:
                refused.append(f"{parent}: {error.strerror}")
                continue
            # Before it is handed on: whatever ends us from here, the next start finds it.
            self._directory.write(RECORD, f"{made}\n{self._mark()}\n")
            self._hand_over(made, identity)
            return
        raise EmbeddedUnavailable(
            f"no place for PostgreSQL's socket: {'; '.join(refused) or 'every candidate has too long a path'}; "
            "make /tmp writable, or name another server with --database-url"
        )

    def remove(self) -> None:
        """Removes the directory; its name stays recorded. A repeat does nothing."""
        path, self._path = self._path, None
        if path is not None:
            _clear(path, self._owners)

    def _hand_over(self, path: Path, identity: Identity) -> None:
        self._path = path
        if identity.mode == "user":
            os.chown(path, identity.uid, identity.gid)

    def _mark(self) -> str:
        """Which directory DIR is: a copy of it must not touch the socket of the original."""
        found = self._directory.path.stat()
        return f"{found.st_dev}:{found.st_ino}"


def _parents(identity: Identity) -> Iterator[Path]:
    """Places for it, best first: the user's own runtime directory, the system's, and those where anybody may write."""
    candidates = [Path("/run"), Path(os.environ.get("TMPDIR", "/tmp")), Path("/tmp")]  # noqa: S108 - mkdtemp, 0700
    if identity.mode != "user" and (own := os.environ.get("XDG_RUNTIME_DIR")):
        candidates.insert(0, Path(own))
    for path in candidates:
        # PostgreSQL reads the name as a list with quotes, so only plain ones.
        plain = re.fullmatch(r"/[A-Za-z0-9/._-]*", str(path)) is not None
        short = len(os.fsencode(path)) <= _LONGEST_PARENT
        if plain and short and os.access(path, os.W_OK | os.X_OK) and _is_safe(path.stat()):
            yield path


def _is_safe(parent: os.stat_result) -> bool:
    """Whether nobody else may rename or remove what we make there."""
    ours = parent.st_uid in (os.geteuid(), 0) and not parent.st_mode & 0o022
    return ours or bool(parent.st_mode & stat.S_ISVTX)


def _made(path: Path) -> bool:
    """Makes it, unless somebody has the name now."""
    try:
        path.mkdir(mode=0o700)
    except OSError:
        return False
    return True


def _clear(path: Path, owners: set[int]) -> None:
    """Removes a directory of ours with the sockets in it; what somebody put in its place, or into it, stays."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid in owners:
            for entry in path.glob(".s.PGSQL.*"):
                entry.unlink()
            with contextlib.suppress(OSError):  # not empty: it can't be made again, and another is taken
                path.rmdir()
