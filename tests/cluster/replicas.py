"""One replica process in a test's hand: its database line, its clock, its failpoints, its life and death, and a client of it.

A `Replica` is one process; another one in its place is another `Replica`. All waits are bounded and for conditions.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.cluster.controlled import Controlled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.cluster.clients import Client
    from tests.cluster.lines import Line
    from tests.cluster.nursery import Nursery

__all__ = ["Replica", "Start", "Status"]


@dataclass(frozen=True)
class Status:
    """What a process says of itself."""

    applied: int
    generation: int
    replica_id: str | None
    is_registered: bool
    lease_left_ms: float
    known_end: int
    renewals: int
    renewals_begun: int
    checks_begun: int
    barriers_asleep: int
    tasks: int
    # Open sessions of watchers; those, open or ended, whose sub-lease is counted; of these, those that owe something.
    watchers: int
    counted: int
    owing: int
    sleepers_ms: tuple[float, ...]


@dataclass(frozen=True)
class Start:
    """How a process is started. `settings` are the server's; `without` names rules to take away (`guards.py`)."""

    time_file: Path
    settings: Mapping[str, object]
    hold_ms: int
    without: Sequence[str] = ()
    armed: Sequence[Mapping[str, object]] = field(default_factory=tuple)


class Replica(Controlled):
    """A running process."""

    def __init__(self, name: str, start: Start, line: Line, directory: Path, nursery: Nursery) -> None:
        """Starts it; `await_ready` returns when it serves."""
        self.start = start
        self.line = line
        self._client: Client | None = None
        ours, theirs = socket.socketpair()
        settings = {
            "listen": "127.0.0.1:0",
            "data_dir": str(directory / name),
            "database_url": line.url,
            "hold": start.hold_ms / 1000,
            **start.settings,
        }
        config = {
            "time": str(start.time_file),
            "settings": settings,
            "without": list(start.without),
            "armed": list(start.armed),
        }
        path = directory / f"{name}.log"
        with theirs, path.open("ab") as log:
            process = nursery.fork(config, theirs, log.fileno())
        super().__init__(name, process, ours, path)

    @property
    def client(self) -> Client:
        """A client of it, once it is ready."""
        assert self._client is not None, f"{self.name} is not ready"
        return self._client

    @client.setter
    def client(self, client: Client) -> None:
        self._client = client

    @property
    def is_ready(self) -> bool:
        """Whether it has a client."""
        return self._client is not None

    def await_ready(self) -> str:
        """Its address, once it takes calls."""
        address = self.pipe.await_address()
        assert address is not None, f"{self.name} did not start:\n{self.log.read_text()[-4000:]}"
        return address

    # ---- what it says

    def status(self) -> Status:
        """What it says of itself now."""
        told = self.pipe.answer(self.pipe.send("status"))
        return Status(**{**told, "sleepers_ms": tuple(told["sleepers_ms"])})

    def last_secret(self) -> str:
        """The secret that it made last, whether its caller has it yet or not."""
        secret = self.pipe.answer(self.pipe.send("secret"))
        assert isinstance(secret, str)
        return secret

    def close(self) -> None:
        """Ends the process, if it is still there, and what belongs to it."""
        self.end()
        self.line.close()
        if self._client is not None:
            self._client.close()
