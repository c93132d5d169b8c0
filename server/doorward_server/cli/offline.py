"""Runs what works on the database without a server: `db`, `pepper retire`, `operator create --direct`.

The database is the one that --database-url names; else the data directory's own PostgreSQL: a running server's, or, where
none runs, one that is started for the moment. What is wrong with it is said in words. Design sections 4, 6 and 9.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

from doorward_server import telemetry
from doorward_server.cli.failure import fail
from doorward_server.credentials.pepper import PepperInvalid
from doorward_server.embedded.directory import URL_FILE
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.postgres import EmbeddedPostgres
from doorward_server.errors import Refused
from doorward_server.storage.failures import DatabaseUnusable, StatementRefused
from doorward_server.storage.pool import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from doorward_server.settings import Settings

__all__ = ["opened_database", "run", "telling_failures"]

T = TypeVar("T")

# Nobody's check waits for these statements: what a server's hold would cut off may take its time here.
_HOLD_MS: Final = 60_000


def run(operation: Coroutine[Any, Any, T]) -> T:
    """What the operation returns.

    Raises:
        typer.Exit: it could not be done; why was said.
    """
    telemetry.configure("warning", "text")
    with telling_failures():
        return asyncio.run(operation)


@contextlib.contextmanager
def telling_failures() -> Any:
    """Turns what the lower layers refuse into a sentence and the exit code 2."""
    try:
        yield
    except (DatabaseUnusable, EmbeddedUnavailable, PepperInvalid, StatementRefused) as error:
        fail(str(error))
    except Refused as refused:
        bad_fields = "".join(f"\n  {found.field}: {found.description}" for found in refused.violations)
        fail(f"{refused.code} ({refused.reason}): {refused.message}{bad_fields}")


@contextlib.asynccontextmanager
async def opened_database(settings: Settings) -> AsyncIterator[Database]:
    """The database that these settings mean, open.

    Raises: DatabaseUnusable; EmbeddedUnavailable.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
            yield await _opened(url, settings, stack)
            return
        running = _running_url(settings.data_dir)
        if running is not None:
            with contextlib.suppress(DatabaseUnusable):  # left by a server that is gone
                database = await _opened(running, settings, stack)
                yield database
                return
        embedded = EmbeddedPostgres(settings.data_dir)
        await embedded.start()
        stack.push_async_callback(embedded.stop)
        yield await _opened(embedded.url, settings, stack)


def _running_url(data_dir: Path) -> str | None:
    try:
        return (data_dir / URL_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


async def _opened(url: str, settings: Settings, stack: contextlib.AsyncExitStack) -> Database:
    database = Database(
        url,
        hold_ms=_HOLD_MS,
        pool_size=2,
        pooler=settings.database_pooler,
        accept_failover_loss=settings.accept_failover_loss,
    )
    await database.open()
    stack.push_async_callback(database.close)
    return database
