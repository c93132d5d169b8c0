"""Builds everything, starts and stops it in order, and owns the one TaskGroup (design section 9; style.md, Shape).

Long-lived parts have `run()` and start nothing themselves. A part that fails takes the process down: a server without its
lease keeper or its feed must not linger. Run by `doorward serve`, and by `workers/worker.py` in each process of several.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from typing import TYPE_CHECKING, Final

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from doorward.clock import SystemClock
from doorward.core.token_table import Tables
from doorward_server import telemetry
from doorward_server.api.account_admin import AccountAdmin
from doorward_server.api.authorizer import AuthorizerApi
from doorward_server.api.connections import let_go
from doorward_server.api.health import SERVICES, HealthKeeper
from doorward_server.api.server import DoorwardHandlers, channel_options
from doorward_server.api.system_admin import SystemAdmin
from doorward_server.api.token_admin import TokenAdmin
from doorward_server.api.wrapper import Binder
from doorward_server.credentials.hashing import Hasher
from doorward_server.monitoring import Monitoring
from doorward_server.replica.barrier import Barrier
from doorward_server.replica.caches import Caches
from doorward_server.replica.feed import Feed
from doorward_server.replica.holding import Holding
from doorward_server.replica.lease_keeper import LeaseKeeper, Reporter
from doorward_server.replica.recognition import Recognition
from doorward_server.replica.tasks import Tasks
from doorward_server.replica.timing import Timing
from doorward_server.service.accounts import Accounts
from doorward_server.service.authorize import Authorizer
from doorward_server.service.callers import Callers
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.freshness import Freshness
from doorward_server.service.issue import Issue
from doorward_server.service.mutations import Mutations
from doorward_server.service.propagation import AwaitPropagation
from doorward_server.service.revoke import Revoke
from doorward_server.service.system import System
from doorward_server.service.tokens import Tokens
from doorward_server.settings import Listen, Settings
from doorward_server.start import StartRefused, banner, cannot_listen, exit_status, prepared
from doorward_server.storage.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from doorward_server.api.methods import Method
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.embedded.postgres import EmbeddedPostgres
    from doorward_server.storage.pool import Database

__all__ = ["App", "run"]

log = structlog.get_logger()

MAX_MESSAGE: Final = 4 * 1024 * 1024
MAX_METADATA: Final = 8 * 1024
# A million long-lived objects make a full collection take 200 ms (measured: design 11), so those are rare.
GC_THRESHOLDS: Final = (10_000, 20, 1_000)
# While it waits for its first lease, a process that was told to stop does so this soon.
STOP_LOOK_NS: Final = 100_000_000


class _Replica:
    """The parts of one replica, wired. Nothing runs yet."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        ring: PepperRing,
        timing: Timing,
        tasks: Tasks,
        on_registering: Callable[[str], None] | None = None,
    ) -> None:
        self.timing = timing
        tables = Tables(settings.token_cache)
        self.holding = Holding(self.timing, hold_ms=settings.hold_ms, tables=tables, proofs=settings.token_cache)
        self.lines = [Line(database) for _ in range(3)]
        self.keeper = LeaseKeeper(self.holding, self.lines[0], settings.listen, on_registering)
        self.reporter = Reporter(self.holding, self.lines[1], self.keeper)
        self.feed = Feed(self.holding, self.lines[2], listen=settings.database_pooler == "session")
        self.hasher = Hasher(timing.clock)
        self.caches = Caches(self.holding, database, tasks)
        self.recognition = Recognition(self.holding, self.caches, database, ring, self.hasher)
        self.mutations = Mutations(Barrier(database, self.timing), tasks)


def _methods(settings: Settings, database: Database, ring: PepperRing, replica: _Replica) -> list[Method]:
    """Every use case, and the method table over them."""
    holding, mutations = replica.holding, replica.mutations
    callers = Callers(holding, replica.recognition, database, ring)
    catalogs, tokens = Catalogs(), Tokens(database, Catalogs())
    issue = Issue(
        database, mutations, callers, catalogs, ring, replica.hasher, max_live_tokens=settings.max_live_tokens
    )
    accounts = Accounts(database, mutations, callers, catalogs)
    revoke, waiting = Revoke(database, mutations, callers, catalogs), AwaitPropagation(database, mutations)
    authorizer = AuthorizerApi(
        holding,
        Authorizer(holding, replica.caches, replica.recognition),
        callers,
        replica.recognition,
        Freshness(holding, replica.keeper, database),
        tokens,
        max_batch=settings.max_batch,
    )
    binder = Binder(callers)
    return [
        *AccountAdmin(accounts, max_page=settings.max_page).methods(binder),
        *TokenAdmin(tokens, issue, revoke, waiting, settings).methods(binder),
        *authorizer.methods(binder),
        *SystemAdmin(System(database), max_page=settings.max_page).methods(binder),
    ]


class App:
    """One server process, from start to stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        timing: Timing | None = None,
        shares_port: bool = False,
        on_registering: Callable[[str], None] | None = None,
    ) -> None:
        """`timing` is for tests, which put a clock of their own under everything; the others are for a worker.

        One that shares its port with other workers listens only once it holds a lease. `on_registering` is told the
        replica's id before a row is made of it.
        """
        self._settings = settings
        self._timing = timing or Timing(SystemClock())
        self._shares_port = shares_port
        self._on_registering = on_registering
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begins the graceful stop."""
        self._stop.set()

    async def run(self, announce: Callable[[str, EmbeddedPostgres | None], None]) -> None:
        """Serves until `stop`; `announce` is told the address when calls are taken.

        Raises:
            StartRefused, DatabaseUnusable, EmbeddedUnavailable, PepperInvalid: it cannot start; the text says why.
        """
        settings = self._settings
        async with prepared(settings) as base, asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            replica = _Replica(settings, base.database, base.ring, self._timing, tasks, self._on_registering)
            methods = _methods(settings, base.database, base.ring, replica)
            await self._serve(group, tasks, replica, methods, base.embedded, announce)

    async def _serve(
        self,
        group: asyncio.TaskGroup,
        tasks: Tasks,
        replica: _Replica,
        methods: list[Method],
        embedded: EmbeddedPostgres | None,
        announce: Callable[[str, EmbeddedPostgres | None], None],
    ) -> None:
        health_servicer = health_aio.HealthServicer()
        health = HealthKeeper(replica.holding, health_servicer)
        handlers = DoorwardHandlers(methods, replica.timing)
        server = self._server(handlers, health_servicer)
        # Alone, an address that is taken is found out before anything runs.
        address = "" if self._shares_port else self._bind(server)
        replica.keeper.address = address or replica.keeper.address
        runs: list[Coroutine[None, None, object]] = [replica.reporter.run(), replica.feed.run(), replica.hasher.run()]
        runs.append(health.run())
        if embedded is not None:
            runs.append(embedded.run())
        monitoring = self._monitoring(replica.holding)
        keeper = group.create_task(replica.keeper.run())
        parts = [group.create_task(work) for work in runs]
        try:
            if self._shares_port:
                # Whoever listens gets a share of the connections: not before it can answer.
                await self._lease_or_stop(replica.holding)
            if not self._stop.is_set():
                address = address or self._bind(server)
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
            if address:
                # While there is a lease still, so that what has arrived is answered.
                await let_go(Listen(address).port, handlers.busy_peers)
            # From here on no check passes; running mutations still get their barrier, since feed and reporter go on.
            keeper.cancel()
            await asyncio.wait({keeper})
            await server.stop(self._settings.drain)
            await tasks.drain(self._settings.drain)
            await replica.keeper.leave()
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

    def _monitoring(self, holding: Holding) -> Monitoring | None:
        listen = self._settings.http
        if listen is None:
            return None
        try:
            monitoring = Monitoring(listen, holding, shares_port=self._shares_port)
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

    def _server(self, handlers: DoorwardHandlers, health_servicer: health_aio.HealthServicer) -> grpc.aio.Server:
        settings = self._settings
        options = channel_options(
            max_message_bytes=MAX_MESSAGE, max_metadata_bytes=MAX_METADATA, shares_port=self._shares_port
        )
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_concurrent_rpcs)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        if settings.reflection:
            reflection.enable_server_reflection((*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
        # Last, for it answers whatever path the others do not know.
        server.add_generic_rpc_handlers((handlers,))
        return server

    def _bind(self, server: grpc.aio.Server) -> str:
        """The address, with the port that it got."""
        listen = self._settings.listen
        try:
            port = server.add_insecure_port(listen)
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
