"""One worker: the process of one replica that shares its port with others of the same parent (design section 9).

`python -m doorward_server.workers.worker DESCRIPTOR NUMBER`, run by `process.py` alone. DESCRIPTOR is its end of a socket
pair: the settings come over it, so that no password stands in a process list, and the parent is told over it what it must
know of a process that may die at any moment. Its end of file says that the parent is gone; then this process stops, too.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

from doorward_server import telemetry
from doorward_server.app import App
from doorward_server.errors import Unavailable
from doorward_server.settings import Listen, Settings
from doorward_server.start import exit_status

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

__all__ = ["main"]

log = structlog.get_logger()

CHUNK: Final = 64 * 1024
# What the parent says when it has taken note that sub-leases are counted here (`process.py`): one byte, never torn.
HEARD: Final = b"!"


class _Parent:
    """The parent, as its worker sees it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def settings(self) -> Settings | None:
        """The line of JSON that comes first; None: the parent is gone already."""
        received = bytearray()
        while not received.endswith(b"\n"):
            chunk = self._channel.recv(CHUNK)
            if not chunk:
                return None
            received += chunk
        self._channel.setblocking(False)
        return Settings(**json.loads(received))

    def registering(self, replica_id: str) -> None:
        """Tells of a row before it is made. What the kernel took reaches the parent, also when this process dies at once.

        Raises:
            Unavailable: SHUTTING_DOWN, the parent is gone or does not listen: nobody would delete the row.
        """
        if not self._tell(f"registering {replica_id}"):
            raise Unavailable("SHUTTING_DOWN", "the parent of this worker is gone")

    def counting(self, some: bool) -> bool:
        """Tells whether watchers' sub-leases are counted here, and returns whether that went out.

        That some are, it answers (`hears_for`). Not told, nobody answers, and none is granted.
        """
        return self._tell("counting some" if some else "counting none")

    def serving(self) -> None:
        """Tells that calls are answered from now on."""
        self._tell("serving")

    def hears_for(self, app: App) -> None:
        """Hands what the parent says to `app`, and stops it as soon as the parent's end closes, for whatever reason."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            try:
                received = self._channel.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                received = b""
            # It says one word, and only in answer.
            for _ in range(received.count(HEARD)):
                app.counting_heard()
            if not received:
                loop.remove_reader(self._channel)
                log.warning("parent_gone")
                app.stop()

        loop.add_reader(self._channel, look)

    def _tell(self, line: str) -> bool:
        try:
            # So short a line is taken whole or not at all.
            self._channel.send(f"{line}\n".encode())
        except OSError as error:
            log.warning("parent_not_told", what=line.partition(" ")[0], error=type(error).__name__)
            return False
        return True


def main(arguments: Sequence[str]) -> int:
    """Serves until SIGTERM, or until the parent is gone; the exit status."""
    descriptor, number = arguments
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    parent = _Parent(channel)
    settings = parent.settings()
    if settings is None:
        return 0
    telemetry.configure(settings.log_level, settings.log_format)
    _number_logs(int(number))
    return exit_status(_serve(_with_own_page(settings, int(number)), parent))


def _with_own_page(settings: Settings, number: int) -> Settings:
    """Metrics are of one process: each worker has the port behind its neighbour's, or any (0) if that was asked for."""
    if settings.http is None or Listen(settings.http).port == 0:
        return settings
    host, _, port = settings.http.rpartition(":")
    return settings.model_copy(update={"http": f"{host}:{int(port) + number - 1}"})


async def _serve(settings: Settings, parent: _Parent) -> None:
    app = App(settings, shares_port=True, on_registering=parent.registering, on_counting=parent.counting)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, app.stop)
    parent.hears_for(app)
    await app.run(lambda _address, _embedded: parent.serving())


def _number_logs(number: int) -> None:
    """Every event says which worker it is of, in whatever thread it happened."""

    def numbered(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["worker"] = number
        return event

    structlog.configure(processors=[numbered, *structlog.get_config()["processors"]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
