"""Check and BatchCheck beside an empty grpc.aio handler: the server's CPU time for each, in one run (design section 11).

The server has a core of its own, its callers the others. Rounds of the three alternate, so that whatever else the
machine does meets all of them alike, and the least disturbed fifth counts: disturbance can only add.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import harness, rows
from bench.callers import Target, calling
from bench.report import Table, undisturbed
from doorward.v1 import authorizer_pb2 as pb

if TYPE_CHECKING:
    from bench.callers import Callers
    from bench.harness import Cores
    from bench.rows import Population

CALLERS: Final = 3
WINDOW: Final = 16
TOKENS: Final = 100
ROUNDS: Final = 40
CALLS: Final = 300
BATCH: Final = 1_000
BATCHES: Final = 3
UNARY_LIMIT: Final = 1.15
BATCH_LIMIT: Final = 60.0

EMPTY: Final = "empty handler"
CHECK: Final = "Check"
BATCH_ONE: Final = "BatchCheck of 1,000, one secret"
BATCH_MANY: Final = "BatchCheck of 1,000, 100 secrets"


def check_requests(population: Population) -> list[pb.CheckRequest]:
    """One allowed check for each token, of jobs:write on its project."""
    return [
        pb.CheckRequest(
            secret=population.secret(index),
            permission=rows.PERMISSION_ON_ONE,
            project_id=population.project_id(index),
        )
        for index in range(TOKENS)
    ]


def batch_requests(population: Population, tokens: int) -> list[pb.BatchCheckRequest]:
    """Batches of allowed checks: of one token (its secret stands once), or of several (each item has its own)."""
    if tokens == 1:
        return [
            pb.BatchCheckRequest(
                secret=population.secret(index),
                items=[
                    pb.BatchCheckItem(permission=permission, project_id=population.project_id(index))
                    for _ in range(BATCH // 2)
                    for permission in (rows.PERMISSION_ON_ONE, rows.PERMISSION_ON_ALL)
                ],
            )
            for index in range(TOKENS)
        ]
    return [
        pb.BatchCheckRequest(
            items=[
                pb.BatchCheckItem(
                    permission=rows.PERMISSION_ON_ONE,
                    project_id=population.project_id(index % tokens),
                    secret=population.secret(index % tokens),
                )
                for index in range(BATCH)
            ]
        )
    ]


def run(cores: Cores) -> list[Table]:
    """Measures all four in turn."""
    with tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory:
        data_dir = Path(directory) / "data"
        population = rows.deployment(data_dir, TOKENS, cores.server)
        with (
            harness.serving(["-m", "bench.empty_server"], cores.server) as empty,
            harness.doorward(data_dir, cores.server) as server,
        ):
            credential = (data_dir / "caller.token").read_text().strip()
            targets = {
                EMPTY: Target(empty, credential, "Check", check_requests(population)),
                CHECK: Target(server, credential, "Check", check_requests(population)),
                BATCH_ONE: Target(server, credential, "BatchCheck", batch_requests(population, 1), BATCH),
                BATCH_MANY: Target(server, credential, "BatchCheck", batch_requests(population, TOKENS), BATCH),
            }
            with calling(targets, cores, processes=CALLERS) as callers:
                return [_table(_measure(callers))]


def _measure(callers: Callers) -> dict[str, list[float]]:
    """CPU time for each call, in microseconds, round by round."""
    cpu_us: dict[str, list[float]] = {EMPTY: [], CHECK: [], BATCH_ONE: [], BATCH_MANY: []}
    for number in range(-1, ROUNDS):
        for name in list(cpu_us) if number % 2 else list(cpu_us)[::-1]:
            is_batch = name in {BATCH_ONE, BATCH_MANY}
            measured = callers.round(name, BATCHES if is_batch else CALLS, window=2 if is_batch else WINDOW)
            if number >= 0:  # the first round only warms up
                cpu_us[name].append(measured.cpu_us / (BATCH if is_batch else 1))
    return cpu_us


def _table(cpu_us: dict[str, list[float]]) -> Table:
    least = {name: undisturbed(values) for name, values in cpu_us.items()}
    table = Table(
        f"Server CPU, pinned to one core, {CALLERS} callers; the least disturbed fifth of {ROUNDS} alternating rounds",
        ("what", "µs of CPU for each check", "checks/s that fill a core", "ratio", "target"),
    )
    for name, value in least.items():
        ratio, target = "1", ""
        if name == CHECK:
            ratio, target = f"{value / least[EMPTY]:.2f} of empty", f"≤ {UNARY_LIMIT}"
            table.require(value <= UNARY_LIMIT * least[EMPTY], f"{name}: {ratio}, the target is {target}")
        elif name != EMPTY:
            ratio, target = f"{least[CHECK] / value:.0f} × unary", f"≥ {BATCH_LIMIT:.0f} ×"
            table.require(least[CHECK] >= BATCH_LIMIT * value, f"{name}: {ratio}, the target is {target}")
        table.add(name, f"{value:.2f}", f"{1e6 / value:,.0f}", ratio, target)
    return table
