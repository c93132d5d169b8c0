"""`await client.check(…)` beside the plain generated stub: one Python caller, the same server, the same questions, one run.

The server has a core of its own, the caller another. With 1, 64 and 256 callers at once, rounds of the two alternate, so
that whatever else the machine does meets both alike; of each, the least disturbed fifth counts. CPU time of both sides for
each check is what holds on a machine that does other things. Design sections 8 and 11.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final

from bench import harness, rows
from bench.caller import CLIENT_CHECK
from bench.callers import Target, calling
from bench.check import TOKENS, check_requests
from bench.report import Table

if TYPE_CHECKING:
    from bench.callers import Callers, Round
    from bench.harness import Cores

PLAIN: Final = "generated stub"
OURS: Final = "client.check"
# Callers at once: rounds of each, calls of the stub in a round, and how many times as many of the client.
WINDOWS: Final = {1: (60, 100, 1), 64: (20, 400, 10), 256: (20, 600, 15)}
MANY: Final = 256
AT_LEAST: Final = 8.0  # times the stub's checks with many callers
AT_MOST: Final = 1.10  # of the stub's time with one


def run(cores: Cores) -> list[Table]:
    """Measures both, in alternating rounds, with each number of callers."""
    with tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory:
        data_dir = Path(directory) / "data"
        population = rows.deployment(data_dir, TOKENS, cores.server)
        with harness.doorward(data_dir, cores.server) as server:
            credential = (data_dir / "caller.token").read_text().strip()
            requests = check_requests(population)
            targets = {
                PLAIN: Target(server, credential, "Check", requests),
                OURS: Target(server, credential, CLIENT_CHECK, requests),
            }
            with calling(targets, cores, processes=1) as callers:
                return [_table({window: _measure(callers, window) for window in WINDOWS})]


def _measure(callers: Callers, window: int) -> dict[str, list[Round]]:
    """The least disturbed fifth of the rounds of each."""
    count, calls, times = WINDOWS[window]
    rounds: dict[str, list[Round]] = {PLAIN: [], OURS: []}
    for number in range(-2, count):
        for name in (PLAIN, OURS) if number % 2 else (OURS, PLAIN):
            measured = callers.round(name, calls * (times if name == OURS else 1), window=window)
            if number >= 0:  # the first rounds only warm up
                rounds[name].append(measured)
    return {
        name: sorted(made, key=lambda one: one.calls_a_second, reverse=True)[: max(1, count // 5)]
        for name, made in rounds.items()
    }


def _table(measured: dict[int, dict[str, list[Round]]]) -> Table:
    table = Table(
        "One Python caller, server pinned to another core; the least disturbed fifth of alternating rounds",
        ("callers", "what", "checks/s", "p50, ms", "p99, ms", "caller CPU, µs", "server CPU, µs", "ratio", "target"),
    )
    for window, both in measured.items():
        rates = {name: fmean(one.calls_a_second for one in rounds) for name, rounds in both.items()}
        times = rates[OURS] / rates[PLAIN]
        for name, rounds in both.items():
            ratio, target = "1", ""
            if name == OURS and window == 1:
                ratio, target = f"{1 / times:.2f} of its time", f"≤ {AT_MOST:.2f}"
                table.require(1 / times <= AT_MOST, f"{OURS} with one caller: {ratio}, the target is {target}")
            elif name == OURS:
                ratio, target = f"{times:.1f} ×", f"≥ {AT_LEAST:.0f} ×" if window == MANY else ""
                table.require(
                    window != MANY or times >= AT_LEAST,
                    f"{OURS} with {window} callers: {ratio}, the target is {target}",
                )
            latencies = sorted(latency for one in rounds for latency in one.latencies_s)
            table.add(
                str(window),
                name,
                f"{rates[name]:,.0f}",
                f"{latencies[len(latencies) // 2] * 1e3:.2f}",
                f"{latencies[len(latencies) * 99 // 100] * 1e3:.2f}",
                f"{fmean(one.caller_cpu_us for one in rounds):.1f}",
                f"{fmean(one.cpu_us for one in rounds):.1f}",
                ratio,
                target,
            )
    return table
