"""PostgreSQL processes that outlived their server, and processes that only look like them."""

# ruff: noqa: ASYNC220 - nothing else runs on a test's loop

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from doorward_server.embedded.binaries import find_binaries
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.identity import choose_identity
from doorward_server.embedded.leftovers import end_leftovers, find_processes, read_postmaster_file
from doorward_server.embedded.postgres import EmbeddedPostgres
from doorward_server.embedded.programs import program_environ
from tests.server.embedded.lives import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="doorward-tests-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
async def postmaster(data_dir: Path, sockets: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A PostgreSQL in the cluster that no living server of Doorward's started."""
    binaries = find_binaries()
    identity, _ = await choose_identity(binaries, data_dir)
    cluster = data_dir / "postgres"
    command = identity.command(
        binaries.postgres, "-D", str(cluster), "--listen_addresses=", f"--unix_socket_directories={sockets}"
    )
    process = subprocess.Popen(command, env=program_environ(), stderr=subprocess.DEVNULL)
    await eventually(lambda: (said := read_postmaster_file(cluster)) is not None and said.ready)
    yield process
    process.kill()
    process.wait()
    await eventually(lambda: not find_processes(cluster))


async def test_postmaster_that_listens_where_we_recorded_is_ended(
    data_dir: Path, sockets: Path, postmaster: subprocess.Popen[bytes]
) -> None:
    ending = asyncio.create_task(end_leftovers(data_dir / "postgres", sockets))
    await eventually(lambda: postmaster.poll() is not None)
    await ending
    assert postmaster.returncode == 0  # a shutdown with its checkpoint
    assert not find_processes(data_dir / "postgres")


async def test_postmaster_of_somebody_else_is_named_and_left(
    data_dir: Path, postmaster: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(EmbeddedUnavailable, match=rf"did not start works in .*: process {postmaster.pid};"):
        await end_leftovers(data_dir / "postgres", Path("/run/doorward-other"))
    assert postmaster.poll() is None
    assert read_postmaster_file(data_dir / "postgres") is not None


async def test_cluster_that_somebody_else_uses_is_not_touched_by_a_start(
    data_dir: Path, postmaster: subprocess.Popen[bytes]
) -> None:
    access = data_dir / "postgres/pg_hba.conf"
    access.write_text("local all all reject\n")
    with pytest.raises(EmbeddedUnavailable, match="did not start works in"):
        await EmbeddedPostgres(data_dir).start()
    assert access.read_text() == "local all all reject\n"
    assert postmaster.poll() is None


async def test_children_whose_postmaster_was_killed_are_waited_for(
    data_dir: Path, sockets: Path, postmaster: subprocess.Popen[bytes]
) -> None:
    postmaster.kill()
    postmaster.wait()
    await end_leftovers(data_dir / "postgres", sockets)
    assert not find_processes(data_dir / "postgres")
    assert not (data_dir / "postgres/postmaster.pid").exists()


@pytest.fixture
def stranger(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works in the cluster's directory and is no PostgreSQL."""
    with subprocess.Popen(["sleep", "600"], cwd=data_dir / "postgres") as process:
        yield process
        process.kill()


async def test_process_that_took_over_the_id_is_left_alone(data_dir: Path, stranger: subprocess.Popen[bytes]) -> None:
    (data_dir / "postgres/postmaster.pid").write_text(f"{stranger.pid}\n{data_dir}/postgres\n1\n5432\n/run/x\n\n")
    await end_leftovers(data_dir / "postgres", Path("/run/x"))
    assert stranger.poll() is None
    assert not (data_dir / "postgres/postmaster.pid").exists()


async def test_postgres_of_another_cluster_is_left_alone(
    place: Path, data_dir: Path, sockets: Path, postmaster: subprocess.Popen[bytes]
) -> None:
    other = place / "other"
    other.mkdir()
    (other / "postmaster.pid").write_text((data_dir / "postgres/postmaster.pid").read_text())
    await end_leftovers(other, sockets)
    assert postmaster.poll() is None


@pytest.mark.parametrize("text", ["", "\n", "not a number\n", "12x\n"])
def test_postmaster_file_that_is_no_such_file_says_nothing(place: Path, text: str) -> None:
    (place / "postmaster.pid").write_text(text)
    assert read_postmaster_file(place) is None


def test_postmaster_file_that_is_half_written_is_not_ready(place: Path) -> None:
    (place / "postmaster.pid").write_text(f"{os.getpid()}\n/data\n")
    said = read_postmaster_file(place)
    assert said is not None
    assert (said.pid, said.socket_directory, said.ready) == (os.getpid(), "", False)
