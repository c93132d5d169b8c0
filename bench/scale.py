"""What a million tokens in the database change: the time to start, the memory, the first check of a token, the next ones.

A deployment of each size, filled by COPY. Starts and first checks take turns among them; then all run at once and are
asked about equally many tokens, in alternating rounds. Called by `python -m bench scale` (design section 11).
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import harness, rows
from bench.callers import Target, calling
from bench.report import Table, undisturbed
from doorward.v1 import authorizer_pb2 as pb

if TYPE_CHECKING:
    from bench.harness import Cores
    from bench.rows import Population

SIZES: Final = (100, 1_000, 1_000_000)
STARTS: Final = 3
TOKENS: Final = 100
CALLERS: Final = 3
WINDOW: Final = 16
ROUNDS: Final = 25
CALLS: Final = 300
FLAT: Final = 1.10
START_LIMIT_S: Final = 3.0
# Of a process of some 70 MiB: what its allocator leaves lying about from one start to the next.
MEMORY_SLACK_MIB: Final = 2.0


@dataclass
class Size:
    """One deployment, and what was measured of it, start by start or round by round."""

    data_dir: Path
    population: Population
    filled_in_s: float
    started_s: list[float] = field(default_factory=list)
    start_cpu_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    first_us: list[float] = field(default_factory=list)
    first_cpu_us: list[float] = field(default_factory=list)
    next_cpu_us: list[float] = field(default_factory=list)
    memory_after_mib: float = 0.0

    @property
    def credential(self) -> str:
        return (self.data_dir / "caller.token").read_text().strip()

    def requests(self, *, at_account: bool) -> list[pb.CheckRequest]:
        """One allowed check of each of TOKENS tokens, spread over all there are; at its account, or on a project."""
        step = self.population.count // TOKENS
        return [self._request(index, at_account=at_account) for index in range(0, step * TOKENS, step)]

    def _request(self, index: int, *, at_account: bool) -> pb.CheckRequest:
        secret = self.population.secret(index)
        if at_account:
            account_id = self.population.account_id(index)
            return pb.CheckRequest(secret=secret, permission=rows.PERMISSION_AT_ACCOUNT, account_id=account_id)
        project_id = self.population.project_id(index)
        return pb.CheckRequest(secret=secret, permission=rows.PERMISSION_ON_ONE, project_id=project_id)


def run(cores: Cores) -> list[Table]:
    """Fills, starts, asks."""
    with tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory:
        sizes = []
        for count in SIZES:
            began = time.monotonic()
            data_dir = Path(directory) / str(count)
            population = rows.deployment(data_dir, count, cores.server)
            sizes.append(Size(data_dir, population, time.monotonic() - began))
        for number in range(STARTS):
            for size in sizes if number % 2 else sizes[::-1]:
                _start(size, cores)
        _ask(sizes, cores)
        return [_table(sizes)]


def _start(size: Size, cores: Cores) -> None:
    """Starts a server and asks it once about each token, one after the other: each is one load."""
    with harness.doorward(size.data_dir, cores.server) as server:
        size.started_s.append(server.started_in_s)
        size.start_cpu_s.append(harness.cpu_ns(server.pid) / 1e9)
        size.memory_mib.append(harness.resident_mib(server.pid))
        target = {"first": Target(server, size.credential, "Check", size.requests(at_account=True))}
        with calling(target, cores, processes=1) as callers:
            first = callers.round("first", TOKENS, window=1)
        size.first_us.append(statistics.median(first.latencies_s) * 1e6)
        size.first_cpu_us.append(first.cpu_us)


def _ask(sizes: list[Size], cores: Cores) -> None:
    with contextlib.ExitStack() as stack:
        started = []
        for size in sizes:
            server = stack.enter_context(harness.doorward(size.data_dir, cores.server))
            target = {"next": Target(server, size.credential, "Check", size.requests(at_account=False))}
            callers = stack.enter_context(calling(target, cores, processes=CALLERS))
            started.append((size, server, callers))
        for number in range(-1, ROUNDS):
            for size, _, callers in started if number % 2 else started[::-1]:
                measured = callers.round("next", CALLS, window=WINDOW)
                if number >= 0:  # the first round only loads
                    size.next_cpu_us.append(measured.cpu_us)
        for size, server, _ in started:
            size.memory_after_mib = harness.resident_mib(server.pid)


def _table(sizes: list[Size]) -> Table:
    checks = CALLERS * CALLS * (ROUNDS + 1)
    table = Table(
        f"Tokens in the database; medians of {STARTS} starts with {TOKENS} first checks each; next checks: "
        f"the least disturbed fifth of {ROUNDS} rounds",
        ("", *(f"{size.population.count:,}" for size in sizes), "target"),
    )
    few, thousand, million = sizes
    middle = statistics.median
    table.add("rows made and COPYed in, s", *(f"{size.filled_in_s:.1f}" for size in sizes), "")
    table.add("exec to banner, s", *(f"{middle(size.started_s):.2f}" for size in sizes), f"< {START_LIMIT_S:.0f}")
    table.add("  of it CPU time of the server, s", *(f"{middle(size.start_cpu_s):.2f}" for size in sizes), "")
    table.add("RSS after the start, MiB", *(f"{middle(size.memory_mib):.1f}" for size in sizes), "that of 1,000")
    table.add(f"RSS after {checks:,} checks, MiB", *(f"{size.memory_after_mib:.1f}" for size in sizes), "that of 1,000")
    table.add("first check of a token, µs of time", *(f"{middle(size.first_us):.0f}" for size in sizes), "")
    table.add("first check of a token, µs of CPU", *(f"{middle(size.first_cpu_us):.0f}" for size in sizes), "")
    flatness = f"≤ {FLAT} × that of 100"
    table.add("next checks, µs of CPU", *(f"{undisturbed(size.next_cpu_us):.1f}" for size in sizes), flatness)
    started_s = middle(million.started_s)
    table.require(started_s < START_LIMIT_S, f"a server with 1,000,000 tokens started in {started_s:.2f} s")
    for which, fat, lean in (
        ("after the start", middle(million.memory_mib), middle(thousand.memory_mib)),
        ("after the checks", million.memory_after_mib, thousand.memory_after_mib),
    ):
        table.require(fat <= lean + MEMORY_SLACK_MIB, f"memory {which}: {fat:.1f} MiB, {lean:.1f} with 1,000 tokens")
    ratio = undisturbed(million.next_cpu_us) / undisturbed(few.next_cpu_us)
    table.require(ratio <= FLAT, f"a check takes {ratio:.2f} × as long with 1,000,000 tokens as with 100")
    return table
