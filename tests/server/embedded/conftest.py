"""Fixtures of the embedded tests: a place on the disk, prepared clusters in it, servers that end with the test."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from doorward_server.embedded.leftovers import find_processes
from doorward_server.embedded.postgres import EmbeddedPostgres
from tests.server.embedded.lives import Life, eventually
from tests.support.postgres import scratch_directory

if TYPE_CHECKING:
    from pathlib import Path

type_of_lives = Callable[..., Awaitable[Life]]


@pytest.fixture(scope="session")
def prepared() -> Iterator[Path]:
    """An archive of a data directory as a server leaves it that was started once and stopped.

    Unpacking takes a tenth of a second, which neither initdb nor `cp` of just written files does.
    """
    with (
        scratch_directory() as directory,
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
    ):
        embedded = EmbeddedPostgres(directory / "data")
        runner.run(embedded.start())
        runner.run(embedded.stop())
        archive = directory / "prepared.tar"
        subprocess.run(["tar", "-cf", archive, "-C", directory / "data", "."], check=True)
        yield archive


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory of this test's own. Afterwards no PostgreSQL works below it, and it is gone."""
    # Not pytest's, which keeps what is in it for three more runs.
    with scratch_directory() as directory:
        try:
            yield directory
            assert not processes_below(directory)
        finally:
            for record in directory.rglob("postgres.socket"):
                # Of a server that a test killed; a stopped one has removed it.
                shutil.rmtree(record.read_text().partition("\n")[0], ignore_errors=True)


@pytest.fixture
def data_dir(prepared: Path, place: Path) -> Path:
    """A data directory that has a cluster already."""
    return unpacked(prepared, place / "data")


def processes_below(directory: Path) -> set[int]:
    """The PostgreSQL processes of every cluster below it."""
    return {pid for path in directory.rglob("PG_VERSION") for pid in find_processes(path.parent)}


def unpacked(prepared: Path, to: Path) -> Path:
    """The prepared data directory at another path."""
    to.mkdir(parents=True)
    subprocess.run(["tar", "-xpf", prepared, "-C", to], check=True)
    return to


@pytest.fixture
async def embedded(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A started embedded PostgreSQL."""
    server = EmbeddedPostgres(data_dir)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def live(place: Path) -> AsyncIterator[type_of_lives]:  # `place` outlives what lives in it
    """Begins a server as a process; what still lives at the end of the test is killed, and its PostgreSQL with it."""
    lives: list[Life] = []

    async def begin(directory: Path, *, prefix: tuple[str, ...] = (), once: bool = False) -> Life:
        lives.append(await Life.begin(directory, prefix=prefix, once=once))
        return lives[-1]

    yield begin
    for life in lives:
        if life.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                life.process.kill()
        await life.ended()
    await eventually(lambda: not processes_below(place))
