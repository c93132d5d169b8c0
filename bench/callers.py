"""Several calling processes, told together what to call; and how much CPU time of a server each call took.

Used by the parts that measure a server over the network.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench import harness
from bench.told import told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.message import Message

    from bench.harness import Cores, Server
    from bench.told import Told


@dataclass(frozen=True)
class Target:
    """What is called: a method of Authorizer (or `client.check`) at a server, with requests that must be allowed."""

    server: Server
    credential: str
    method: str
    requests: Sequence[Message]
    checks: int = 1  # in each request


@dataclass
class Round:
    """What one round of calls took: CPU time of the server and of the callers for each call, wall time for all, latencies."""

    cpu_us: float
    calls_a_second: float
    latencies_s: list[float] = field(default_factory=list)
    caller_cpu_us: float = 0.0


class Callers:
    """Processes that call the same targets."""

    def __init__(self, processes: list[Told], targets: dict[str, Target]) -> None:
        self._processes = processes
        self._targets = targets

    def round(self, name: str, calls: int, *, window: int) -> Round:
        """Has every process make `calls` calls, `window` of them at once, and reads the server's clock around it.

        Raises:
            RuntimeError: a caller ended, or a check was not allowed: then nothing was measured.
        """
        target = self._targets[name]
        before = harness.cpu_ns(target.server.pid)
        answers = self._tell({"target": name, "calls": calls, "window": window})
        used_ns = harness.cpu_ns(target.server.pid) - before
        total = sum(answer["calls"] for answer in answers)
        allowed = sum(answer["allowed"] for answer in answers)
        if allowed != total * target.checks:
            raise RuntimeError(f"{name}: of {total * target.checks} checks {allowed} were allowed; all should be")
        latencies = [latency for answer in answers for latency in answer["latencies"]]
        callers_us = sum(answer["cpu"] for answer in answers) / total * 1e6
        return Round(
            used_ns / total / 1000, total / max(answer["seconds"] for answer in answers), latencies, callers_us
        )

    def _tell(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        for process in self._processes:
            process.write(order)
        return [process.read() for process in self._processes]


@contextlib.contextmanager
def calling(targets: dict[str, Target], cores: Cores, *, processes: int) -> Iterator[Callers]:
    """Starts `processes` callers and ends them with the block."""
    job = {
        name: {
            "address": target.server.address,
            "credential": target.credential,
            "method": target.method,
            "requests": [request.SerializeToString().hex() for request in target.requests],
        }
        for name, target in targets.items()
    }
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(told(["-m", "bench.caller"], cores.callers)) for _ in range(processes)]
        for process in started:
            process.write(job)
        for process in started:
            process.read()
        yield Callers(started, targets)
