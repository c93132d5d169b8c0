"""What works on the database without a server: migrations, a new epoch, the audit, pepper keys, a direct operator.

The database is the one that --database-url names; else the data directory's own PostgreSQL: a running server's, or, where
none runs, one that is started for the moment. What is wrong with it is said in words. Imported by the commands that need
it when they run, since it brings half the server with it. Design sections 4, 6 and 9.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

from doorward.clock import SystemClock
from doorward_server import telemetry
from doorward_server.cli.failure import fail
from doorward_server.credentials.pepper import PepperInvalid
from doorward_server.embedded.directory import URL_FILE
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.postgres import EmbeddedPostgres
from doorward_server.errors import Refused
from doorward_server.replica.timing import Timing
from doorward_server.service.audit_chain import ChainBroken, verify
from doorward_server.service.audit_export import exported, replays
from doorward_server.service.epochs import begin_new_epoch
from doorward_server.service.operators import create_operators, new_operator
from doorward_server.service.pepper_loss import KeyUnknown, declare_lost
from doorward_server.start import StartRefused, open_database, open_ring
from doorward_server.storage import migrate, peppers
from doorward_server.storage.failures import DatabaseUnusable, StatementRefused
from doorward_server.storage.pool import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from doorward.core.secret import Secret
    from doorward_server.model import OperatorRole
    from doorward_server.service.audit_chain import Noted, Verified
    from doorward_server.service.audit_export import Since
    from doorward_server.service.epochs import EpochBegun
    from doorward_server.settings import Settings
    from doorward_server.storage.epochs import Departed

__all__ = [
    "create_operator",
    "declare_pepper_lost",
    "export_audit",
    "forget_pepper_key",
    "migrate_schema",
    "new_epoch",
    "verify_audit",
]

T = TypeVar("T")

# Nobody's check waits for these statements: what a server's hold would cut off may take its time here.
_HOLD_MS: Final = 60_000
# Why it cannot be done; the text of each is for whoever asked.
_UNABLE: Final = (DatabaseUnusable, EmbeddedUnavailable, PepperInvalid, StartRefused, StatementRefused)


def migrate_schema(settings: Settings) -> list[str]:
    """Applies the migrations that are pending; their names.

    Raises:
        typer.Exit: it could not be done; why was said.
    """

    async def operation() -> list[str]:
        async with _opened_database(settings) as database:
            return await migrate.migrate(database)

    return _run(operation())


def new_epoch(settings: Settings, tell: Callable[[str], None]) -> EpochBegun:
    """Begins a new epoch after a restore; `tell` is told what is waited for.

    Raises:
        typer.Exit: it could not be done; why was said.
    """

    def on_wait(departed: Departed) -> None:
        tell(
            f"Waiting {departed.hold_ms / 1000:g} s, until no server can hold a lease of before "
            f"({departed.replicas} in the backup) …"
        )

    async def operation() -> EpochBegun:
        async with _opened_database(settings) as database:
            return await begin_new_epoch(database, Timing(SystemClock()), settings.hold_ms, on_wait)

    return _run(operation())


def forget_pepper_key(settings: Settings, key_id: str) -> peppers.Dependents:
    """What depends on the key; if nothing does, servers no longer insist on having it.

    Raises:
        typer.Exit: it could not be done; why was said.
    """

    async def operation() -> peppers.Dependents:
        async with _opened_database(settings) as database, database.reading() as connection:
            return await peppers.forget_key(connection, key_id)

    return _run(operation())


def declare_pepper_lost(settings: Settings, key_id: str) -> peppers.Dependents:
    """Lets servers start without the key; what depends on it.

    Raises:
        typer.Exit: it could not be done; why was said.
    """

    async def operation() -> peppers.Dependents:
        async with _opened_database(settings) as database:
            try:
                return await declare_lost(database, key_id)
            except KeyUnknown as unknown:
                known = ", ".join(unknown.known) or "none"
                fail(f"the database knows no pepper key of this id; it knows: {known}. Nothing was changed")

    return _run(operation())


def create_operator(settings: Settings, role: OperatorRole, display_name: str) -> Secret:
    """Makes an operator, in a deployment that is begun where there is none; its secret.

    Raises:
        typer.Exit: it could not be done; why was said.
    """

    async def operation() -> Secret:
        async with _database_url(settings) as url:
            ring = open_ring(settings)  # not before: the embedded PostgreSQL claims the directory first
            database = await open_database(settings, url, ring)
            try:
                new = new_operator(ring, role, display_name)
                await create_operators(database, [new])
            finally:
                await database.close()
            return new.secret

    return _run(operation())


def verify_audit(settings: Settings, noted: Noted | None) -> Verified | ChainBroken:
    """Walks along the audit's chain: it holds, or where it does not.

    Raises:
        typer.Exit: it could not be done; why was said.
    """

    async def operation() -> Verified | ChainBroken:
        async with _opened_database(settings) as database:
            try:
                return await verify(database, noted)
            except ChainBroken as broken:
                return broken

    return _run(operation())


def export_audit(settings: Settings, since: Since, *, revocations: bool, write: Callable[[str], None]) -> int:
    """Hands the audit since then to `write`, line by line, or what must be done again after a restore; how many lines.

    Raises:
        typer.Exit: it could not be done; why was said.
    """

    async def operation() -> int:
        count = 0
        async with _opened_database(settings) as database:
            async for line in replays(database, since) if revocations else exported(database, since):
                write(f"{json.dumps(line)}\n")
                count += 1
        return count

    return _run(operation())


def _run(operation: Coroutine[Any, Any, T]) -> T:
    telemetry.configure("warning", "text")
    try:
        return asyncio.run(operation)
    except _UNABLE as error:
        fail(str(error))
    except Refused as refused:
        fail(f"{refused.code} ({refused.reason}): {refused.message}")


@contextlib.asynccontextmanager
async def _opened_database(settings: Settings) -> AsyncIterator[Database]:
    async with _database_url(settings) as url:
        database = await _opened(url, settings)
        try:
            yield database
        finally:
            await database.close()


@contextlib.asynccontextmanager
async def _database_url(settings: Settings) -> AsyncIterator[str]:
    """The URL of the database that these settings mean, which is up as long as the block lasts."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    running = await _running_url(settings)
    if running is not None:
        yield running
        return
    embedded = EmbeddedPostgres(settings.data_dir)
    await embedded.start()
    try:
        yield embedded.url
    finally:
        await embedded.stop()


async def _running_url(settings: Settings) -> str | None:
    """The URL of the data directory's PostgreSQL, if a server has it up; the file outlives the server that wrote it."""
    try:
        url = (settings.data_dir / URL_FILE).read_text(encoding="utf-8").strip()
        database = await _opened(url, settings)
    except (OSError, DatabaseUnusable):
        return None
    await database.close()
    return url


async def _opened(url: str, settings: Settings) -> Database:
    database = Database(
        url,
        hold_ms=_HOLD_MS,
        pool_size=2,
        pooler=settings.database_pooler,
        accept_failover_loss=settings.accept_failover_loss,
    )
    await database.open()
    return database
