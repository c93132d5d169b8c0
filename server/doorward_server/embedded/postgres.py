"""The life of our own PostgreSQL: claimed, started, watched, stopped. Knows no table.

Promises that it listens on a Unix socket in a private directory and nowhere else, that nobody but the server's own
user gets in, that it ends with the server, and that its log is bounded. The app builds it, starts it before anything
connects, puts `run()` into its TaskGroup and stops it last. Design sections 6 and 9.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import structlog

from doorward_server.embedded.binaries import Binaries, find_binaries
from doorward_server.embedded.cluster import DATABASE, ROLE, Cluster, find_home, place, settle
from doorward_server.embedded.directory import URL_FILE, DataDirectory
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.identity import choose_identity
from doorward_server.embedded.leftovers import end_leftovers, read_postmaster_file
from doorward_server.embedded.log import BoundedLog
from doorward_server.embedded.programs import program_environ
from doorward_server.embedded.sockets import SocketDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PORT: Final = 5432  # a socket's name only; said in the URL because PGPORT would otherwise say it
# Recovery after a crash replays up to max_wal_size of log before the first connection is taken.
_START_PATIENCE_S: Final = 300.0
# A fast shutdown writes one checkpoint; after this, recovery at the next start is the better choice.
_STOP_STEPS: Final = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_POLL_S: Final = 0.01
_LOG_CHECK_S: Final = 5.0

PARAMETERS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",  # it keeps no bound on size; ours does
    "log_destination": "stderr",
    # DETAIL lines quote rows, and a row here may hold the hash of a secret.
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "jit": "off",  # our statements are short: compiling one costs more than it saves
}

_log = structlog.get_logger("doorward.embedded")


class EmbeddedPostgres:
    """One PostgreSQL of our own, with the database `doorward`, for as long as this process lives.

    `start()` must be awaited on a thread that lives as long as PostgreSQL shall: on Linux it ends with that thread.
    `parameters` go over PARAMETERS, for tests and measurements.
    """

    def __init__(
        self, data_dir: Path, *, binaries: Binaries | None = None, parameters: Mapping[str, str] | None = None
    ) -> None:
        self._directory = DataDirectory(data_dir)
        self._binaries = binaries
        self._parameters = {**PARAMETERS, **(parameters or {})}
        self._log_file = BoundedLog(self._directory.path / "postgres.log")
        self._sockets = SocketDirectory(self._directory)
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The database's URL, for asyncpg and libpq alike, once it is started; nothing in the environment bends it."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """The URL of another database of this server."""
        query = {"host": str(self._sockets.path), "port": PORT, "user": ROLE, "sslmode": "disable",
                 "target_session_attrs": "any"}  # fmt: skip
        return f"postgresql:///{database}?{urlencode(query)}"

    async def start(self) -> None:
        """Returns when it takes connections, with DIR/database.url written.

        Raises: EmbeddedUnavailable. Whatever was begun is undone then, so that a repeat starts afresh.
        """
        self._directory.claim()
        try:
            binaries = self._binaries or find_binaries()
            home = find_home(self._directory)
            identity, major = await choose_identity(binaries, self._directory.path, home)
            cluster = place(self._directory, binaries, identity, home)
            await cluster.prepare(self._directory, major)
            settle(self._directory, cluster)
            with self._directory.named_failure():
                await end_leftovers(cluster.path, self._sockets.recorded())
            cluster.admit(self._directory)
            self._sockets.make(identity)
            await self._launch(cluster)
            self._directory.write(URL_FILE, f"{self.url}\n")
        except BaseException:
            await self.stop()
            raise
        _log.info("embedded_postgres_started", version=major, runs_as=identity.mode, cluster=str(cluster.path))

    async def run(self) -> None:
        """Watches over it, bounding its log; returns after `stop()`.

        Raises: EmbeddedUnavailable, with the end of its log, when it ended by itself.
        """
        process = self._process
        if process is None:
            raise EmbeddedUnavailable("the embedded PostgreSQL was not started")
        while not await _ended_within(process, _LOG_CHECK_S):
            await asyncio.to_thread(self._log_file.bound)
        if self._process is process:  # `stop` takes it away before it ends it
            raise self._failure(f"PostgreSQL ended by itself with status {process.returncode}")

    async def stop(self) -> None:
        """Stops it, fast and with a checkpoint, and gives the directory back; a repeat does nothing."""
        process, self._process = self._process, None
        try:
            if process is not None:
                await _end(process)
        finally:
            try:
                self._sockets.remove()
            finally:
                self._directory.release()

    async def _launch(self, cluster: Cluster) -> None:
        """Starts the postmaster and waits until it says that it is ready."""
        parameters = {**self._parameters, "unix_socket_directories": str(self._sockets.path)}
        arguments = [f"--{name}={value}" for name, value in parameters.items()]
        command = cluster.identity.command(
            cluster.binaries.postgres, "-D", str(cluster.path), *arguments, death_signal=signal.SIGINT
        )
        with self._directory.named_failure():
            log = self._log_file.open()
        try:
            # A session of its own: Ctrl-C in a terminal is for the server, which stops PostgreSQL last.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=log, stderr=log, env=program_environ(), cwd="/", start_new_session=True
            )
        finally:
            os.close(log)
        try:
            async with asyncio.timeout(_START_PATIENCE_S):
                while not self._is_ready(cluster, self._process):  # noqa: ASYNC110 - it tells in a file, and wakes nobody
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise self._failure(f"PostgreSQL was not ready within {_START_PATIENCE_S:.0f} s") from error

    def _is_ready(self, cluster: Cluster, process: Process) -> bool:
        if process.returncode is not None:
            raise self._failure(f"PostgreSQL did not start, it ended with status {process.returncode}")
        with self._directory.named_failure():
            said = read_postmaster_file(cluster.path)
        return said is not None and said.pid == process.pid and said.ready

    def _failure(self, what: str) -> EmbeddedUnavailable:
        return EmbeddedUnavailable(
            f"{what} (data directory {self._directory.path}){self._directory.space_left()}: "
            f"{self._log_file.tail() or 'it said nothing'}; see {self._log_file.path}, or name another server with "
            "--database-url"
        )


async def _end(process: Process) -> None:
    """Fast shutdown; if that takes too long, immediate, and in the end without asking."""
    try:
        for number, patience_s in _STOP_STEPS:
            if process.returncode is None:
                process.send_signal(number)
            if await _ended_within(process, patience_s):
                return
            _log.warning("embedded_postgres_slow_to_stop", signal=signal.Signals(number).name, pid=process.pid)
    except asyncio.CancelledError:
        # Nobody waits any more: it goes at once, and recovers at the next start.
        if process.returncode is None:
            process.send_signal(signal.SIGQUIT)
        raise


async def _ended_within(process: Process, patience_s: float) -> bool:
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        return False
    return True
