"""What this process counts and measures, in one registry (design sections 5, 7 and 9). No label holds a secret or an id.

Imports nothing of ours: the layers above write here, `monitoring.py` shows it, and `docs/metrics.md` is made of `DESCRIBED`.
What every call or check counts is a plain number here and becomes a metric when somebody looks: an increment of a
`Counter` takes seven times as long (0.7 µs for 0.1, measured), and only the event loop writes them.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

__all__ = [
    "BARRIERS",
    "BARRIER_SECONDS",
    "DECISIONS",
    "DESCRIBED",
    "LOADS",
    "REGISTRATIONS",
    "REGISTRY",
    "RPCS",
    "TLS_EXPIRY",
    "Described",
    "RpcCounts",
    "described",
]


class Described(NamedTuple):
    """One metric as people read of it; a counter's samples are called `name` with `_total` behind it."""

    kind: str
    name: str
    labels: tuple[str, ...]
    meaning: str


REGISTRY: Final = CollectorRegistry()
DESCRIBED: Final[list[Described]] = []

# From well under a poll to the longest hold that there is.
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


def described(kind: str, name: str, meaning: str, *labels: str) -> Described:
    """Notes a metric for the documentation; `doorward_` stands before every name."""
    metric = Described(kind, f"doorward_{name}", labels, meaning)
    DESCRIBED.append(metric)
    return metric


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    metric = described("counter", name, meaning, *labels)
    return Counter(metric.name, meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, *labels: str) -> Histogram:
    metric = described("histogram", name, meaning, *labels)
    return Histogram(metric.name, meaning, labels, buckets=_SECONDS, registry=REGISTRY)


class RpcCounts:
    """The calls of one method. `from_memory` were answered at once; `waited` were answered all the same."""

    __slots__ = ("from_memory", "seconds", "shown", "unanswered", "waited")

    def __init__(self, shown: str, seconds: Histogram) -> None:
        self.shown = shown
        self.from_memory = 0
        self.waited = 0
        # By status code: refused, or given up by the caller (CANCELLED).
        self.unanswered: Tally[str] = Tally()
        # How long those took that were not answered from memory, whatever came of them.
        self.seconds = seconds


class _Rpcs:
    """The calls of all methods."""

    RPCS: Final = described(
        "counter", "rpcs", "Calls that ended, by the status that they ended with.", "method", "code"
    )
    FROM_MEMORY: Final = described(
        "counter", "rpcs_from_memory", "Calls of those that memory answered at once, without a wait.", "method"
    )

    def __init__(self) -> None:
        self._seconds = _histogram(
            "rpc_seconds",
            "How long calls took that memory did not answer at once; a stream as long as it lived.",
            "method",
        )
        self._methods: dict[str, RpcCounts] = {}

    def of(self, path: str) -> RpcCounts:
        """Those of one method, as /doorward.v1.Authorizer/Check."""
        counts = self._methods.get(path)
        if counts is None:
            shown = path.removeprefix("/doorward.v1.").replace("/", ".")
            counts = self._methods[path] = RpcCounts(shown, self._seconds.labels(shown))
        return counts

    def collect(self) -> Iterator[Metric]:
        """The same as metrics. Called by the registry, in a thread of its own."""
        rpcs = CounterMetricFamily(self.RPCS.name, self.RPCS.meaning, labels=self.RPCS.labels)
        memory = CounterMetricFamily(self.FROM_MEMORY.name, self.FROM_MEMORY.meaning, labels=self.FROM_MEMORY.labels)
        for counts in tuple(self._methods.values()):
            rpcs.add_metric((counts.shown, "OK"), counts.from_memory + counts.waited)
            memory.add_metric((counts.shown,), counts.from_memory)
            for code, count in tuple(counts.unanswered.items()):
                rpcs.add_metric((counts.shown, code), count)
        yield rpcs
        yield memory


RPCS: Final = _Rpcs()
REGISTRY.register(RPCS)

# Of checks, batches' items among them, by the number of their reason (core.matrix.DenyReason; 0: allowed).
DECISIONS: Final = [0] * 16

LOADS: Final = _counter(
    "loads",
    "Entries that were brought into memory from the database, by their kind and how that ended: read, refused (the "
    "database did not answer, or too much was being read), failed.",
    "kind",
    "outcome",
)
BARRIER_SECONDS: Final = _histogram(
    "barrier_seconds",
    "How long a change waited, after its acknowledged commit, until nobody answered from before it any more.",
)
BARRIERS: Final = _counter(
    "barriers",
    "Waits for a change to reach every replica, by how they ended: confirmed, expired, deadline, unknown.",
    "outcome",
)
REGISTRATIONS: Final = _counter("registrations", "How often this replica registered, and so began with empty caches.")
_EXPIRY: Final = described(
    "gauge",
    "tls_expiry_timestamp_seconds",
    "When what the listener uses ends to be valid, as Unix time: its certificate (cert), the last of the authorities "
    "that clients' certificates are of (client_ca). Without TLS there is none.",
    "file",
)
TLS_EXPIRY: Final = Gauge(_EXPIRY.name, _EXPIRY.meaning, _EXPIRY.labels, registry=REGISTRY)
