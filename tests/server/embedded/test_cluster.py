"""The cluster's files: whole or not at all, of one version, made anew only where there was none."""

# ruff: noqa: ASYNC240 - nothing else runs on a test's loop

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import asyncpg
import pytest

from doorward_server.embedded.binaries import Binaries, find_binaries
from doorward_server.embedded.directory import LONGEST_PATH
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.postgres import EmbeddedPostgres
from tests.server.embedded.conftest import type_of_lives, unpacked
from tests.server.embedded.lives import eventually, on_disk_of

if TYPE_CHECKING:
    from pathlib import Path

# The wheel brings two majors: ours and the one before.
OTHER_MAJOR = Binaries(find_binaries({}).directory.parent.parent / "pginstall/bin")


async def test_first_start_that_was_killed_is_begun_again(place: Path, live: type_of_lives) -> None:
    killed = await live(place)
    await eventually(lambda: any(place.glob("postgres.new-*/PG_VERSION")))
    await killed.kill()
    assert not (place / "postgres").exists()
    server = EmbeddedPostgres(place)
    await server.start()
    await server.stop()
    assert not list(place.glob("postgres.new-*"))


async def test_first_start_that_was_cancelled_leaves_nothing_that_runs_or_counts(place: Path) -> None:
    starting = asyncio.create_task(EmbeddedPostgres(place).start())
    await eventually(lambda: any(place.glob("postgres.new-*/PG_VERSION")))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert {path.name for path in place.iterdir()} == {"lock"}
    server = EmbeddedPostgres(place)
    await server.start()
    await server.stop()


async def test_cluster_of_another_major_is_refused_naming_both_and_the_way_out(place: Path) -> None:
    former = EmbeddedPostgres(place, binaries=OTHER_MAJOR)
    await former.start()
    await former.stop()
    before = sorted(path.name for path in (place / "postgres").rglob("*"))
    with pytest.raises(EmbeddedUnavailable) as caught:
        await EmbeddedPostgres(place).start()
    for word in ("version 16", "version 18", "DOORWARD_POSTGRES_BIN", "pg_upgrade", "--data-dir", "--database-url"):
        assert word in str(caught.value)
    assert sorted(path.name for path in (place / "postgres").rglob("*")) == before


async def test_older_programs_refuse_a_newer_cluster(data_dir: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match=r"is of PostgreSQL version 18, and the programs .* are version 16"):
        await EmbeddedPostgres(data_dir, binaries=OTHER_MAJOR).start()


async def test_directory_that_is_no_cluster_is_not_made_one(place: Path) -> None:
    (place / "postgres").mkdir()
    (place / "postgres/letters").touch()
    with pytest.raises(EmbeddedUnavailable, match="PG_VERSION is missing"):
        await EmbeddedPostgres(place).start()
    assert [path.name for path in (place / "postgres").iterdir()] == ["letters"]


async def test_what_initdb_said_last_is_in_the_error(place: Path) -> None:
    programs = place / "bin"
    programs.mkdir()
    (programs / "postgres").write_text('#!/bin/sh\necho "postgres (PostgreSQL) 18.4"\n')
    (programs / "initdb").write_text("#!/bin/sh\nseq 1000\necho 'initdb: error: the moon is full' >&2\nexit 7\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    with pytest.raises(EmbeddedUnavailable) as caught:
        await EmbeddedPostgres(place / "data", binaries=Binaries(programs)).start()
    assert "initdb ended with 7: 997 | 998 | 999 | 1000 | initdb: error: the moon is full;" in str(caught.value)
    assert [path.name for path in (place / "data").iterdir()] == ["lock"]


@pytest.mark.parametrize("size", ["16k", "30m"])
async def test_disk_too_small_for_a_cluster_is_named(place: Path, live: type_of_lives, size: str) -> None:
    refusal = await (await live(place / "data", prefix=on_disk_of(size, place))).refusal()
    assert "No space left on device" in refusal
    assert f"{place}/data" in refusal
    assert "kB are left there" in refusal
    assert "--database-url" in refusal


async def test_disk_that_filled_up_is_named_and_the_data_lives_on(place: Path, live: type_of_lives) -> None:
    script = (
        '"$@" --once "$0/data"; cat /dev/zero > "$0/filler" 2> /dev/null || true; '
        '"$@" --once "$0/data" || true; rm "$0/filler"; exec "$@" "$0/data"'
    )
    server = await live(place, prefix=(*on_disk_of("200m", place), "sh", "-euc", script, str(place)))
    await server.url()
    refusal = await server.said()
    assert refusal.startswith("unavailable ")
    assert "No space left on device" in refusal
    await server.url()
    await server.stop()


async def test_odd_and_long_path_works_from_the_first_start(place: Path) -> None:
    odd = place / 'it\'s "odd", $HOME;  ünï/日本/-D' / ("long" * 30) / ("er" * 60) / "%s {0} \\x"
    server = EmbeddedPostgres(odd)
    await server.start()
    connection = await asyncpg.connect(server.url)
    found = await connection.fetchval("SHOW data_directory")
    await connection.close()
    await server.stop()
    assert found == str(odd / "postgres")


async def test_path_that_is_no_utf8_works(prepared: Path, place: Path) -> None:
    server = EmbeddedPostgres(unpacked(prepared, place / "caf\udce9"))
    await server.start()
    await server.stop()


async def test_longest_path_works(prepared: Path, place: Path) -> None:
    path = place / "/".join(["p" * 100] * 8)
    path /= "p" * (LONGEST_PATH - len(str(path)) - 1)
    assert len(str(path)) == LONGEST_PATH
    server = EmbeddedPostgres(unpacked(prepared, path))
    await server.start()
    await server.stop()


async def test_program_that_finds_no_library_is_in_the_error_with_what_the_loader_says(place: Path) -> None:
    alone = place / "bin"
    alone.mkdir()
    for name in ("postgres", "initdb"):  # of the wheel, whose libpq is beside it and not beside the copy
        shutil.copy2(find_binaries({}).directory / name, alone / name)
    with pytest.raises(
        EmbeddedUnavailable, match=r"initdb ended with 127: .*error while loading shared libraries: libpq"
    ):
        await EmbeddedPostgres(place / "data", binaries=Binaries(alone)).start()
