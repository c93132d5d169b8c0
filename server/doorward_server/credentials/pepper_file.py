"""How the pepper file is read and replaced: whole or not at all, and for its owner's eyes alone (design section 4).

A kill at any moment leaves the former file or the new one; what it leaves beside it is cleared away by the next edit.
Two edits at once never lose a key: the second is refused. Knows nothing of what the lines mean; `pepper.py` does, and
is the only caller. Nothing here keeps a line of the file where a traceback that shows local variables would find it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_FILE_BYTES", "Content", "PepperInvalid", "create", "read", "replace"]

# Room for some 200 keys; a file that was named by mistake is not read into memory.
MAX_FILE_BYTES: Final = 16 * 1024

_READABLE_BY_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_DRAFT_ATTEMPTS: Final = 5
_BUSY: Final = "another process is changing this file; try again when it is done"


class PepperInvalid(Exception):
    """The pepper file cannot be used, or not be changed as asked. The text names file, line and what would be right."""

    def __init__(self, path: Path, problem: str, line: int | None = None) -> None:
        super().__init__(f"{path}:{line}: {problem}" if line else f"{path}: {problem}")
        self.path = path
        self.problem = problem
        self.line = line


@dataclass(frozen=True, slots=True)
class Content:
    """The lines of a file of keys, without line ends; printing it shows none."""

    lines: tuple[str, ...] = field(repr=False)

    def encoded(self) -> bytes:
        """The bytes of the whole file."""
        return "".join(f"{line}\n" for line in self.lines).encode("latin-1")


def read(path: Path) -> Content:
    """The file's lines.

    Raises:
        PepperInvalid: there is none, it cannot be read, is no plain file, is longer than `MAX_FILE_BYTES`, or others
            than its owner may read it.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unusable(path, "read", error) from None
    try:
        # Of the open file, not of the name: what is checked is what is read.
        problem = _problem_of(os.fstat(descriptor))
        if problem:
            raise PepperInvalid(path, problem)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # Latin-1, because it gives back whatever bytes a comment has.
            return Content(tuple(line.decode("latin-1") for line in file.read(MAX_FILE_BYTES).splitlines()))
    except OSError as error:
        raise _unusable(path, "read", error) from None
    finally:
        os.close(descriptor)


def create(path: Path, content: Content) -> None:
    """Makes the file, mode 0600, durable when this returns.

    Raises:
        PepperInvalid: it exists (it is left alone), another process is making it, or it cannot be written.
    """
    with _draft(path) as draft:
        _write(draft.descriptor, content)
        try:
            # A link, not a rename: it never replaces what is there.
            os.link(draft.path, path)
        except FileExistsError:
            raise PepperInvalid(path, "exists already and is left alone; digests may depend on its keys") from None
        _sync_directory(path)


def replace(path: Path, change: Callable[[Content], Content]) -> None:
    """Puts what `change` makes of the file in its place, for the same owner, durable when this returns.

    Raises:
        PepperInvalid: it cannot be read or written, another process is changing it, or `change` refused.
    """
    path = Path(os.path.realpath(path))  # a rename onto a symbolic link would leave the file behind it as it was
    with _draft(path) as draft:
        changed = change(read(path))  # under the draft's lock, so that no other edit is lost
        if len(changed.encoded()) > MAX_FILE_BYTES:
            raise PepperInvalid(
                path, f"would be longer than {MAX_FILE_BYTES} bytes; retire keys that nothing depends on"
            )
        _give_to_owner_of(path, draft.descriptor)
        _write(draft.descriptor, changed)
        draft.path.rename(path)
        _sync_directory(path)


@dataclass(frozen=True, slots=True)
class _Draft:
    path: Path
    descriptor: int


@contextmanager
def _draft(path: Path) -> Iterator[_Draft]:
    """An empty file beside `path`, locked for this process; what a killed process left there is cleared away first."""
    draft_path = path.with_name(f".{path.name}.draft")
    try:
        descriptor = _open_draft(draft_path)
        if descriptor is None:
            raise PepperInvalid(path, _BUSY)
        try:
            yield _Draft(draft_path, descriptor)
        finally:
            if _is_at(descriptor, draft_path):  # no longer so after a rename: then the name may be another process's
                draft_path.unlink()
            os.close(descriptor)
    except OSError as error:
        raise _unusable(path, "written", error) from None


def _open_draft(path: Path) -> int | None:
    """A new file, locked; None when another process holds it. A lock ends with its process, however that ends."""
    for _ in range(_DRAFT_ATTEMPTS):
        is_new = True
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            is_new = False
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        if _is_at(descriptor, path):
            if is_new:
                return descriptor
            # Left by a process that is gone. Removed, never written over: after a kill between link and unlink it is
            # the pepper file itself by another name.
            path.unlink()
        os.close(descriptor)
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _give_to_owner_of(path: Path, descriptor: int) -> None:
    """So that an edit by root does not lock the server's own user out."""
    former, new = path.stat(), os.fstat(descriptor)
    if (former.st_uid, former.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(descriptor, former.st_uid, former.st_gid)


def _write(descriptor: int, content: Content) -> None:
    os.fchmod(descriptor, 0o600)  # whatever the umask took away
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(content.encoded())
    os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _problem_of(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "is no plain file; name the pepper file itself"
    if status.st_mode & _READABLE_BY_OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        return f"has mode {mode:04o}, so others than its owner may use it; take that away with chmod 600"
    if status.st_size > MAX_FILE_BYTES:
        return f"has {status.st_size} bytes; a pepper file has at most {MAX_FILE_BYTES}"
    return None


def _unusable(path: Path, done: str, error: OSError) -> PepperInvalid:
    if isinstance(error, FileNotFoundError):
        if not path.parent.is_dir():
            return PepperInvalid(path, f"there is no directory {path.parent}; name one that exists")
        return PepperInvalid(
            path, "does not exist; name the pepper file that this deployment's digests were made under"
        )
    return PepperInvalid(path, f"cannot be {done}: {error.strerror}")
