"""RevokeToken at three healthy replicas under a load of checks, beside the same transaction without its barrier; then what
a frozen and a killed replica make of it (design section 7, "How long a mutation takes").

Both kinds of call alternate, so that whatever else the machine does meets both alike. Each revoked token is checked before
and after at a replica that did not revoke it: what is measured is the promise. A bench of latencies, so nothing is pinned.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import fleet, load
from bench.fleet import ALLOWED
from bench.report import Table
from doorward_server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bench.fleet import Fleet, Revoked
    from bench.harness import Cores
    from bench.load import Asked

HOLD_S: Final[float] = Settings.model_fields["hold"].default
WARM_UP: Final = 20
# As many pairs of calls as fit into the time, so that a busy machine is not kept for long.
PAIRS: Final = 400
MEASURING_S: Final = 40.0
NEXT: Final = 20
ASKED_ABOUT: Final = 50
TOKENS: Final = ASKED_ABOUT + 2 * (WARM_UP + PAIRS) + 2 * (1 + NEXT)
CHECKS_A_SECOND: Final = 100.0

RATIO_LIMIT: Final = 5.0
TAIL_LIMIT_S: Final = HOLD_S / 10
# The wait itself takes a hold to the millisecond; the rest is the transaction, and a machine that others share.
BOUND_S: Final = HOLD_S * 1.1
BUCKETS_MS: Final = (5, 10, 20, 50, 100, 200, 500, 1000, 5000)


@dataclass
class Measured:
    """What the calls took, in the order in which they were made."""

    with_barrier: list[Revoked] = field(default_factory=list)
    without_barrier: list[Revoked] = field(default_factory=list)
    # Of those without, how many tokens another replica still allowed right after the answer.
    still_allowed: int = 0


@dataclass(frozen=True)
class Loss:
    """A replica that stopped: what the first mutation took, and those after it."""

    name: str
    first: Revoked
    following: list[Revoked]


def run(_cores: Cores) -> list[Table]:
    """Measures all of it."""
    with tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory:
        with fleet.running(Path(directory), TOKENS) as running:
            unused = iter(range(ASKED_ABOUT, TOKENS))
            with _checks_at(running, running.replicas) as everywhere:
                measured = _measure(running, unused)
            # What is stopped gets no checks, or they would wait for it.
            with _checks_at(running, running.replicas[:2]) as elsewhere:
                losses = [_frozen(running, unused), _killed(running, unused)]
        checks = sum(asked.checks for asked in everywhere) / max(asked.seconds for asked in everywhere)
        _require_allowed([*everywhere, *elsewhere])
        return [_comparison(measured, checks), _histogram(measured.with_barrier), _worst(losses)]


@contextlib.contextmanager
def _checks_at(running: Fleet, replicas: Iterable[fleet.Replica]) -> Iterator[list[Asked]]:
    cores = frozenset(os.sched_getaffinity(0))
    requests = [running.check_request(index) for index in range(ASKED_ABOUT)]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                load.asking(replica.server, running.caller_credential, requests, cores, rate=CHECKS_A_SECOND)
            )
            for replica in replicas
        ]


def _require_allowed(loads: Sequence[Asked]) -> None:
    """Else it was no load, or a healthy replica lost its lease."""
    if not all(asked.checks == asked.allowed for asked in loads):
        raise RuntimeError(f"not all checks were allowed: {loads}")


def _measure(running: Fleet, unused: Iterator[int]) -> Measured:
    measured, warm = Measured(), Measured()
    until = time.monotonic() + MEASURING_S
    for number in range(-WARM_UP, PAIRS):
        if time.monotonic() > until and measured.with_barrier:
            break
        into = measured if number >= 0 else warm
        pair: list[Callable[[Fleet, int, Measured], None]] = [_with_barrier, _without_barrier]
        for call in pair if number % 2 else pair[::-1]:
            call(running, next(unused), into)
    return measured


def _with_barrier(running: Fleet, index: int, into: Measured) -> None:
    revoked, after = _revoke(running, running.waiting, index)
    _require_true_everywhere(index, after)
    into.with_barrier.append(revoked)


def _without_barrier(running: Fleet, index: int, into: Measured) -> None:
    revoked, after = _revoke(running, running.hasty, index)
    into.without_barrier.append(revoked)
    into.still_allowed += after == ALLOWED
    # The next call begins where this one would have ended.
    running.waiting.await_propagation(revoked.propagation.revision)


def _revoke(running: Fleet, at: fleet.Replica, index: int) -> tuple[Revoked, str]:
    """Revokes one token, which the third replica has in memory; and what that says right after."""
    request = running.check_request(index)
    if (before := running.third.check(request)) != ALLOWED:
        raise RuntimeError(f"token {index} was {before} before it was revoked")
    revoked = at.revoke(running.population.token_ids[index])
    return revoked, running.third.check(request)


def _require_true_everywhere(index: int, after: str) -> None:
    if after != "DENY_REASON_TOKEN_REVOKED":
        raise RuntimeError(f"token {index} was {after} at another replica after RevokeToken had returned")


def _frozen(running: Fleet, unused: Iterator[int]) -> Loss:
    """SIGSTOP of the third; it comes back afterwards."""
    pid = running.third.server.pid
    request = running.check_request(index := next(unused))
    running.third.check(request)
    os.kill(pid, signal.SIGSTOP)
    try:
        loss = _lost("frozen (SIGSTOP)", running, index, unused)
    finally:
        os.kill(pid, signal.SIGCONT)
    if (after := running.third.check(request)) == ALLOWED:
        raise RuntimeError("a replica that was frozen still allowed what was revoked meanwhile")
    if after != "UNAVAILABLE" and not after.startswith("DENY_REASON_"):
        raise RuntimeError(f"a replica that was frozen answered {after}")
    running.await_well(3)
    return loss


def _killed(running: Fleet, unused: Iterator[int]) -> Loss:
    """kill -9 of the third; it stays dead."""
    running.await_well(3)
    os.kill(running.third.server.pid, signal.SIGKILL)
    return _lost("dead (kill -9)", running, next(unused), unused)


def _lost(name: str, running: Fleet, index: int, unused: Iterator[int]) -> Loss:
    token_ids = running.population.token_ids
    first = running.waiting.revoke(token_ids[index])
    return Loss(name, first, [running.waiting.revoke(token_ids[next(unused)]) for _ in range(NEXT)])


def _comparison(measured: Measured, checks: float) -> Table:
    without, waited, pairs = measured.without_barrier, measured.with_barrier, len(measured.with_barrier)
    table = Table(
        f"RevokeToken at three replicas that answer {checks:,.0f} checks/s in all; {pairs} calls of each kind, alternating; "
        "nothing pinned; milliseconds",
        ("what", "p10", "median", "p90", "p99", "longest", "still allowed elsewhere", "target"),
    )
    base_s, median_s = (statistics.median(call.seconds for call in calls) for calls in (without, waited))
    tail_s = percentile([call.seconds for call in waited], 0.99)
    ratio = median_s / base_s
    table.add(
        "committed without its barrier", *_spread(call.seconds for call in without),
        f"{measured.still_allowed} of {pairs}", "",
    )  # fmt: skip
    table.add(
        "RevokeToken", *_spread(call.seconds for call in waited),
        f"0 of {pairs}", f"median ≤ {RATIO_LIMIT:.0f} ×: {ratio:.2f} ×; p99 < {TAIL_LIMIT_S * 1000:.0f} ms",
    )  # fmt: skip
    table.add(
        "of it the wait (Propagation.elapsed)",
        *_spread(call.propagation.elapsed.ToNanoseconds() / 1e9 for call in waited), "", "",
    )  # fmt: skip
    table.require(
        all(call.propagation.replicas_confirmed == 3 for call in waited),
        "not every call was confirmed by three replicas",
    )
    table.require(ratio <= RATIO_LIMIT, f"RevokeToken took {ratio:.2f} × the time of its transaction")
    table.require(tail_s < TAIL_LIMIT_S, f"p99 of RevokeToken was {tail_s * 1000:.0f} ms")
    return table


def _histogram(calls: Sequence[Revoked]) -> Table:
    table = Table(
        f"How long {len(calls)} changes took to be in force everywhere (Propagation.elapsed)", ("within", "changes", "")
    )
    counted = 0
    elapsed_ms = [call.propagation.elapsed.ToNanoseconds() / 1e6 for call in calls]
    for bucket in BUCKETS_MS:
        within = sum(value <= bucket for value in elapsed_ms)
        table.add(f"{bucket} ms", f"{within - counted}", "#" * math.ceil(40 * (within - counted) / len(calls)))
        counted = within
        if within == len(calls):
            break
    return table


def _worst(losses: Sequence[Loss]) -> Table:
    table = Table(
        f"RevokeToken when one of three replicas stopped; hold {HOLD_S:.0f} s",
        (
            "that replica is",
            "first call, s",
            "expired",
            f"the next {NEXT}, median, ms",
            "longest, ms",
            "expired",
            "target",
        ),
    )
    for loss in losses:
        expired = [call.propagation.replicas_expired for call in (loss.first, *loss.following)]
        seconds = [call.seconds for call in loss.following]
        table.add(
            loss.name, f"{loss.first.seconds:.2f}", str(expired[0]),
            f"{statistics.median(seconds) * 1000:.1f}", f"{max(seconds) * 1000:.1f}", str(sum(expired[1:])),
            f"first ≤ {BOUND_S:.1f} s, then < {TAIL_LIMIT_S * 1000:.0f} ms",
        )  # fmt: skip
        table.require(expired == [1] + [0] * NEXT, f"{loss.name}: waited for it {sum(expired)} times: {expired}")
        table.require(loss.first.seconds <= BOUND_S, f"{loss.name}: the first call took {loss.first.seconds:.2f} s")
        table.require(max(seconds) < TAIL_LIMIT_S, f"{loss.name}: a later call took {max(seconds):.2f} s")
    return table


def _spread(seconds: Iterable[float]) -> tuple[str, ...]:
    values = list(seconds)
    return tuple(f"{percentile(values, share) * 1000:.1f}" for share in (0.1, 0.5, 0.9, 0.99, 1.0))


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of them does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
