"""The data directory DIR: ours alone (0700), one server at a time (`DIR/lock`), small files written whole or not at all.

Promises that a lock never outlives its holder (flock ends with the process, whatever the file says), that no mode is
widened, and that a directory which is not Doorward's is left as it is. Called by `postgres.py`. Design section 6.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from doorward_server.embedded.errors import EmbeddedUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# PostgreSQL's MAXPGPATH is 1024 with its own file names in it.
LONGEST_PATH: Final = 900
LOCK: Final = "lock"
URL_FILE: Final = "database.url"
# A start writes some 20 MB of WAL and log at most; less than this is worth a word in an error.
_LITTLE_SPACE: Final = 64 * 1024 * 1024


class DataDirectory:
    """DIR and the lock on it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    def claim(self) -> None:
        """Makes DIR where there is none, and takes its lock.

        Raises: EmbeddedUnavailable: it can't be made or written, belongs to somebody else, is in use by a server (its
        process id is named), or is a directory of other things.
        """
        self._require_usable_name()
        with self.named_failure():
            # A mode of the parents is the umask's business; DIR's own is not.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            self._require_private()
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock_for_us(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def release(self) -> None:
        """Gives the lock back; a repeat does nothing. The file stays: removing it would race with who opens it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, name: str) -> str | None:
        """The text of a small file, None where there is none."""
        with self.named_failure():
            try:
                return (self.path / name).read_text(encoding="utf-8", errors="surrogateescape").strip()
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        """Replaces a small file, readable for us alone; after a crash the old or the new is there, never half."""
        with self.named_failure():
            write_whole(self.path / name, text)

    def remove(self, name: str) -> None:
        """Removes a small file, if it is there."""
        with self.named_failure():
            (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def named_failure(self, *passed: type[OSError]) -> Iterator[None]:
        """Turns what the file system refuses below DIR into our error, but for what the caller answers itself."""
        try:
            yield
        except passed:
            raise
        except OSError as error:
            raise EmbeddedUnavailable(
                f"the data directory {self.path} can't be used: {error.strerror} ({error.filename or self.path})"
                f"{self.space_left()}; make room or rights there, choose another --data-dir, or name another server "
                "with --database-url"
            ) from error

    def space_left(self) -> str:
        """For an error's sentence: how little space is left, or nothing when there is enough."""
        try:
            room = os.statvfs(self.path)
        except OSError:
            return ""
        free = room.f_bavail * room.f_frsize
        return f" ({free // 1024} kB are left there)" if free < _LITTLE_SPACE else ""

    def _require_usable_name(self) -> None:
        encoded = os.fsencode(self.path)
        if len(encoded) > LONGEST_PATH:
            raise EmbeddedUnavailable(
                f"the data directory's path is {len(encoded)} bytes long and PostgreSQL takes {LONGEST_PATH} "
                f"({str(self.path)[:60]}…); choose a shorter --data-dir, or name another server with --database-url"
            )
        if any(byte < 32 or byte == 127 for byte in encoded):
            raise EmbeddedUnavailable(
                f"the data directory's path {str(self.path)!r} contains a control character, which PostgreSQL's files "
                "can't name; choose another --data-dir, or name another server with --database-url"
            )

    def _require_private(self) -> None:
        """Narrows the mode of a directory that is empty or Doorward's; anything else is not ours to change."""
        found = self.path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise EmbeddedUnavailable(f"{self.path} is no directory; choose another --data-dir")
        if found.st_uid != os.geteuid():
            raise EmbeddedUnavailable(
                f"the data directory {self.path} belongs to uid {found.st_uid} and the server runs as uid "
                f"{os.geteuid()}; run it as its owner, choose another --data-dir, or name another server with "
                "--database-url"
            )
        if found.st_mode & 0o077:
            names = {entry.name for entry in self.path.iterdir()}
            if names - {LOCK} and not {LOCK, URL_FILE} <= names:
                raise EmbeddedUnavailable(
                    f"{self.path} can be read by others (mode {found.st_mode & 0o777:04o}) and holds other things than "
                    "Doorward's; choose an empty or new --data-dir, or make it private with chmod 700"
                )
            self.path.chmod(0o700)

    def _lock_for_us(self, descriptor: int) -> None:
        try:
            with self.named_failure(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise EmbeddedUnavailable(
                f"the data directory {self.path} is in use by the server with process id {holder or 'unknown'}; "
                "stop that one, choose another --data-dir, or join it with "
                f'--database-url "$(cat {self.path / URL_FILE})"'
            ) from None
        with self.named_failure():
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            os.fsync(descriptor)


def write_whole(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Replaces `path` by a file of mode 0600, given to `owner` (uid, gid) if there is one.

    Never follows a link: with an owner the directory is theirs, and what they planted in it is not to be written to.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            if owner is not None:
                os.fchown(descriptor, *owner)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
