"""Runs one program of PostgreSQL's to its end, in an environment that only names what such a program needs.

Promises that no `PG…` variable of ours reaches it, nor any secret in our environment, that it never outlives the wait
for it, and that what it said comes back bounded. Called by `identity.py` and `cluster.py`. Design section 6.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from typing import Final

# What the loader and the C library look at. Everything else (PGDATA, PGOPTIONS, LC_ALL, our own DOORWARD_…) stays out.
_PASSED_ON: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
_LAST_LINES: Final = 5
_LINE_LENGTH: Final = 500


def program_environ() -> dict[str, str]:
    """The environment of PostgreSQL's programs: English messages, UTC, and nothing that steers them."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed, "LC_ALL": "C", "TZ": "UTC"}


async def run_program(command: list[str], *, text: str = "") -> tuple[int, str]:
    """Runs it with `text` as its input; its exit status and the last lines of what it said."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE if text else DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        env=program_environ(),
        cwd="/",
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate(text.encode() or None)
        return await process.wait(), last_lines(output)
    except asyncio.CancelledError:
        _kill_session(process.pid)
        await process.wait()
        raise


def _kill_session(leader: int) -> None:
    """Ends a program with the children that it has, such as initdb's `postgres`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def last_lines(output: bytes) -> str:
    """The end of what a program said, as one line that fits an error's sentence."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(line[:_LINE_LENGTH] for line in lines[-_LAST_LINES:])
