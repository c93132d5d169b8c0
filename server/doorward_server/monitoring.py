"""The HTTP page: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever restarts or routes (design section 9).

Served by a thread of its own, so that it answers while the event loop is busy; it only reads. Started and stopped by
`app.py`. Never a secret in it: the metrics have no labels that could hold one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer

from doorward.core.matrix import DenyReason
from doorward_server.metrics import DECISIONS, REGISTRY, Described, described
from doorward_server.settings import Listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client.metrics_core import Metric

    from doorward_server.replica.holding import Holding

__all__ = ["Monitoring", "Sources"]

STOP_WITHIN_S: Final = 5.0


LEASE: Final = described("gauge", "lease_seconds", "How long the lease is still good; 0: no check is answered.")
HOLD: Final = described("gauge", "hold_seconds", "What a change waits for this replica at the most.")
APPLIED: Final = described("gauge", "applied_revision", "The newest change that was applied here.")
LAG: Final = described("gauge", "lag_changes", "Changes that a renewal told of and that are not applied yet.")
CACHED: Final = described(
    "gauge", "cached", "Entries in memory: token, account, project, operator, token_proof.", "kind"
)
LOADING: Final = described("gauge", "loads_running", "Entries that are being brought into memory.")
HASHING: Final = described(
    "gauge",
    "bcrypt_waiting",
    "Secrets that wait for bcrypt: to be hashed (issue), to be compared as no digest can tell (verify).",
    "queue",
)
RUNNING: Final = described(
    "gauge",
    "running",
    "What is under way: rpcs that wait for something, streams among them, health_watches beside them.",
    "what",
)
WATCHERS: Final = described("gauge", "watchers", "Sessions of Watch that are open.")
WATCHED: Final = described("gauge", "watched_keys", "Tokens, accounts and projects that watchers hold, all together.")
SUB_LEASES: Final = described(
    "gauge",
    "sub_leases_counted",
    "Sessions of Watch, also of streams that ended, under which something may be decided from memory.",
)
OWED: Final = described(
    "gauge", "watchers_owing", "Those of them that keep a change from being reported until they acknowledge it."
)
DECIDED: Final = described(
    "counter", "decisions", "Checks that were decided, the items of batches among them: ALLOWED, or why not.", "reason"
)


class Sources(NamedTuple):
    """What the page is read from, beside `metrics.py`. Each is asked at every look, in the page's thread."""

    holding: Holding
    loading: Callable[[], int]
    hashing: Callable[[], Mapping[str, int]]
    running: Callable[[], Mapping[str, int]]


class _ReplicaMetrics:
    """The replica's state, read when it is asked for."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Lease, position, what is held in memory, what waits, and what was decided."""
        holding = self._sources.holding
        end_ns, now_ns = holding.capture(), holding.timing.now_ns()
        left_s = 0.0 if end_ns is None else max(end_ns - now_ns, 0) / 1e9
        yield _gauge(LEASE, {(): left_s})
        yield _gauge(HOLD, {(): holding.hold_ms / 1000})
        yield _gauge(APPLIED, {(): holding.applied})
        yield _gauge(LAG, {(): max(holding.known_end - holding.applied, 0)})
        tables = holding.tables
        held = {
            "token": len(tables.tokens),
            "account": len(tables.accounts),
            "project": len(tables.projects),
            "operator": len(tables.operators),
            "token_proof": len(holding.token_proofs),
        }
        yield _gauge(CACHED, {(kind,): count for kind, count in held.items()})
        yield _gauge(LOADING, {(): self._sources.loading()})
        yield _gauge(HASHING, {(queue,): count for queue, count in self._sources.hashing().items()})
        yield _gauge(RUNNING, {(what,): count for what, count in self._sources.running().items()})
        watchers = holding.watchers
        yield _gauge(WATCHERS, {(): watchers.count})
        yield _gauge(WATCHED, {(): watchers.held})
        yield _gauge(SUB_LEASES, {(): watchers.counted()})
        yield _gauge(OWED, {(): watchers.owing()})
        decided = CounterMetricFamily(DECIDED.name, DECIDED.meaning, labels=DECIDED.labels)
        for reason in DenyReason:
            decided.add_metric((reason.name,), DECISIONS[reason])
        yield decided


class _Quiet(WSGIRequestHandler):
    """A handler that does not write a line for each scrape."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Nothing."""


class _SharingServer(ThreadingWSGIServer):
    """A worker that is being replaced and its successor have the port together for a moment."""

    allow_reuse_port = True


class Monitoring:
    """The page of one process.

    Raises:
        OSError: on construction, the address is taken or none of this machine.
    """

    def __init__(self, listen: str, sources: Sources, *, shares_port: bool = False) -> None:
        self._holding = sources.holding
        self._collector = _ReplicaMetrics(sources)
        REGISTRY.register(self._collector)
        self._metrics = make_wsgi_app(REGISTRY)
        address, kind = Listen(listen), _SharingServer if shares_port else ThreadingWSGIServer
        self._server = make_server(address.host, address.port, self._answer, server_class=kind, handler_class=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitoring", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, with the port that was taken."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answers no more; returns when the thread has ended."""
        self._server.shutdown()
        self._thread.join(STOP_WITHIN_S)
        self._server.server_close()
        REGISTRY.unregister(self._collector)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            page: Iterable[bytes] = self._metrics(environ, start_response)
            return page
        if path == "/livez":
            return _say(start_response, "200 OK", "alive")
        if path == "/readyz":
            if self._holding.capture() is None:
                return _say(
                    start_response, "503 Service Unavailable", "no lease: this replica decides nothing at present"
                )
            return _say(start_response, "200 OK", "ready")
        return _say(start_response, "404 Not Found", "try /metrics, /livez or /readyz")


def _say(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


def _gauge(metric: Described, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
