"""RevokeToken at three replicas with a hundred watchers that hold the token, beside the same replicas without watchers.

The watchers are `LocalAuthorizer`s of asyncio in two processes, each with a stream of its own, spread over the replicas.
In each of several turns there are first none; then all connect, and tokens that all of them hold and tokens that none of
them holds are revoked in alternation; then all say goodbye. After each revocation of a held token all watchers are asked:
the bench fails if one of them allows it. Nothing is pinned. Called by `python -m bench watchers`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import fleet, rows
from bench.fleet import ALLOWED
from bench.propagation import percentile
from bench.report import Table
from bench.told import told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.fleet import Fleet, Revoked
    from bench.harness import Cores
    from bench.told import Told

PROCESSES: Final = 2
WATCHERS: Final = 100
TURNS: Final = 5
CALLS: Final = 30
WARM_UP: Final = 5
# No turn begins later, so that a busy machine is not kept for long.
MEASURING_S: Final = 100.0
TOKENS: Final = 1 + WARM_UP + 3 * TURNS * CALLS
RATIO_LIMIT: Final = 3.0

NONE: Final = "no watcher is connected"
OTHERS: Final = f"{WATCHERS} watchers, none holds the token"
HOLDING: Final = f"{WATCHERS} watchers, all hold the token"


class Watchers:
    """The processes with the watchers, told together."""

    def __init__(self, processes: list[Told]) -> None:
        self._processes = processes

    def tell(self, value: object) -> list[Any]:
        """The same line for each; their answers.

        Raises:
            RuntimeError: one of them ended; with the end of its log.
        """
        for process in self._processes:
            process.write(value)
        return [process.read() for process in self._processes]

    def count(self, what: str, **order: object) -> int:
        """The sum of what all of them answer for `what`."""
        return sum(answer[what] for answer in self.tell(order))


def run(_cores: Cores) -> list[Table]:
    """Measures all three kinds of revocation."""
    calls: dict[str, list[Revoked]] = {NONE: [], OTHERS: [], HOLDING: []}
    with (
        tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory,
        fleet.running(Path(directory), TOKENS) as running,
        watching(running, WATCHERS) as watchers,
    ):
        unused = iter(range(1, TOKENS))
        for _ in range(WARM_UP):
            _revoke(running, next(unused))
        until = time.monotonic() + MEASURING_S
        for _ in range(TURNS):
            if time.monotonic() > until:
                break
            _turn(running, watchers, unused, calls)
    return [_table(calls)]


@contextlib.contextmanager
def watching(running: Fleet, count: int) -> Iterator[Watchers]:
    """Processes for so many watchers, none of which is connected yet."""
    cores = frozenset(os.sched_getaffinity(0))
    job = {
        "addresses": [replica.server.address for replica in running.replicas],
        "credential": running.caller_credential,
        "watchers": count // PROCESSES,
    }
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(told(["-m", "bench.watchers_caller"], cores)) for _ in range(PROCESSES)]
        watchers = Watchers(started)
        watchers.tell(job)
        yield watchers


def _turn(running: Fleet, watchers: Watchers, unused: Iterator[int], calls: dict[str, list[Revoked]]) -> None:
    calls[NONE] += [_revoke(running, next(unused)) for _ in range(CALLS)]
    _require_all("are connected", watchers.count("open", do="open"))
    for _ in range(CALLS):
        calls[OTHERS].append(_revoke(running, next(unused)))
        index = next(unused)
        ask = [running.population.secret(index), rows.PERMISSION_ON_ONE, running.population.project_id(index)]
        _require_all("hold the token and allow it", watchers.count("allowed", do="hold", ask=ask))
        calls[HOLDING].append(_revoke(running, index))
        if stale := watchers.count("allowed", do="check", ask=ask):
            raise RuntimeError(f"{stale} watchers allowed token {index} after RevokeToken had returned")
    watchers.tell({"do": "close"})


def _require_all(what: str, counted: int) -> None:
    if counted != WATCHERS:
        raise RuntimeError(f"{counted} of {WATCHERS} watchers {what}")


def _revoke(running: Fleet, index: int) -> Revoked:
    """Revokes a token that every replica has in memory."""
    request = running.check_request(index)
    for replica in running.replicas:
        if (before := replica.check(request)) != ALLOWED:
            raise RuntimeError(f"token {index} was {before} before it was revoked")
    return running.waiting.revoke(running.population.token_ids[index])


def _table(calls: dict[str, list[Revoked]]) -> Table:
    table = Table(
        f"RevokeToken at three replicas, {len(calls[NONE])} calls of each kind in alternating blocks; nothing pinned; "
        "milliseconds",
        ("what", "median", "p90", "p99", "longest", "watchers that confirmed", "median beside none", "target"),
    )
    base_s = statistics.median(call.seconds for call in calls[NONE])
    for name, made in calls.items():
        seconds = [call.seconds for call in made]
        ratio = statistics.median(seconds) / base_s
        confirmed = [call.propagation.watchers_confirmed for call in made]
        table.add(
            name,
            *(f"{percentile(seconds, share) * 1000:.1f}" for share in (0.5, 0.9, 0.99, 1.0)),
            f"{min(confirmed)} to {max(confirmed)}",
            f"{ratio:.2f} ×",
            f"≤ {RATIO_LIMIT:.0f} ×" if name == HOLDING else "",
        )
        if name == HOLDING:
            table.require(ratio <= RATIO_LIMIT, f"{name}: RevokeToken took {ratio:.2f} × the time of that without")
        expired = sum(call.propagation.replicas_expired for call in made)
        table.require(expired == 0, f"{name}: {expired} replicas were waited for until they had expired")
    return table
