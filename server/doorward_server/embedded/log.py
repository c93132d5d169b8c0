"""PostgreSQL's own log, `DIR/postgres.log`: appended to by PostgreSQL itself, kept below a bound by us.

A file and not a pipe, because a full pipe would hold up every backend while this process is frozen; not PostgreSQL's
own collector, because that bounds time, not size. Called by `postgres.py`. Design section 6.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from doorward_server.embedded.programs import last_lines

if TYPE_CHECKING:
    from pathlib import Path

# Two files of this size: days of an ordinary log, and half an hour of a noisy one.
LOG_BYTES: Final = 8 * 1024 * 1024
_TAIL_BYTES: Final = 16 * 1024


class BoundedLog:
    """A log file that somebody else appends to, and its predecessor."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self.path = path
        self._limit = limit
        self._begun = 0

    def open(self) -> int:
        """A descriptor to append with; what is appended from now on is what `tail` looks at."""
        self.bound()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        self._begun = os.fstat(descriptor).st_size
        return descriptor

    def bound(self) -> None:
        """Past the limit, the file becomes the predecessor's content and begins anew.

        Copied and cut, not renamed: PostgreSQL keeps its descriptor and, appending, goes on at the new end. A line
        written between the copy and the cut is lost. What can't be copied (a full disk) is cut all the same.
        """
        try:
            if self.path.stat().st_size <= self._limit:
                return
        except FileNotFoundError:
            return
        previous = self.path.with_name(f"{self.path.name}.1")
        with self.path.open("rb") as current:
            current.seek(-self._limit, os.SEEK_END)
            kept = current.read(self._limit)
        try:
            previous.write_bytes(kept)
            previous.chmod(0o600)
        except OSError:
            previous.unlink(missing_ok=True)
        os.truncate(self.path, 0)
        self._begun = 0

    def tail(self) -> str:
        """The last lines since `open`, for an error's sentence."""
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._begun, end - _TAIL_BYTES))
                return last_lines(file.read())
        except FileNotFoundError:
            return ""
