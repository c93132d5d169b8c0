"""The last thing that runs before a PostgreSQL program: becomes who it shall be, then is replaced by the program.

A file of its own, run with `python -I -S`, because unshare(2) needs a process of one thread and prctl(2) one that only
lives for this; a `preexec_fn` in the server would run Python after a fork of many threads. Promises that the program
ends with the process that started it (Linux: the kernel sends it a signal), and that a path which the new identity
can't reach is named. `identity.py` builds its command line. Design section 6.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

NAMESPACE_REFUSED = 121
UNREACHABLE = 122
BECOMING_REFUSED = 123
ORPHANED = 124

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Runs `mode uid gid parent signal reach program argument…`; returns only by exec or exit."""
    mode, uid, gid, parent, death_signal, reach, *program = arguments
    if mode == "namespace":
        _enter_namespace(int(uid), int(gid))
    elif mode == "user":
        _become(int(uid), int(gid))
    # After the change of identity, which would clear it, and before the exec, which keeps it.
    _end_with(int(parent), int(death_signal))
    for path in filter(None, (program[0], reach)):
        _require_reachable(path)
    try:
        os.execv(program[0], program)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        _fail(UNREACHABLE, f"{program[0]} can't be run ({error.strerror})")


def _enter_namespace(uid: int, gid: int) -> None:
    """Makes this process uid:gid in a user namespace of its own, and who it was outside of it."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        # Of namespaces, not of a disk.
        cause = "none are left (user.max_user_namespaces)" if number == errno.ENOSPC else os.strerror(number)
        _fail(NAMESPACE_REFUSED, f"unshare: {cause}")
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {outer_uid} 1")
        _write("/proc/self/gid_map", f"{gid} {outer_gid} 1")
    except OSError as error:
        _fail(NAMESPACE_REFUSED, f"{error.filename}: {error.strerror}")


def _become(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        _fail(BECOMING_REFUSED, f"setuid to {uid}: {error.strerror}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def _end_with(parent: int, death_signal: int) -> None:
    """Has the kernel send `death_signal` when the thread that started us ends; where it can't, the next start does."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(ORPHANED)


def _require_reachable(path: str) -> None:
    """Exits naming the first directory on the way to `path` that this identity can't pass."""
    passed = ""
    for part in path.split("/")[1:-1]:
        passed = f"{passed}/{part}"
        if not os.access(passed, os.X_OK):
            _fail(UNREACHABLE, f"{path} is out of reach: {passed} can't be passed")


def _fail(status: int, sentence: str) -> None:
    sys.stderr.buffer.write(os.fsencode(sentence) + b"\n")
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
