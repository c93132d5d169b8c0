"""A worker names each row to its parent before there is one, and makes none that it could not name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.replica.lease_keeper import LeaseKeeper
from doorward_server.settings import Settings
from doorward_server.storage import replicas
from doorward_server.storage.line import Line
from doorward_server.workers.worker import _Parent, _with_own_page
from tests.support.replica import Parts, paused, running
from tests.support.stepped import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from doorward_server.storage.pool import Database


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A parent's end of the channel, and its worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


@contextlib.asynccontextmanager
async def kept(database: Database, directory: Path, on_registering: Callable[[str], None]) -> AsyncIterator[Parts]:
    """A replica whose keeper tells of each registration."""
    async with running(database, directory, without=("keeper",)) as parts:
        line = Line(database)
        keeper = asyncio.create_task(LeaseKeeper(parts.holding, line, "test", on_registering).run())
        try:
            yield parts
        finally:
            keeper.cancel()
            await asyncio.wait({keeper})
            line.terminate()


async def rows_of(database: Database) -> list[str]:
    async with database.reading() as connection:
        return [row.replica_id for row in await replicas.read_rows(connection)]


async def test_a_row_is_named_before_anything_is_sent_of_it(
    database: Database, tmp_path: Path, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    with paused(Failpoint.REGISTER_BEFORE_COMMIT) as pause:
        async with kept(database, tmp_path, _Parent(theirs).registering) as parts:
            await pause.reached.wait()
            # Heard however the worker goes on from here: it is in the parent's hands already.
            theirs.close()
            word, _, replica_id = ours.recv(100).decode().strip().partition(" ")
            assert word == "registering"
            assert await rows_of(database) == []
            pause.release()
            await parts.usable()
            assert await rows_of(database) == [replica_id] == [parts.holding.replica_id]


async def test_a_row_that_cannot_be_named_is_not_made(database: Database, tmp_path: Path) -> None:
    told: list[str] = []

    def tell(replica_id: str) -> None:
        told.append(replica_id)
        if len(told) <= 2:
            raise Unavailable("SHUTTING_DOWN", "nobody listens")

    async with kept(database, tmp_path, tell) as parts:
        await eventually(lambda: len(told) > 2)
        await parts.usable()
        assert await rows_of(database) == told[2:]
        assert len(set(told)) == 3


def test_a_parent_that_is_gone_is_told_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    ours.close()
    with pytest.raises(Unavailable) as caught:
        _Parent(theirs).registering("an-id")
    assert caught.value.reason == "SHUTTING_DOWN"


def test_a_parent_that_is_gone_before_it_said_anything_leaves_nothing_to_do(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.setblocking(True)
    ours.sendall(b'{"workers": ')
    ours.close()
    assert _Parent(theirs).settings() is None


@pytest.mark.parametrize(
    ("http", "own"),
    [
        (None, [None, None]),
        ("127.0.0.1:9464", ["127.0.0.1:9464", "127.0.0.1:9465"]),
        ("[::1]:9464", ["[::1]:9464", "[::1]:9465"]),
        ("127.0.0.1:0", ["127.0.0.1:0", "127.0.0.1:0"]),
    ],
)
def test_each_worker_has_a_page_of_its_own(http: str | None, own: list[str | None]) -> None:
    settings = Settings(http=http)
    assert [_with_own_page(settings, number).http for number in (1, 2)] == own
