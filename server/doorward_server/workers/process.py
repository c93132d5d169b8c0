"""One worker as its parent knows it: spawned, heard, reaped (design section 9).

A new interpreter runs `worker.py`; nothing is forked, so it shares no memory, key or lock with anybody. What it says comes
over one end of a socket pair, a line each; what it said before it died is heard, however it died. Called by `parent.py`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from asyncio.subprocess import DEVNULL
from collections import deque
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import SecretStr

if TYPE_CHECKING:
    import signal
    from asyncio.subprocess import Process

    from doorward_server.replica.timing import Signal
    from doorward_server.settings import Settings

__all__ = ["WorkerProcess", "first_line"]

log = structlog.get_logger()

ENTRY: Final = "doorward_server.workers.worker"
NOT_STARTED: Final = -1
# The answer to a worker that says that it counts sub-leases. One byte, so that it never comes in halves.
HEARD: Final = b"!"
# A process registers anew when its row is lost; of all that it named, the newest can be in anybody's way.
REMEMBERED_ROWS: Final = 1000


def first_line(settings: Settings, url: str, address: str) -> bytes:
    """What a worker is told first: the settings, with what the parent found in place of what it was asked for."""
    found = {"listen": address, "database_url": url, "pepper_file": settings.pepper_path}
    values = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in {**settings.model_dump(), **found}.items()
    }
    return json.dumps(values, default=str).encode() + b"\n"


class WorkerProcess(asyncio.Protocol):
    """One process. `moved` is woken whenever anything of it changed."""

    def __init__(self, number: int, moved: Signal) -> None:
        self.number = number
        self.replica_ids: deque[str] = deque(maxlen=REMEMBERED_ROWS)
        # Its last word: whether watchers may decide under sub-leases of it, also when it is dead.
        self.counts_sub_leases = False
        # The exit status, once it is reaped and everything that it said was heard.
        self.status: int | None = None
        self._moved = moved
        self._serves = False
        self._is_silent = False
        self._unread = b""
        self._process: Process | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def is_up(self) -> bool:
        """Whether it answers calls: it said so, and has not ended."""
        return self._serves and self.status is None

    async def start(self, told: bytes) -> None:
        """Begins it; if the system refuses, it has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    ENTRY,
                    str(theirs.fileno()),
                    str(self.number),
                    stdin=DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # Ctrl-C in a terminal is for the parent, which ends them in order.
                    start_new_session=True,
                )
            except OSError as error:
                log.error("worker_not_started", worker=self.number, error=error.strerror)
                ours.close()
                self.status = NOT_STARTED
                return
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        self._transport.write(told)
        log.info("worker_started", worker=self.number, process=self._process.pid)

    async def ended(self) -> None:
        """Returns when it is reaped: from then on it answers nobody, and `replica_ids` is all that it ever named."""
        if self._process is None:
            return
        status = await self._process.wait()
        # Nobody else has its end of the channel, so the rest of what it said comes, and then the end.
        await self._moved.until(lambda: self._is_silent)
        self.status = status
        log.info("worker_ended", worker=self.number, process=self._process.pid, status=status)
        self._moved.wake()

    def signal(self, number: signal.Signals) -> None:
        """Sends it, unless the process was reaped."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def data_received(self, data: bytes) -> None:
        """Heard at once, in the order in which it was said."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "registering":
                self.replica_ids.append(rest)
            elif word == "counting":
                self.counts_sub_leases = rest != "none"
                if self.counts_sub_leases and self._transport is not None:
                    # It grants none before this.
                    self._transport.write(HEARD)
            elif word == "serving":
                self._serves = True
                log.info("worker_serves", worker=self.number)
            # Any other word is that of a newer version, which an upgrade put in place under this parent.
        self._moved.wake()

    def connection_lost(self, _exc: Exception | None) -> None:
        """It has said everything."""
        self._is_silent = True
        self._moved.wake()
