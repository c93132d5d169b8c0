"""As whom PostgreSQL runs, and whom `peer` lets in."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240 - nothing else runs on a test's loop

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from doorward_server.embedded import launcher
from doorward_server.embedded.binaries import Binaries, find_binaries
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.identity import _listed_users, choose_identity, find_borrowed
from doorward_server.embedded.leftovers import find_processes
from doorward_server.embedded.postgres import EmbeddedPostgres
from tests.server.embedded.lives import (
    AS_ORDINARY,
    AS_ROOT,
    AS_UNLISTED,
    IS_ROOT,
    REFUSING_NAMESPACES,
    eventually,
)

if TYPE_CHECKING:
    from tests.server.embedded.conftest import type_of_lives


def user(name: str, uid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid, "", "/", "/bin/false"))


def test_namespace_never_borrows_root_or_the_uid_of_everybody_else() -> None:
    assert find_borrowed([user("root", 0), user("nobody", 65534)]) is None
    borrowed = find_borrowed([user("root", 0), user("nobody", 65534), user("alice", 1000)])
    assert borrowed is not None
    assert borrowed.pw_name == "alice"


def test_namespace_borrows_a_system_name_before_a_persons() -> None:
    preferred = [name for name in ("postgres", "daemon") if name in {user.pw_name for user in pwd.getpwall()}]
    borrowed = find_borrowed(_listed_users())
    assert borrowed is not None
    assert borrowed.pw_name == preferred[0]


async def test_root_gets_a_namespace_and_its_files_stay_roots(place: Path, live: type_of_lives) -> None:
    server = await live(place / "data", prefix=AS_ROOT)
    await server.url()
    owners = {path.lstat().st_uid for path in (place / "data").rglob("*")}
    assert owners == {os.geteuid()}  # who started the namespace of a test that root did not start
    await server.stop()


async def test_ordinary_user_runs_it_as_themselves(place: Path, live: type_of_lives) -> None:
    server = await live(place / "data", prefix=AS_ORDINARY)
    await server.url()
    (pid,) = {pid for pid in find_processes(place / "data/postgres") if _parent(pid) == server.process.pid}
    assert Path(f"/proc/{pid}/ns/user").readlink() == Path(f"/proc/{server.process.pid}/ns/user").readlink()
    await server.stop()


async def test_user_without_a_passwd_entry_gets_a_namespace(data_dir: Path, live: type_of_lives) -> None:
    server = await live(data_dir, prefix=AS_UNLISTED)
    await server.url()
    await server.stop()


async def test_directory_moves_between_root_and_its_namespace_alias(data_dir: Path, live: type_of_lives) -> None:
    for prefix in (AS_ROOT, AS_ORDINARY, AS_ROOT):
        server = await live(data_dir, prefix=prefix)
        await server.url()
        await server.stop()


@pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
async def test_peer_refuses_another_user_even_through_an_open_directory(embedded: EmbeddedPostgres) -> None:
    sockets = embedded._sockets.path
    sockets.chmod(0o755)
    (sockets / ".s.PGSQL.5432").chmod(0o777)
    code = f"""
import asyncio, os, asyncpg
os.setgroups([]); os.setgid({{0}}); os.setuid({{0}})
async def main():
    try:
        connection = await asyncpg.connect({embedded.url!r})
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        print(error)
    else:
        print("let in")
        await connection.close()
asyncio.run(main())
"""
    answers = [
        subprocess.run(
            [sys.executable, "-c", code.format(uid)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for uid in (0, 1, pwd.getpwnam("nobody").pw_uid)
    ]
    sockets.chmod(0o700)
    refused = 'Peer authentication failed for user "doorward"'
    assert answers == ["let in", refused, refused]


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
async def test_directory_that_root_in_a_namespace_can_not_pass_is_named(place: Path) -> None:
    (place / "home").mkdir(mode=0o700)
    (place / "home/data").mkdir(mode=0o700)
    os.chown(place / "home", 1, 1)
    with pytest.raises(
        EmbeddedUnavailable, match=rf"out of reach: {place}/home can't be passed by root in its user namespace"
    ):
        await EmbeddedPostgres(place / "home/data").start()
    assert (place / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
async def test_refused_namespace_makes_root_a_listed_user_with_the_cluster_elsewhere(
    place: Path, live: type_of_lives
) -> None:
    strict = ("sh", "-euc", 'umask 077; exec "$@"', "sh")
    server = await live(place, prefix=(*REFUSING_NAMESPACES, *strict))
    url = await server.url()
    location = (place / "postgres.location").read_text().strip()
    inside = Path(f"/proc/{server.process.pid}/root{location}/postgres")  # /var/lib is another one there
    owner = pwd.getpwuid(inside.stat().st_uid).pw_name
    assert owner in ("postgres", "nobody")
    assert inside.stat().st_mode & 0o777 == 0o700
    assert "host=%2Frun%2Fdoorward-" in url or "host=%2Ftmp%2Fdoorward-" in url
    assert not (place / "postgres").exists()
    assert not (place / "postgres.location.new").exists()
    await server.stop()


@pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
async def test_cluster_elsewhere_is_found_again_by_the_next_start(place: Path, live: type_of_lives) -> None:
    twice = ("sh", "-euc", f'"$@" --once {place}; exec "$@" {place}', "sh")
    server = await live(place, prefix=(*REFUSING_NAMESPACES, *twice))
    await server.url()
    location = (place / "postgres.location").read_text()
    await server.url()
    assert (place / "postgres.location").read_text() == location
    await server.stop()


async def test_cluster_that_is_not_where_the_directory_says_is_never_made_anew(place: Path) -> None:
    (place / "postgres.location").write_text("/var/lib/doorward/gone")
    with pytest.raises(EmbeddedUnavailable, match=r"cluster is in /var/lib/doorward/gone, and it is not there"):
        await EmbeddedPostgres(place).start()
    assert not (place / "postgres").exists()


@pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
async def test_cluster_of_a_namespace_is_refused_where_there_is_none(data_dir: Path, live: type_of_lives) -> None:
    refusal = await (await live(data_dir, prefix=REFUSING_NAMESPACES)).refusal()
    assert f"{data_dir}/postgres was made in a user namespace, which is refused now" in refusal
    assert "--database-url" in refusal


async def test_programs_that_do_not_run_are_named_with_what_they_said(place: Path) -> None:
    binaries = scripts(place / "bin", "echo 'postgres: error while loading shared libraries: libz.so.1' >&2; exit 127")
    with pytest.raises(EmbeddedUnavailable) as caught:
        await choose_identity(binaries, place)
    assert f"{place}/bin/postgres does not run: postgres: error while loading shared libraries" in str(caught.value)
    assert "--database-url" in str(caught.value)


async def test_programs_older_than_the_oldest_are_refused(place: Path) -> None:
    binaries = scripts(place / "bin", 'echo "postgres (PostgreSQL) 14.9"')
    with pytest.raises(EmbeddedUnavailable, match="is PostgreSQL 14, and at least 15 is needed"):
        await choose_identity(binaries, place)


STARTING = """
import os, subprocess, sys
command = [str(os.getpid()) if part == "PARENT" else part for part in sys.argv[1:]]
print(subprocess.Popen(command).pid, flush=True)
sys.stdin.read()
"""


async def test_program_ends_when_whoever_started_it_is_killed(place: Path) -> None:
    identity, _ = await choose_identity(find_binaries(), place)
    sleep = identity.command(Path("/bin/sleep"), "600")
    command = [sys.executable, "-c", STARTING, *("PARENT" if part == str(os.getpid()) else part for part in sleep)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.kill()
    await eventually(lambda: not _runs(pid))


async def test_program_does_not_begin_when_whoever_started_it_is_gone(place: Path) -> None:
    identity, _ = await choose_identity(find_binaries(), place)
    command = identity.command(Path("/bin/echo"), "begun")
    command[command.index(str(os.getpid()))] = "1"
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (launcher.ORPHANED, "")


def scripts(directory: Path, postgres: str, initdb: str = "exit 1") -> Binaries:
    """Programs that say what they are told to."""
    directory.mkdir()
    for name, body in (("postgres", postgres), ("initdb", initdb)):
        (directory / name).write_text(f"#!/bin/sh\n{body}\n")
        (directory / name).chmod(0o755)
    return Binaries(directory)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _runs(pid: int) -> bool:
    """Whether it does something: what ended waits, as Z, for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
