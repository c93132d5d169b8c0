"""One server process as the tests start it: the real `App`, on a clock of the test's, controlled over a socket pair.

`run` is what the nursery forks a process for: config = {"time": …, "settings": {…}, "without": […], "armed": […]}.

Commands and answers are JSON, one a line. Commands: wake, skew, arm, release, status, secret; each is answered under its
`id`. Events: `listening` with the address, and `reached` with a point's name. The process ends when the test's end of the
pair is closed. It is the only place that arms failpoints (design section 7; style.md, Tests).
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doorward.core.secret import generate
from doorward_server import start, telemetry
from doorward_server.app import App
from doorward_server.replica.holding import Holding
from doorward_server.replica.lease_keeper import LeaseKeeper
from doorward_server.replica.tasks import Tasks
from doorward_server.service import new_secrets
from doorward_server.settings import Settings
from tests.cluster.commanded import Commanded, SteppedTiming
from tests.cluster.guards import take_away
from tests.cluster.points import wrap_checks
from tests.cluster.true_time import SkewedClock, TrueTime

if TYPE_CHECKING:
    import socket

    from doorward.core.secret import Secret, SecretKind


class Parts:
    """The parts of the replica in this process, as the app built them."""

    def __init__(self) -> None:
        self.holding: Holding | None = None
        self.keeper: LeaseKeeper | None = None
        self.tasks: Tasks | None = None
        self.secret: Secret | None = None
        self._remember(Holding, "holding")
        self._remember(LeaseKeeper, "keeper")
        self._remember(Tasks, "tasks")
        self._remember_secrets()

    @property
    def all(self) -> tuple[Holding, LeaseKeeper, Tasks]:
        """Raises: ValueError, they are not built yet."""
        if self.holding is None or self.keeper is None or self.tasks is None:
            raise ValueError("the app is not built yet")
        return self.holding, self.keeper, self.tasks

    def _remember(self, part: type, name: str) -> None:
        begin = part.__init__  # type: ignore[misc]

        def remembered(built: object, *arguments: Any, **named: Any) -> None:
            begin(built, *arguments, **named)
            setattr(self, name, built)

        setattr(part, "__init__", remembered)  # noqa: B010

    def _remember_secrets(self) -> None:
        def remembered(kind: SecretKind, subject_id: str) -> Secret:
            self.secret = generate(kind, subject_id)
            return self.secret

        setattr(new_secrets, "generate", remembered)  # noqa: B010


class Control(Commanded):
    """The test's hand in this process."""

    def __init__(self, pair: socket.socket, timing: SteppedTiming) -> None:
        super().__init__(pair, timing)
        self.parts = Parts()
        self.commands |= {"status": self._status, "secret": self._secret}

    def _secret(self) -> str | None:
        return None if self.parts.secret is None else self.parts.secret.reveal()

    def _status(self) -> dict[str, object]:
        holding, keeper, tasks, now_ns = (*self.parts.all, self.timing.now_ns())
        end_ns = holding.lease.capture(now_ns)
        return {
            "applied": holding.applied,
            "generation": holding.history.generation,
            "replica_id": holding.replica_id,
            "is_registered": holding.registration_due is None,
            "lease_left_ms": 0.0 if end_ns is None else (end_ns - now_ns) / 1e6,
            "known_end": holding.known_end,
            "renewals": keeper._answered,
            "renewals_begun": keeper._begun,
            "checks_begun": self.points.checks_begun,
            "barriers_asleep": self.points.barriers_asleep,
            "tasks": len(tasks._running),
            "watchers": holding.watchers.count,
            "counted": holding.watchers.counted(),
            "owing": holding.watchers.owing(),
            "sleepers_ms": sorted((at_ns - now_ns) / 1e6 for at_ns in self.timing.sleepers.values()),
        }


def run(config: dict[str, Any], pair: socket.socket) -> None:
    """Runs the app until SIGTERM."""
    telemetry.configure("debug", "text")
    start.run(_run(config, pair))


async def _run(config: dict[str, Any], pair: socket.socket) -> None:
    clock = SkewedClock(TrueTime(Path(config["time"])))
    timing = SteppedTiming(clock)
    control = Control(pair, timing)
    wrap_checks(control.points)
    for name in config["without"]:
        take_away(name)
    for armed in config["armed"]:
        control.points.arm(**armed)
    app = App(Settings(**config["settings"]), timing=timing)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop)
    commands = asyncio.ensure_future(control.run())
    await app.run(lambda address, _embedded: control.tell(event="listening", address=address))
    commands.cancel()
