"""The life of the embedded PostgreSQL: what it is started with, what it survives, how it ends."""

# ruff: noqa: ASYNC240 - nothing else runs on a test's loop

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.leftovers import find_processes, read_postmaster_file
from doorward_server.embedded.postgres import EmbeddedPostgres
from tests.server.embedded.lives import eventually

if TYPE_CHECKING:
    from tests.server.embedded.conftest import type_of_lives


async def value(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def postmaster_of(data_dir: Path) -> int:
    said = read_postmaster_file(data_dir / "postgres")
    assert said is not None
    return said.pid


SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "data_checksums": "on",
    "listen_addresses": "",
    "TimeZone": "UTC",
    "server_encoding": "UTF8",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "log_error_verbosity": "terse",
    "lc_messages": "C",
}


async def test_settings_are_what_the_design_says_whatever_the_environment_says(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {
        "PGDATA": "/nowhere", "PGPORT": "1", "PGHOST": "nowhere.invalid", "PGUSER": "eve", "PGDATABASE": "none",
        "PGSSLMODE": "verify-full", "PGTARGETSESSIONATTRS": "standby", "PGOPTIONS": "-c fsync=off", "PGTZ": "Asia/Tokyo",
        "PGSERVICEFILE": "/nowhere", "TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8", "LANG": "xx", "PGCLIENTENCODING": "x",
    }  # fmt: skip
    for name, text in hostile.items():
        monkeypatch.setenv(name, text)
    server = EmbeddedPostgres(data_dir)
    await server.start()
    try:
        connection = await asyncpg.connect(server.url)
        found = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in SETTINGS}
        who = await connection.fetchrow("SELECT current_user, current_database()")
        await connection.close()
    finally:
        await server.stop()
    assert found == SETTINGS
    assert who is not None
    assert tuple(who) == ("doorward", "doorward")


async def test_no_secret_of_our_environment_reaches_it(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOORWARD_TOKEN", "marker-of-a-secret")
    server = EmbeddedPostgres(data_dir)
    await server.start()
    environ = Path(f"/proc/{postmaster_of(data_dir)}/environ").read_bytes()
    await server.stop()
    assert b"PATH=" in environ
    assert b"DOORWARD" not in environ


async def test_everything_is_private(place: Path) -> None:
    former = os.umask(0)
    try:
        server = EmbeddedPostgres(place / "data")
        await server.start()
    finally:
        os.umask(former)
    paths = [place / "data", *(place / "data").rglob("*"), server._sockets.path, *server._sockets.path.iterdir()]
    shared = [path for path in paths if path.lstat().st_mode & 0o077]
    await server.stop()
    assert shared == []


async def test_url_file_is_the_url_for_whoever_joins(embedded: EmbeddedPostgres, data_dir: Path) -> None:
    url = (data_dir / "database.url").read_text().strip()
    assert url == embedded.url
    assert stat.S_IMODE((data_dir / "database.url").stat().st_mode) == 0o600
    assert await value(url, "SELECT 1") == 1


async def test_it_listens_on_its_socket_and_nowhere_else(embedded: EmbeddedPostgres, data_dir: Path) -> None:
    descriptors = Path(f"/proc/{postmaster_of(data_dir)}/fd").iterdir()
    inodes = {link[8:-1] for path in descriptors if (link := str(path.readlink())).startswith("socket:[")}
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6", "udp", "udp6"))
    on_network = {line.split()[9] for table in tables for line in table.splitlines()[1:]}
    assert inodes
    assert not inodes & on_network


async def test_what_was_committed_is_there_after_stop_and_start(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    await server.start()
    await value(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    await server.stop()
    await server.start()
    assert await value(server.url, "SELECT answer FROM kept") == 42
    await server.stop()


async def test_stop_leaves_no_process_no_socket_and_no_lock(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    await server.start()
    sockets = server._sockets.path
    idle = await asyncpg.connect(server.url)  # a session does not hold up the end
    await server.stop()
    await server.stop()
    assert not find_processes(data_dir / "postgres")
    assert not sockets.exists()
    assert not (data_dir / "postgres/postmaster.pid").exists()
    idle.terminate()
    again = EmbeddedPostgres(data_dir)
    await again.start()
    await again.stop()


async def test_second_server_is_refused_naming_the_first_and_the_first_goes_on(
    data_dir: Path, live: type_of_lives
) -> None:
    first = await live(data_dir)
    url = await first.url()
    with pytest.raises(EmbeddedUnavailable, match=rf"in use by the server with process id {first.process.pid};"):
        await EmbeddedPostgres(data_dir).start()
    assert await value(url, "SELECT 1") == 1
    await first.stop()


async def test_killed_server_takes_its_postgresql_along(data_dir: Path, live: type_of_lives) -> None:
    server = await live(data_dir)
    await server.url()
    await server.kill()
    await eventually(lambda: not find_processes(data_dir / "postgres"))


async def test_server_killed_in_the_middle_is_followed_by_one_that_has_all_it_acknowledged(
    data_dir: Path, live: type_of_lives
) -> None:
    killed = await live(data_dir)
    url = await killed.url()
    await value(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    await killed.kill()
    following = EmbeddedPostgres(data_dir)  # at once, while the other PostgreSQL may still be on its way out
    await following.start()
    assert await value(following.url, "SELECT answer FROM kept") == 42
    await following.stop()


async def test_server_and_postgresql_killed_together_are_followed_by_a_clean_start(
    data_dir: Path, live: type_of_lives
) -> None:
    killed = await live(data_dir)
    url = await killed.url()
    await value(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    sockets = Path((data_dir / "postgres.socket").read_text().partition("\n")[0])
    os.kill(killed.process.pid, signal.SIGSTOP)  # so that it can't tidy up
    os.kill(postmaster_of(data_dir), signal.SIGKILL)
    await killed.kill()
    assert (data_dir / "postgres/postmaster.pid").exists()
    following = EmbeddedPostgres(data_dir)
    await following.start()
    assert await value(following.url, "SELECT answer FROM kept") == 42
    assert following.url == url  # whoever joined the former one finds it again
    await following.stop()
    assert not sockets.exists()


async def test_postgresql_that_ends_by_itself_ends_run_with_its_last_words(data_dir: Path, live: type_of_lives) -> None:
    server = await live(data_dir)
    await server.url()
    os.kill(postmaster_of(data_dir), signal.SIGQUIT)
    said = await server.said()
    assert said.startswith("ended PostgreSQL ended by itself with status")
    assert "received immediate shutdown request" in said
    assert str(data_dir / "postgres.log") in said
    assert await server.ended() == 3


async def test_run_returns_when_it_was_stopped(embedded: EmbeddedPostgres) -> None:
    running = asyncio.create_task(embedded.run())
    await value(embedded.url, "SELECT 1")
    await embedded.stop()
    await running


async def test_start_that_failed_can_be_repeated(data_dir: Path) -> None:
    version = data_dir / "postgres/PG_VERSION"
    version.rename(data_dir / "aside")
    server = EmbeddedPostgres(data_dir)
    with pytest.raises(EmbeddedUnavailable):
        await server.start()
    (data_dir / "aside").rename(version)
    await server.start()
    await server.stop()


async def test_why_postgresql_did_not_start_is_in_the_error(data_dir: Path) -> None:
    (data_dir / "postgres/global/pg_control").unlink()
    with pytest.raises(EmbeddedUnavailable) as caught:
        await EmbeddedPostgres(data_dir).start()
    assert "did not start, it ended with status" in str(caught.value)
    assert "could not find the database system" in str(caught.value)
    assert str(data_dir / "postgres.log") in str(caught.value)
    assert not Path((data_dir / "postgres.socket").read_text().partition("\n")[0]).exists()


async def test_rows_do_not_reach_the_log(embedded: EmbeddedPostgres, data_dir: Path) -> None:
    connection = await asyncpg.connect(embedded.url)
    await connection.execute("CREATE TABLE hashes (hash text UNIQUE CHECK (hash <> ''), other int NOT NULL)")
    for hashed, other in (("marker-of-a-hash", None), ("marker-of-a-hash", 1), ("marker-of-a-hash", 1)):
        try:
            await connection.execute("INSERT INTO hashes VALUES ($1, $2)", hashed, other)
        except asyncpg.IntegrityConstraintViolationError:
            continue
    await connection.close()
    written = (data_dir / "postgres.log").read_text()
    assert written.count("violates") == 2
    assert "marker" not in written
