"""Builds everything, starts and stops it in order, and owns the one TaskGroup (design section 9; style.md, Shape).

Long-lived parts have `run()` and start nothing themselves. A part that fails takes the process down: a server without its
lease keeper or its feed must not linger.
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
from doorward_server.api.health import SERVICES, HealthKeeper
from doorward_server.api.server import DoorwardHandlers, channel_options
from doorward_server.api.system_admin import SystemAdmin
from doorward_server.api.token_admin import TokenAdmin
from doorward_server.api.wrapper import Binder
from doorward_server.credentials.hashing import Hasher
from doorward_server.credentials.pepper_file import PepperInvalid
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.postgres import EmbeddedPostgres
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
from doorward_server.start import StartRefused, first_credentials, open_database, open_ring
from doorward_server.storage.failures import DatabaseUnusable
from doorward_server.storage.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from doorward_server.api.methods import Method
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.storage.pool import Database

__all__ = ["App", "run"]

log = structlog.get_logger()

MAX_MESSAGE: Final = 4 * 1024 * 1024
MAX_METADATA: Final = 8 * 1024
# Why a server cannot run; the text of each is for whoever started it.
UNABLE: Final = (StartRefused, DatabaseUnusable, EmbeddedUnavailable, PepperInvalid)
# A million long-lived objects make a full collection take 200 ms (measured: design 11), so those are rare.
GC_THRESHOLDS: Final = (10_000, 20, 1_000)


class _Replica:
    """The parts of one replica, wired. Nothing runs yet."""

    def __init__(self, settings: Settings, database: Database, ring: PepperRing, timing: Timing, tasks: Tasks) -> None:
        self.timing = timing
        tables = Tables(settings.token_cache)
        self.holding = Holding(self.timing, hold_ms=settings.hold_ms, tables=tables, proofs=settings.token_cache)
        self.lines = [Line(database) for _ in range(3)]
        self.keeper = LeaseKeeper(self.holding, self.lines[0], settings.listen)
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
    revoke, waiting = Revoke(database, mutations, callers), AwaitPropagation(database, mutations)
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

    def __init__(self, settings: Settings, *, timing: Timing | None = None) -> None:
        """`timing` is for tests, which put a clock of their own under everything."""
        self._settings = settings
        self._timing = timing or Timing(SystemClock())
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
        if settings.database_url is not None:
            await self._run_on(settings.database_url.get_secret_value(), None, announce)
            return
        embedded = EmbeddedPostgres(settings.data_dir)
        await embedded.start()
        try:
            await self._run_on(embedded.url, embedded, announce)
        finally:
            await embedded.stop()

    async def _run_on(
        self, url: str, embedded: EmbeddedPostgres | None, announce: Callable[[str, EmbeddedPostgres | None], None]
    ) -> None:
        settings = self._settings
        ring = open_ring(settings)
        database = await open_database(settings, url, ring)
        try:
            if embedded is not None:
                await first_credentials(database, ring, settings.data_dir)
            async with asyncio.TaskGroup() as group:
                tasks = Tasks(group)
                replica = _Replica(settings, database, ring, self._timing, tasks)
                await self._serve(
                    group, tasks, replica, _methods(settings, database, ring, replica), embedded, announce
                )
        finally:
            await database.close()

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
        server, address = self._listener(methods, replica, health_servicer)
        runs: list[Coroutine[None, None, object]] = [replica.reporter.run(), replica.feed.run(), replica.hasher.run()]
        runs.append(health.run())
        if embedded is not None:
            runs.append(embedded.run())
        keeper = group.create_task(replica.keeper.run())
        parts = [group.create_task(work) for work in runs]
        await server.start()
        try:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            await self._first_lease(replica.holding)
            announce(address, embedded)
            await self._stop.wait()
            log.info("server_stopping")
            await health.leave()
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
        log.info("server_stopped")

    async def _first_lease(self, holding: Holding) -> None:
        """So that what is tried right after the announcement is answered; without a database there is none, and no hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.hold):
                await holding.moved.until(lambda: holding.capture() is not None or self._stop.is_set())

    def _listener(
        self, methods: list[Method], replica: _Replica, health_servicer: health_aio.HealthServicer
    ) -> tuple[grpc.aio.Server, str]:
        settings = self._settings
        server = grpc.aio.server(
            options=channel_options(max_message_bytes=MAX_MESSAGE, max_metadata_bytes=MAX_METADATA),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
        )
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        if settings.reflection:
            reflection.enable_server_reflection((*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
        # Last, for it answers whatever path the others do not know.
        server.add_generic_rpc_handlers((DoorwardHandlers(methods, replica.timing),))
        listen = Listen(settings.listen)
        try:
            port = server.add_insecure_port(settings.listen)
        except RuntimeError:
            port = 0
        if not port:
            raise StartRefused(
                f"cannot listen on {settings.listen}: the address is in use, or is none of this machine; choose another "
                "one with --listen"
            )
        return server, settings.listen if not listen.host else f"{settings.listen.rpartition(':')[0]}:{port}"


def run(settings: Settings) -> int:
    """Runs a server until SIGTERM or SIGINT; the exit status. Called by `doorward serve`."""
    telemetry.configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(_run(settings))
    except UNABLE as refused:
        sys.stderr.write(f"doorward: {refused}\n")
        return 2
    except ExceptionGroup as failures:
        unable, others = failures.split(UNABLE)
        for failure in unable.exceptions if unable else ():
            sys.stderr.write(f"doorward: {failure}\n")
        if others is None:
            return 2
        log.error("server_failed", exc_info=others)
        return 1
    return 0


async def _run(settings: Settings) -> None:
    app = App(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)

    def announce(address: str, embedded: EmbeddedPostgres | None) -> None:
        sys.stdout.write(banner(address, settings, embedded_default=embedded is not None))
        sys.stdout.flush()

    await app.run(announce)


def banner(address: str, settings: Settings, *, embedded_default: bool) -> str:
    """What a person sees when the server is up: where it listens, where the credentials are, what to try."""
    lines = [f"Doorward listens on {address}"]
    if embedded_default:
        token = settings.data_dir / "operator.token"
        lines += [
            f"Admin credential:   {token}",
            f"Caller credential:  {settings.data_dir / 'caller.token'}",
            "Try:",
            f'  grpcurl -plaintext -H "authorization: Bearer $(cat {token})" {address} doorward.v1.SystemAdmin/ListReplicas',
            f"  doorward replicas --address {address} --token-file {token}",
        ]
    return "\n".join(lines) + "\n"
