"""What runs underneath: grpcio's versions, its event engine, asyncio's event loops; an empty handler and Check on each.

`make bench ARGS="runtimes --python /path/to/venv/bin/python --python …"`: each interpreter needs Doorward (or PYTHONPATH that
leads to client/ and server/), and uvloop, which it is measured with and without. What cannot be started is named and left
out. Not among the parts that run when none is named.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import harness, rows
from bench.callers import Target, calling
from bench.check import CALLERS, TOKENS, WINDOW, check_requests
from bench.report import Table, undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.harness import Cores, Server

ROUNDS: Final = 20
CALLS: Final = 200
ENGINE_OFF: Final = {
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener,-event_engine_callback_cq,-event_engine_dns"
}


@dataclass(frozen=True)
class Runtime:
    """An interpreter, whether its loop is uvloop's, whether grpcio's event engine is off."""

    python: str
    version: str
    is_uvloop: bool
    is_engine_off: bool

    @property
    def name(self) -> str:
        loop, engine = "uvloop" if self.is_uvloop else "asyncio", "off" if self.is_engine_off else "on"
        return f"grpcio {self.version}, {loop}, event engine {engine}"

    @contextlib.contextmanager
    def serving(self, arguments: Sequence[str], cores: Cores) -> Iterator[Server]:
        """A server of ours on this runtime."""
        start = ["-m", *arguments] if self.is_uvloop else ["-m", "bench.without_uvloop", *arguments]
        environment = ENGINE_OFF if self.is_engine_off else {}
        with harness.serving(start, cores.server, environment, python=self.python) as server:
            yield server


def run(cores: Cores, pythons: Sequence[str]) -> list[Table]:
    """Measures every runtime of every interpreter, in alternating rounds."""
    runtimes = [
        Runtime(python, _version_of(python), is_uvloop, is_engine_off)
        for python in pythons or [sys.executable]
        for is_uvloop in (False, True)
        if not is_uvloop or _has_uvloop(python)
        for is_engine_off in (False, True)
    ]
    with tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory, contextlib.ExitStack() as stack:
        targets: dict[str, Target] = {}
        for number, runtime in enumerate(runtimes):
            data_dir = Path(directory) / str(number)
            population = rows.deployment(data_dir, TOKENS, cores.server)
            credential = (data_dir / "caller.token").read_text().strip()
            requests = check_requests(population)
            empty = stack.enter_context(runtime.serving(["bench.empty_server"], cores))
            targets[f"empty {runtime.name}"] = Target(empty, credential, "Check", requests)
            options = ["doorward_server.cli.main", "serve", *harness.serve_options(data_dir)]
            server = stack.enter_context(runtime.serving(options, cores))
            targets[f"check {runtime.name}"] = Target(server, credential, "Check", requests)
        with calling(targets, cores, processes=CALLERS) as callers:
            cpu_us: dict[str, list[float]] = {name: [] for name in targets}
            for number in range(-1, ROUNDS):
                for name in list(targets) if number % 2 else list(targets)[::-1]:
                    measured = callers.round(name, CALLS, window=WINDOW)
                    if number >= 0:
                        cpu_us[name].append(measured.cpu_us)
    return [_table(runtimes, cpu_us)]


def _table(runtimes: Sequence[Runtime], cpu_us: dict[str, list[float]]) -> Table:
    table = Table(
        f"Server CPU for a unary call, by what runs underneath; the least disturbed fifth of {ROUNDS} alternating rounds",
        ("runtime", "empty handler, µs", "of the first", "Check, µs", "of the first empty", "of its own empty"),
    )
    least = {name: undisturbed(values) for name, values in cpu_us.items()}
    first = least[f"empty {runtimes[0].name}"]
    for runtime in runtimes:
        empty, check = least[f"empty {runtime.name}"], least[f"check {runtime.name}"]
        ratios = (f"{ratio:.2f}" for ratio in (check / first, check / empty))
        table.add(runtime.name, f"{empty:.0f}", f"{empty / first:.2f}", f"{check:.0f}", *ratios)
    return table


def _version_of(python: str) -> str:
    command = [python, "-c", "import grpc; print(grpc.__version__)"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _has_uvloop(python: str) -> bool:
    return subprocess.run([python, "-c", "import uvloop"], check=False, capture_output=True).returncode == 0
