"""The database line of one replica process: a proxy that a test cuts, stalls and heals, and the loop that runs them all.

Every line is a Unix socket in a directory of its own, whatever stands behind it. Tests are plain threads; `Background` is
the one event loop beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import asyncpg

from doorward_server.storage import url as database_url
from tests.support.database import CANCEL_REQUEST

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from doorward_server.storage.url import DatabaseUrl

__all__ = ["Background", "Line", "Proxy", "Rows"]

T = TypeVar("T")

PATIENCE_S: Final = 30.0


class Background:
    """An event loop in a thread, for proxies and for SQL of the tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="background", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, run in that loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def close(self) -> None:
        """Ends what still runs, then the loop."""
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Rows:
    """SQL on a database, on one connection of the test's own."""

    def __init__(self, background: Background, url: str) -> None:
        self._background = background
        self._connection: asyncpg.Connection[asyncpg.Record] = background.run(asyncpg.connect(url))

    def fetch(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows of one statement."""
        return [tuple(row) for row in self._background.run(self._connection.fetch(sql, *arguments))]

    def value(self, sql: str, *arguments: object) -> Any:
        """The first column of the first row; None without one."""
        return self._background.run(self._connection.fetchval(sql, *arguments))

    def close(self) -> None:
        """Ends the connection."""
        self._background.run(self._connection.close(timeout=PATIENCE_S))


class Proxy:
    """Stands between two parts; forwards both ways, until the test says otherwise."""

    server: asyncio.Server

    def __init__(self, background: Background) -> None:
        self.background = background
        self._gates: dict[bool, asyncio.Event] = {}
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self.cancel_requests = 0
        # Pieces of the conversation that were held back, ever.
        self.held_back = 0

    def stall(self, *, asks: bool = True, answers: bool = True) -> None:
        """From now on nothing arrives that the database is asked, or that it answers, or neither; nobody is told."""
        self.background.run(self._set(asks=not asks, answers=not answers))

    def cut(self) -> None:
        """Breaks every connection, and new ones are refused, until `heal`."""
        self.background.run(self._cut())

    def heal(self) -> None:
        """What was held back arrives, in order, and new connections are taken."""
        self._refusing = False
        self.background.run(self._set(asks=True, answers=True))

    def close(self) -> None:
        """Ends it, with every connection."""
        self.background.run(self._close())

    async def _open_gates(self) -> None:
        # An Event belongs to the loop that first waits for it.
        self._gates = {answers: asyncio.Event() for answers in (False, True)}
        await self._set(asks=True, answers=True)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to what stands behind it."""
        raise NotImplementedError

    async def _set(self, *, asks: bool, answers: bool) -> None:
        for gate, is_open in ((self._gates[False], asks), (self._gates[True], answers)):
            if is_open:
                gate.set()
            else:
                gate.clear()

    async def _cut(self) -> None:
        self._refusing = True
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        self.server.close()
        await self._cut()
        await self._set(asks=True, answers=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, back = await self._reach()
        except OSError:  # nobody is there
            writer.transport.abort()
            return
        pair = {writer, back}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, back, answers=False))
                group.create_task(self._forward(there, writer, answers=True))
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        first = not answers
        with contextlib.suppress(OSError):  # one end has gone
            while data := await source.read(65536):
                if first and data.startswith(CANCEL_REQUEST):
                    self.cancel_requests += 1
                first = False
                self.held_back += not self._gates[answers].is_set()
                await self._gates[answers].wait()
                sink.write(data)
                await sink.drain()
            # The end of the conversation is held back like what was said before.
            await self._gates[answers].wait()
            sink.write_eof()


class Line(Proxy):
    """Stands between one replica and the database."""

    def __init__(self, background: Background, url: str, directory: Path) -> None:
        """Listens in `directory`, which must be new; `.url` leads through it."""
        super().__init__(background)
        self._target = database_url.parse(url)
        self.url = _url_through(self._target, directory)
        directory.mkdir(mode=0o700)
        self.server = background.run(self._listen(directory / ".s.PGSQL.5432"))

    async def _listen(self, path: Path) -> asyncio.Server:
        await self._open_gates()
        return await asyncio.start_unix_server(self._serve, str(path))

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        (host, port), *_ = self._target.hosts
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)


def _url_through(target: DatabaseUrl, directory: Path) -> str:
    return (
        f"postgresql:///{quote(target.database)}?host={quote(str(directory))}&port=5432"
        f"&user={quote(target.user)}&sslmode=disable"
    )
