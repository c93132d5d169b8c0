"""Processes, cores, CPU time and memory: starts what is measured, reads what it used, and stops it again.

CPU time of a process is what its own clock counts (clock_getcpuclockid(3)): every thread, also those that ended, and
nothing of its children. On a machine that does other things it is the measure that holds. What is started here ends
with the `with` block that started it. Used by every part of `python -m bench`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
# Bound of every wait for a process to start or to end.
PATIENCE_S: Final = 60.0
PIPE: Final = subprocess.PIPE
BANNER: Final = "Doorward listens on "


@dataclass(frozen=True)
class Cores:
    """Where what is measured runs, and where its callers do: apart, if this process may use two cores."""

    server: frozenset[int]
    callers: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """One core for the server, the others for its callers."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[:1]), frozenset(usable[1:] or usable))


@contextlib.contextmanager
def running_on(cores: frozenset[int]) -> Iterator[None]:
    """What is started inside the block stays on these cores, with every thread and child that it will have."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_ns(pid: int) -> int:
    """The CPU time that a running process has used so far, in nanoseconds."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def resident_mib(pid: int) -> float:
    """What a running process holds in RAM, in MiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would bend PostgreSQL's clients, Doorward's settings or gRPC."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DOORWARD_", "GRPC_"))}
    return {**kept, **(extra or {})}


def start(
    arguments: Sequence[str],
    cores: frozenset[int],
    stderr: IO[bytes],
    *,
    stdin: int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> subprocess.Popen[bytes]:
    """Starts `python <arguments>` in the repository's root, pinned, with a pipe from its standard output."""
    with running_on(cores):
        return subprocess.Popen(
            [python, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            env=clean_environment(environment),
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, SIGKILL if that takes too long, and the end of its pipes."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(PATIENCE_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclass(frozen=True)
class Server:
    """A running server: its process, where it listens, and how long it took from exec to its banner."""

    pid: int
    address: str
    started_in_s: float


@contextlib.contextmanager
def serving(
    arguments: Sequence[str],
    cores: frozenset[int],
    environment: Mapping[str, str] | None = None,
    *,
    python: str = sys.executable,
) -> Iterator[Server]:
    """Runs `python <arguments>`, which says `Doorward listens on ADDRESS` once it takes calls.

    Raises:
        RuntimeError: it ended instead; with the end of its log.
    """
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        process = start(arguments, cores, log, environment=environment, python=python)
        try:
            for line in process.stdout or ():
                if line.startswith(BANNER.encode()):
                    address = line.decode().strip().removeprefix(BANNER)
                    yield Server(process.pid, address, time.monotonic() - began)
                    return
            status = process.wait(PATIENCE_S)
            log.seek(0)
            raise RuntimeError(f"{arguments} ended with status {status}:\n{log.read().decode()[-4000:]}")
        finally:
            stop(process)


def serve_options(data_dir: Path) -> list[str]:
    """What `doorward serve` is told: a free port of the loopback interface, the embedded PostgreSQL in `data_dir`."""
    return ["--listen", "127.0.0.1:0", "--data-dir", str(data_dir), "--log-level", "warning"]


@contextlib.contextmanager
def doorward(data_dir: Path, cores: frozenset[int]) -> Iterator[Server]:
    """`doorward serve`, with these options."""
    with serving(["-m", "doorward_server.cli.main", "serve", *serve_options(data_dir)], cores) as server:
        yield server
