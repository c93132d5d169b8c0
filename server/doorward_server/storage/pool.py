"""The database as the other layers hold it: pooled sessions, each bounded, none trusted after a failover (design section 6).

`Database.reading` lends a connection for single statements; `changes.commit` takes its own. An operation that is not
answered in time, or whose caller leaves, costs its connection: the server never gets a cancel request, which could hit
a commit. Built once by `app.py`. Driver errors end here (`failures.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import structlog

from doorward_server.storage import url as database_url
from doorward_server.storage.connect import Connection, Connector, Pooler, answered_within, terminate
from doorward_server.storage.failures import (
    DRIVER_ERRORS,
    DatabaseUnusable,
    is_lost,
    name_of,
    translate,
    unavailable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg.pool import PoolConnectionProxy

__all__ = ["Connection", "Database", "Pooler"]

CLOSING_S: Final = 1.0
# A pooled connection that was idle this long is closed: before a firewall forgets it, after a lull ended.
IDLE_S: Final = 300.0

log = structlog.get_logger(__name__)


class Database:
    """One PostgreSQL (or one primary with its standbys), reached through `url`.

    `hold_ms` is this process's hold (design section 7): no statement may take longer, no COMMIT stays unanswered for
    more than twice as long. At most `pool_size` connections, of which changes take no more than half, so that a load
    finds one also while writers wait for a lock.
    """

    def __init__(
        self,
        url: str,
        *,
        hold_ms: int,
        pool_size: int = 10,
        pooler: Pooler = "session",
        accept_failover_loss: bool = False,
    ) -> None:
        self.hold_ms = hold_ms
        self.hold_s = hold_ms / 1000
        self.pooler: Pooler = pooler
        self.connector = Connector(
            database_url.parse(url),
            pooler,
            timeout_s=min(max(self.hold_s / 2, 1.0), 5.0),
            statement_ms=hold_ms * 7 // 8,
            accept_failover_loss=accept_failover_loss,
        )
        self._pool_size = pool_size
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._change_slots = asyncio.Semaphore(max(1, pool_size // 2))

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """A connection outside the pool, for the start. Raises: DatabaseUnusable, whose text says what to do."""
        try:
            return await self.connector.connect()
        except DRIVER_ERRORS as error:
            places = self.connector.url.places
            raise DatabaseUnusable(
                f"The database at {places} cannot be used ({name_of(error)}). Is it running, and does the database URL lead "
                "to it?"
            ) from None

    async def open(self) -> None:
        """Connects once, so that a database that cannot be used is known at once.

        Raises: DatabaseUnusable, whose text says what to do.
        """
        terminate(await self.connect())
        self._pool = await asyncpg.create_pool(
            min_size=0,
            max_size=self._pool_size,
            max_inactive_connection_lifetime=IDLE_S,
            connect=self._connect,
            reset=_keep,
        )

    async def close(self) -> None:
        """Waits a moment for connections in use, then drops what is left."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        watchdog = asyncio.get_running_loop().call_later(CLOSING_S, pool.terminate)
        try:
            await pool.close()
        finally:
            watchdog.cancel()

    async def found_primary(self, connection: Connection) -> None:
        """A write was acknowledged on `connection`: the pool lends nothing any more that may lead to another host."""
        if self.connector.hosts.found_primary(connection):
            await self.expire()

    async def expire(self) -> None:
        """No connection that exists now is lent again: for who learned that one led to another history."""
        if self._pool is not None:
            await self._pool.expire_connections()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection in autocommit: each statement sees a snapshot of its own. The whole block may take one hold.

        Also for the modules that own rows outside the one door (replica rows, digests written back).
        Raises: errors.Unavailable; StatementRefused.
        """
        async with self.session() as connection:
            with answered_within(connection, self.hold_s):
                yield connection

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A connection, without a bound of its own: for storage's modules."""
        connection = await self._acquire()
        pool = self._pool
        try:
            yield connection
        except DRIVER_ERRORS as error:
            if is_lost(error):
                terminate(connection)
                await self.expire()
            raise translate(error) from None
        except Exception:
            raise
        except BaseException:  # cancelled: at once, before asyncpg's own cancel request can start
            terminate(connection)
            raise
        finally:
            if pool is not None:
                with contextlib.suppress(*DRIVER_ERRORS):
                    await pool.release(connection)

    @contextlib.asynccontextmanager
    async def change_session(self) -> AsyncIterator[Connection]:
        """A session for one change; waits for its turn no longer than one hold."""
        try:
            async with asyncio.timeout(self.hold_s):
                await self._change_slots.acquire()
        except TimeoutError:
            log.warning("database_unavailable", error="no turn for a change")
            raise unavailable() from None
        try:
            async with self.session() as connection:
                yield connection
        finally:
            self._change_slots.release()

    async def _acquire(self) -> PoolConnectionProxy[asyncpg.Record]:
        if self._pool is None:
            raise unavailable()
        try:
            return await self._pool.acquire(timeout=self.hold_s / 2)
        except DRIVER_ERRORS as error:  # of a new connection or of the wait for one: the others are none the worse
            raise translate(error) from None
        except DatabaseUnusable as error:
            log.error("database_unusable", why=str(error))
            raise unavailable() from None

    async def _connect(self, *_args: object, **_kwargs: Any) -> asyncpg.Connection[asyncpg.Record]:
        return await self.connector.connect()


async def _keep(_connection: object) -> None:
    """Nothing to reset: settings are made with SET LOCAL, and no pooled session listens."""
