"""Builds everything, starts and stops it in order, and owns the one TaskGroup (design section 9; style.md, Shape).

Long-lived parts have `run()` and start nothing themselves. A part that fails takes the process down: a server without its
lease keeper or its feed must not linger. Run by `doorward serve`, and by `workers/worker.py` in each process of several.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import signal
import sys
from typing import TYPE_CHECKING, Final

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from doorward.clock import SystemClock
from doorward_server import telemetry, tracing
from doorward_server.api.bounds import most_rpcs, most_rpcs_of_a_connection
from doorward_server.api.connections import let_go
from doorward_server.api.health import SERVICES, HealthKeeper
from doorward_server.api.refused import RefusedCalls
from doorward_server.api.server import DoorwardHandlers, channel_options
from doorward_server.api.standard import BoundedHealth, BoundedReflection
from doorward_server.api.tls import server_credentials
from doorward_server.monitoring import Monitoring, Sources
from doorward_server.parts import ReplicaParts, methods_of
from doorward_server.replica.tasks import Tasks
from doorward_server.replica.timing import Timing
from doorward_server.settings import Listen, Settings
from doorward_server.start import StartRefused, banner, cannot_listen, exit_status, prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from doorward_server.api.methods import Method
    from doorward_server.credentials.certificates import Certificates
    from doorward_server.embedded.postgres import EmbeddedPostgres
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.watchers import Watchers
    from doorward_server.start import Prepared

__all__ = ["App", "run"]

log = structlog.get_logger()

MAX_MESSAGE: Final = 4 * 1024 * 1024
MAX_METADATA: Final = 8 * 1024
# A million long-lived objects make a full collection take 200 ms (measured: design 11), so those are rare.
GC_THRESHOLDS: Final = (10_000, 20, 1_000)
# Also a server that drains nothing has this long to write what it has gathered.
FLUSH_S: Final = 1.0
# While it waits for its first lease, a process that was told to stop does so this soon.
STOP_LOOK_NS: Final = 100_000_000


class App:
    """One server process, from start to stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        timing: Timing | None = None,
        shares_port: bool = False,
        on_registering: Callable[[str], None] | None = None,
        on_counting: Callable[[bool], bool] | None = None,
    ) -> None:
        """`timing` is for tests, which put a clock of their own under everything; the others are for a worker.

        One that shares its port with other workers listens only once it holds a lease. `on_registering` is told the
        replica's id before a row is made of it. `on_counting` is told whether watchers' sub-leases are counted: that some
        are before the first is granted, which then waits for `counting_heard`. It returns whether the word went out.
        """
        self._settings = settings
        self._timing = timing or Timing(SystemClock())
        self._shares_port = shares_port
        self._on_registering = on_registering
        self._on_counting = on_counting
        self._watchers: Watchers | None = None
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begins the graceful stop."""
        self._stop.set()

    def counting_heard(self) -> None:
        """Whoever `on_counting` told that sub-leases are counted has taken note."""
        if self._watchers is not None:
            self._watchers.parent.heard()

    async def run(self, announce: Callable[[str, EmbeddedPostgres | None], None]) -> None:
        """Serves until `stop`; `announce` is told the address when calls are taken.

        Raises:
            StartRefused, CertificateInvalid, TracingUnavailable, DatabaseUnusable, EmbeddedUnavailable, PepperInvalid: it
                cannot start; the text says why.
        """
        settings = self._settings
        if settings.traces == "otlp":
            tracing.start(importlib.metadata.version("doorward-server"))
        try:
            await self._run(announce)
        finally:
            tracing.stop()

    async def _run(self, announce: Callable[[str, EmbeddedPostgres | None], None]) -> None:
        settings = self._settings
        async with prepared(settings) as base, asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            replica = ReplicaParts(settings, base.database, base.ring, self._timing, tasks, self._on_registering)
            self._watchers = replica.holding.watchers
            self._watchers.parent.tell = self._on_counting
            methods = methods_of(settings, base.database, base.ring, replica)
            await self._serve(group, tasks, replica, methods, base, announce)

    async def _serve(
        self,
        group: asyncio.TaskGroup,
        tasks: Tasks,
        replica: ReplicaParts,
        methods: list[Method],
        base: Prepared,
        announce: Callable[[str, EmbeddedPostgres | None], None],
    ) -> None:
        health_servicer = BoundedHealth(self._settings.max_concurrent_rpcs)
        health = HealthKeeper(replica.holding, health_servicer)
        embedded, asks_certificates = base.embedded, self._settings.tls_client_ca is not None
        handlers = DoorwardHandlers(
            methods,
            replica.timing,
            RefusedCalls(replica.refusals),
            most_calls=self._settings.max_concurrent_rpcs,
            asks_certificates=asks_certificates,
        )
        server = self._server(handlers, health_servicer)
        # Alone, an address that is taken is found out before anything runs.
        address = "" if self._shares_port else self._bind(server, base.certificates)
        replica.keeper.address = address or replica.keeper.address
        runs: list[Coroutine[None, None, object]] = [replica.reporter.run(), replica.feed.run(), replica.hasher.run()]
        runs += [health.run(), replica.refusals.run(), replica.usage.run(), replica.retention.run()]
        runs += [replica.holding.watchers.run()]
        if embedded is not None:
            runs.append(embedded.run())
        sources = Sources(
            replica.holding,
            lambda: replica.caches.loading,
            lambda: replica.hasher.waiting,
            lambda: {**handlers.running, "health_watches": health_servicer.watches},
        )
        monitoring = self._monitoring(sources)
        keeper = group.create_task(replica.keeper.run())
        parts = [group.create_task(work) for work in runs]
        try:
            if self._shares_port:
                # Whoever listens gets a share of the connections: not before it can answer.
                await self._lease_or_stop(replica.holding)
            if not self._stop.is_set():
                address = address or self._bind(server, base.certificates)
                await server.start()
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLDS)
                # What is tried right after the announcement is answered; without a database there is no hurry.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.hold):
                        await self._lease_or_stop(replica.holding)
                announce(address, embedded)
            await self._stop.wait()
            log.info("server_stopping")
            await health.leave()
            handlers.end_streams()
            if address:
                # While there is a lease still, so that what has arrived is answered.
                await let_go(Listen(address).port, handlers.busy_peers)
            # From here on no check passes; running mutations still get their barrier, since feed and reporter go on.
            await self._give_up_lease(keeper, replica.holding)
            await server.stop(self._settings.drain)
            await tasks.drain(self._settings.drain)
            await replica.keeper.leave()
            # Last, for nobody waits for it.
            await self._flush(replica)
        finally:
            # Also when a part failed: nothing more is accepted while the rest ends.
            await server.stop(None)
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)
            await replica.hasher.close()
            for line in replica.lines:
                await line.close()
            if monitoring is not None:
                monitoring.stop()
        log.info("server_stopped")

    async def _give_up_lease(self, keeper: asyncio.Task[None], holding: Holding) -> None:
        """Ends the renewals, and waits until no watcher decides from memory any more: no longer than a hold (rho U)."""
        keeper.cancel()
        await asyncio.wait({keeper})
        holding.watchers.reset()
        await holding.watchers.left(self._timing.now_ns() + holding.hold_ms * 1_000_000)

    async def _flush(self, replica: ReplicaParts) -> None:
        """Writes what was only gathered in memory, as far as the database takes it in time."""
        try:
            async with asyncio.timeout(max(self._settings.drain, FLUSH_S)):
                await replica.refusals.flush()
                await replica.usage.flush()
        except TimeoutError:
            log.warning("flush_abandoned")

    def _monitoring(self, sources: Sources) -> Monitoring | None:
        listen = self._settings.http
        if listen is None:
            return None
        try:
            monitoring = Monitoring(listen, sources, shares_port=self._shares_port)
        except OSError:
            raise StartRefused(
                cannot_listen(listen, "the address is in use, or is none of this machine", "--http")
            ) from None
        monitoring.start()
        log.info("monitoring_started", address=monitoring.address)
        return monitoring

    async def _lease_or_stop(self, holding: Holding) -> None:
        """Returns once there is a lease, or nobody needs one any more."""
        timing = self._timing
        while holding.capture() is None and not self._stop.is_set():
            await timing.sleep_until_or(timing.now_ns() + STOP_LOOK_NS, holding.moved)

    def _server(self, handlers: DoorwardHandlers, health_servicer: BoundedHealth) -> grpc.aio.Server:
        settings = self._settings
        most = settings.max_concurrent_rpcs
        options = channel_options(
            max_message_bytes=MAX_MESSAGE,
            max_metadata_bytes=MAX_METADATA,
            max_streams=most_rpcs_of_a_connection(most),
            shares_port=self._shares_port,
        )
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=most_rpcs(most))
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        if settings.reflection:
            servicer = BoundedReflection((*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME))
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
        # Last, for it answers whatever path the others do not know.
        server.add_generic_rpc_handlers((handlers,))
        return server

    def _bind(self, server: grpc.aio.Server, certificates: Certificates | None) -> str:
        """The address, with the port that it got."""
        listen = self._settings.listen
        try:
            if certificates is None:
                port = server.add_insecure_port(listen)
            else:
                port = server.add_secure_port(listen, server_credentials(certificates))
        except RuntimeError:
            port = 0
        if not port:
            raise StartRefused(cannot_listen(listen, "the address is in use, or is none of this machine"))
        return listen if not Listen(listen).host else f"{listen.rpartition(':')[0]}:{port}"


def run(settings: Settings) -> int:
    """Runs a server until SIGTERM or SIGINT; the exit status. Called by `doorward serve`."""
    telemetry.configure(settings.log_level, settings.log_format)
    return exit_status(_run(settings))


async def _run(settings: Settings) -> None:
    app = App(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)

    def announce(address: str, embedded: EmbeddedPostgres | None) -> None:
        sys.stdout.write(banner(address, settings, embedded_default=embedded is not None))
        sys.stdout.flush()

    await app.run(announce)
