"""Opens one connection: the first host that can be written to, with our settings, checked (design section 6, External).

Nothing is read from the environment. A host that does not answer costs its own time-out, not that of the others.
Called by `pool.Database` for its pool and by `line.Line` for lines of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from doorward_server.storage.failures import DRIVER_ERRORS, DatabaseUnusable
from doorward_server.storage.hosts import Hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpg.pool import PoolConnectionProxy

    from doorward_server.storage.url import DatabaseUrl

__all__ = [
    "Connection",
    "Connector",
    "Pooler",
    "Watchdog",
    "answered_by",
    "answered_within",
    "terminate",
    "warnings_of",
]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pooler: TypeAlias = Literal["session", "transaction"]

OLDEST_SERVER: Final = 150000
# A commit that returns under these is on the disk of more than one server.
REPLICATED: Final = frozenset({"on", "remote_apply"})

READ_SETTINGS = """
SELECT current_setting('server_version_num')::int AS version,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('synchronous_standby_names') AS standbys,
       current_setting('server_encoding') AS encoding
"""


def terminate(connection: Connection) -> None:
    """Drops `connection` without a word to the server but its end: above all no cancel request. May be repeated."""
    with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it back already
        connection.terminate()


def _is_about_tls(error: Exception) -> bool:
    """Whether the host may well take the other kind of line: it declined ours, or who comes on it."""
    return type(error) is ConnectionError or isinstance(
        error, ssl.SSLError | asyncpg.InvalidAuthorizationSpecificationError
    )


class Watchdog:
    """Drops a connection when its time is up, so that whoever waits for its answer gets an error instead."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.fired = False

    def fire(self) -> None:
        """Called by the event loop."""
        self.fired = True
        terminate(self._connection)


@contextlib.contextmanager
def answered_by(connection: Connection, deadline: float) -> Iterator[Watchdog]:
    """Drops `connection` if the block is not left by `deadline`, a reading of the event loop's clock."""
    watchdog = Watchdog(connection)
    timer = asyncio.get_running_loop().call_at(deadline, watchdog.fire)
    try:
        yield watchdog
    finally:
        timer.cancel()


def answered_within(connection: Connection, within_s: float) -> contextlib.AbstractContextManager[Watchdog]:
    """Drops `connection` if the block takes longer than `within_s`."""
    return answered_by(connection, asyncio.get_running_loop().time() + within_s)


@contextlib.contextmanager
def warnings_of(connection: Connection) -> Iterator[list[str]]:
    """Collects the SQLSTATEs of the warnings that the server sends during the block."""
    warnings: list[str] = []

    def note(_connection: object, message: Any) -> None:
        if message.severity_en == "WARNING":
            warnings.append(str(message.sqlstate))

    connection.add_log_listener(note)
    try:
        yield warnings
    finally:
        with contextlib.suppress(asyncpg.InterfaceError):  # a connection that is gone has no listeners
            connection.remove_log_listener(note)


@dataclass(slots=True)
class Connector:
    """How to connect. `timeout_s` is for each attempt at a host; `statement_ms` bounds a statement at the server.

    `hosts` knows which of them to begin with.
    """

    url: DatabaseUrl
    pooler: Pooler
    timeout_s: float
    statement_ms: int
    accept_failover_loss: bool
    hosts: Hosts = field(init=False)

    def __post_init__(self) -> None:
        self.hosts = Hosts(len(self.url.hosts))

    async def connect(self, silent: int | None = None) -> asyncpg.Connection[asyncpg.Record]:
        """A connection to a server that takes writes; the host that was `silent` is tried last.

        Raises: DatabaseUnusable, if that server is too old or may forget what it acknowledged; else the last host's error.
        """
        last: Exception = DatabaseUnusable("The database URL names no host.")
        for index in self.hosts.in_order(silent):
            host, port = self.url.hosts[index]
            for tls in (None,) if host.startswith("/") else self.url.tls:
                self.hosts.trying(index)
                try:
                    connection = await self._connect_to(host, port, tls)
                except DRIVER_ERRORS as error:
                    last = error
                    if not _is_about_tls(error):
                        break
                else:
                    self.hosts.reached(index, connection)
                    return connection
        raise last

    async def _connect_to(self, host: str, port: int, tls: ssl.SSLContext | None) -> asyncpg.Connection[asyncpg.Record]:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            host=host,
            port=port,
            user=self.url.user,
            password=self.url.password,
            database=self.url.database,
            ssl=tls if tls is not None else False,
            direct_tls=False,
            target_session_attrs=SessionAttribute.read_write,
            krbsrvname="postgres",
            gsslib="gssapi",
            timeout=self.timeout_s,
            # PgBouncer hands the next transaction to another session, which knows no statement of ours.
            statement_cache_size=0 if self.pooler == "transaction" else 100,
            server_settings=self._server_settings(),
        )
        try:
            self._check(await connection.fetchrow(READ_SETTINGS, timeout=self.timeout_s))
        except BaseException:
            terminate(connection)
            raise
        return connection

    def _server_settings(self) -> dict[str, str]:
        settings = {"application_name": "doorward", "timezone": "UTC"}
        if self.pooler == "session":  # PgBouncer refuses the others at log-in
            settings |= {
                "statement_timeout": str(self.statement_ms),
                "idle_in_transaction_session_timeout": str(self.statement_ms),
                "default_transaction_isolation": "read committed",
                "client_min_messages": "warning",  # less, and a COMMIT's warning would be swallowed
                "jit": "off",
            }
        return settings

    def _check(self, row: Any) -> None:
        if row["version"] < OLDEST_SERVER:
            raise DatabaseUnusable(
                f"PostgreSQL {row['version'] // 10000} is too old: Doorward needs PostgreSQL 15 or newer."
            )
        if row["encoding"] != "UTF8":
            raise DatabaseUnusable(f"The database's encoding is {row['encoding']}: Doorward needs UTF8.")
        if self.accept_failover_loss:
            return
        if row["synchronous_commit"] == "off":
            raise DatabaseUnusable(
                "The database has synchronous_commit=off: a crash could undo a revocation that was acknowledged. "
                "Turn it on, or accept that with --accept-failover-loss."
            )
        if len(self.url.hosts) > 1 and (not row["standbys"] or row["synchronous_commit"] not in REPLICATED):
            raise DatabaseUnusable(
                "The database URL names several hosts, but the primary does not replicate synchronously: a failover "
                "could undo a revocation that was acknowledged. Set synchronous_standby_names, and synchronous_commit "
                "to on or remote_apply, or accept that with --accept-failover-loss."
            )
