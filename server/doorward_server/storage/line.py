"""A connection of one's own, for what must not wait behind others: renewals, reports, the feed (design section 7).

An operation that is not answered in time is abandoned with its connection, never cancelled at the server: a cancelled
wait for a standby would be reported as success. The next call connects anew. Called by `replica/`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from doorward_server.storage.connect import Connection, Watchdog, answered_by, terminate, warnings_of
from doorward_server.storage.failures import DRIVER_ERRORS, DatabaseUnusable, translate, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from doorward_server.storage.pool import Database

__all__ = ["Line", "Unanswered"]

T = TypeVar("T")

CLOSING_S: Final = 1.0

log = structlog.get_logger(__name__)


class Unanswered(Exception):
    """No answer in time: what was asked may have been done or not. The connection is gone."""


class Line:
    """One connection, made at the first call and anew after every loss. One operation at a time, others await their turn."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._turn = asyncio.Lock()
        self._listeners: list[tuple[str, Callable[[], None]]] = []
        # The host that left the last call unanswered: another one comes first, once.
        self._silent: int | None = None

    async def call(self, operation: Callable[[Connection], Awaitable[T]], timeout_s: float) -> T:
        """What `operation` returns; `timeout_s` covers the wait for the turn and for a new connection too.

        Raises: Unanswered; errors.Unavailable (the line broke, or the server warned that a commit may be lost);
        StatementRefused. After any of them, as after any error of `operation`, the connection is gone.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):  # nothing was sent yet: this may be cancelled
                await self._turn.acquire()
        except TimeoutError:
            raise Unanswered from None
        try:
            connection = await self._connected(deadline)
            return await self._answered(connection, operation, deadline)
        finally:
            self._turn.release()

    async def listen(self, channel: str, on_notify: Callable[[], None]) -> None:
        """Calls `on_notify` for each NOTIFY on `channel`, and when the connection is lost, since news may be missed then.

        Holds for every later connection too; without one now, the next call makes it. Under transaction pooling nothing
        is listened to: the poll carries the news.
        """
        if self._database.pooler == "transaction":
            return
        self._listeners.append((channel, on_notify))
        async with self._turn:
            self.terminate()

    async def found_primary(self) -> None:
        """What the last call wrote was acknowledged: nobody goes on with a connection that leads elsewhere."""
        if self._connection is not None:
            await self._database.found_primary(self._connection)

    def terminate(self) -> None:
        """Drops the connection at once; an operation in flight ends with an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            terminate(connection)

    async def close(self) -> None:
        """Ends the connection: with a goodbye if nothing is in flight."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._turn.locked():
            terminate(connection)
            return
        try:
            await connection.close(timeout=CLOSING_S)
        except DRIVER_ERRORS:
            terminate(connection)

    async def _connected(self, deadline: float) -> Connection:
        connector = self._database.connector
        if self._connection is not None and not self._connection.is_closed():
            if not connector.hosts.is_astray(self._connection):
                return self._connection
            self.terminate()
        silent, self._silent = self._silent, None
        try:
            async with asyncio.timeout_at(deadline):
                connection = await connector.connect(silent)
                await self._listen_on(connection)
        except TimeoutError:
            raise Unanswered from None
        except DRIVER_ERRORS as error:
            raise translate(error) from None
        except DatabaseUnusable as error:
            log.error("database_unusable", why=str(error))
            raise unavailable() from None
        connection.add_termination_listener(self._lost)
        self._connection = connection
        return connection

    async def _listen_on(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        try:
            for channel, on_notify in self._listeners:
                await connection.add_listener(channel, lambda *_, heard=on_notify: heard())
        except BaseException:  # nobody else knows of it yet
            terminate(connection)
            raise

    async def _answered(
        self, connection: Connection, operation: Callable[[Connection], Awaitable[T]], deadline: float
    ) -> T:
        watchdog: Watchdog | None = None
        try:
            with answered_by(connection, deadline) as watchdog, warnings_of(connection) as warnings:
                answer = await operation(connection)
        except DRIVER_ERRORS as error:
            self.terminate()
            if watchdog is not None and watchdog.fired:
                self._silent = self._database.connector.hosts.of(connection)
                raise Unanswered from None
            raise translate(error) from None
        except BaseException:  # a caller's cancellation too: before asyncpg's own cancel request can start
            self.terminate()
            raise
        if warnings:
            self.terminate()
            log.warning("database_unavailable", error="commit with a warning", sqlstates=warnings)
            raise unavailable()
        return answer

    def _lost(self, connection: object) -> None:
        if connection is self._connection:
            for _, on_notify in self._listeners:
                on_notify()
