"""Servers around an embedded PostgreSQL as processes of their own, and under whom and on what disk they live."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE: Final = Path(__file__).parent
IS_ROOT: Final = os.geteuid() == 0

# The other kind of user than the one who runs the tests. In a user namespace an ordinary uid is one in every respect that
# PostgreSQL and we look at, and reaches an interpreter and a checkout that only root may reach.
AS_ROOT: Final = () if IS_ROOT else ("unshare", "--user", "--map-root-user")
AS_ORDINARY: Final = ("unshare", "--user", "--map-user=1", "--map-group=1") if IS_ROOT else ()
AS_UNLISTED: Final = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
REFUSING_NAMESPACES: Final = (sys.executable, str(HERE / "refusing_namespaces.py"))

_MOUNTING: Final = ("unshare", *(() if IS_ROOT else ("--user", "--map-root-user")), "--mount", "sh", "-euc")


def on_disk_of(size: str, directory: Path) -> tuple[str, ...]:
    """A prefix that lives with `directory` as a disk of that size, gone with the process."""
    script = 'mount -t tmpfs -o "size=$1,mode=700" none "$2"; shift 2; exec "$@"'
    return (*_MOUNTING, script, "sh", size, str(directory))


def on_read_only(directory: Path) -> tuple[str, ...]:
    """A prefix that lives with `directory` on a read-only file system."""
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
    return (*_MOUNTING, script, "sh", str(directory))


class Life:
    """One such server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def begin(cls, directory: Path, *, prefix: Sequence[str] = (), once: bool = False) -> Life:
        command = [
            *prefix,
            sys.executable,
            str(HERE / "server_process.py"),
            *(["--once"] if once else []),
            str(directory),
        ]
        return cls(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))

    async def said(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            return (await self.process.stdout.readline()).decode(errors="replace").strip()

    async def url(self) -> str:
        """The URL it is ready with."""
        word, _, rest = (await self.said()).partition(" ")
        assert word == "ready", rest
        return rest

    async def refusal(self) -> str:
        """The sentence with which it did not start."""
        word, _, rest = (await self.said()).partition(" ")
        assert word == "unavailable", rest
        assert await self.ended() == 1
        return rest

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert await self.ended() == 0

    async def ended(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()


async def eventually(condition: Callable[[], bool], *, within_s: float = 30) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what it waits for is in other processes
            await asyncio.sleep(0.01)
