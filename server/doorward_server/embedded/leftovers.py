"""PostgreSQL processes that outlived the server which started them: found, ended when ours, named when not.

A cluster must never have two postmasters. One of ours normally ends with us (`launcher.py`); this is for the rest: a
postmaster killed with -9 whose children linger, a system that can't end it for us, a process id used again. Promises to
send a signal only to a process that is a `postgres` working in that very directory. Called by `cluster.py` and
`postgres.py` under the lock of the data directory. Design section 6.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from doorward_server.embedded.errors import EmbeddedUnavailable

# A fast shutdown ends in a checkpoint, so the polite way gets the longest time.
_Steps = tuple[tuple[signal.Signals, float], ...]
_POLITE: Final[_Steps] = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
# For a cluster that never became one: there is nothing to save.
ABANDONED: Final[_Steps] = ((signal.SIGKILL, 5.0),)
_INTRODUCTION_S: Final = 5.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class PostmasterFile:
    """What `postmaster.pid` says; a process id below zero is that of a single-user `postgres`."""

    pid: int
    socket_directory: str
    ready: bool


def read_postmaster_file(cluster: Path) -> PostmasterFile | None:
    """The postmaster's own word on itself; None where there is none or it is still being written."""
    try:
        lines = (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    if not lines or not lines[0].strip().lstrip("-").isdecimal():
        return None
    lines += [""] * (8 - len(lines))
    return PostmasterFile(int(lines[0]), lines[4].strip(), ready=lines[7].strip() == "ready")


async def end_leftovers(cluster: Path, socket_directory: Path | None) -> None:
    """Ends what still runs in `cluster`, if its postmaster listens in the `socket_directory` that we recorded.

    Raises: EmbeddedUnavailable: somebody else's PostgreSQL works there, or ours does not end.
    """
    recorded = await _introduced(cluster)
    running = find_processes(cluster)
    if recorded is not None and abs(recorded.pid) in running and recorded.socket_directory != str(socket_directory):
        raise EmbeddedUnavailable(
            f"a PostgreSQL that Doorward did not start works in {cluster}: process {abs(recorded.pid)}; end it first, "
            "or choose another --data-dir"
        )
    await end_processes(cluster, recorded.pid if recorded else None)
    # The id in the file may be in use again, by no postgres of ours; PostgreSQL would take it for its own and refuse.
    # Its second guard, the shared memory that belongs to the directory, stands without the file.
    (cluster / "postmaster.pid").unlink(missing_ok=True)


async def _introduced(cluster: Path) -> PostmasterFile | None:
    """The postmaster's word on itself, once it has said where it listens: one that just started has not yet."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_INTRODUCTION_S):
            while (said := read_postmaster_file(cluster)) and not said.socket_directory and said.pid > 0:
                if said.pid not in find_processes(cluster):
                    break
                await asyncio.sleep(_POLL_S)
    return read_postmaster_file(cluster)


async def end_processes(cluster: Path, postmaster: int | None, steps: _Steps = _POLITE) -> None:
    """Ends the `postgres` processes that work in `cluster`, its postmaster first and politely."""
    for number, patience_s in steps:
        running = find_processes(cluster)
        # Children end with their postmaster; without one they have noticed and are on their way.
        for pid in running & {postmaster} if number == signal.SIGINT else running:
            _send(pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while find_processes(cluster):  # noqa: ASYNC110 - the end of a process that is not our child wakes nobody
                    await asyncio.sleep(_POLL_S)
                return
    raise EmbeddedUnavailable(
        f"PostgreSQL processes in {cluster} do not end: {', '.join(map(str, sorted(find_processes(cluster))))}"
    )


def find_processes(cluster: Path) -> set[int]:
    """The ids of the `postgres` processes whose working directory is `cluster`: it is every such process's."""
    try:
        wanted = cluster.stat()
    except FileNotFoundError:
        return set()
    if sys.platform != "linux":
        return _find_postmaster(cluster)
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            working = (entry / "cwd").stat()
            name = (entry / "comm").read_text().strip()
        except OSError:  # it ended meanwhile, is not ours to look at, or a zombie without a directory
            continue
        # A shell that somebody left there is none of ours; a wrapped program's name still contains it.
        if "postgres" in name and (working.st_dev, working.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.add(int(entry.name))
    return found


def _find_postmaster(cluster: Path) -> set[int]:
    """Where there is no /proc: the process of postmaster.pid, if its command line names postgres and this directory."""
    recorded = read_postmaster_file(cluster)
    if recorded is None:
        return set()
    listed = subprocess.run(
        ["ps", "-p", str(abs(recorded.pid)), "-o", "command="], capture_output=True, text=True, check=False
    ).stdout
    return {abs(recorded.pid)} if "postgres" in listed and str(cluster) in listed else set()


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
