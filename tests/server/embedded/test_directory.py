"""The data directory: private, whole files, one server at a time."""

# ruff: noqa: ASYNC240 - nothing else runs on a test's loop

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from doorward_server.embedded.directory import DataDirectory, write_whole
from doorward_server.embedded.errors import EmbeddedUnavailable
from tests.server.embedded.lives import AS_ORDINARY, IS_ROOT, on_read_only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.server.embedded.conftest import type_of_lives


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_missing_directory_is_made_private_whatever_the_umask(place: Path) -> None:
    former = os.umask(0)
    try:
        directory = DataDirectory(place / "a/b/data")
        directory.claim()
    finally:
        os.umask(former)
    directory.release()
    assert mode(directory.path) == 0o700
    assert mode(directory.path / "lock") == 0o600


def test_second_claim_is_refused_and_names_the_process(place: Path) -> None:
    first = DataDirectory(place / "data")
    first.claim()
    with pytest.raises(EmbeddedUnavailable, match=rf"data is in use .* process id {os.getpid()};"):
        DataDirectory(place / "data").claim()
    first.release()
    DataDirectory(place / "data").claim()


def test_lock_file_that_nobody_holds_does_not_matter(place: Path) -> None:
    (place / "lock").write_text("1\n")
    directory = DataDirectory(place)
    directory.claim()
    directory.release()
    assert (place / "lock").read_text() == f"{os.getpid()}\n"


def test_empty_directory_that_others_may_read_is_narrowed(place: Path) -> None:
    place.chmod(0o755)
    directory = DataDirectory(place)
    directory.claim()
    directory.release()
    assert mode(place) == 0o700


def test_directory_of_other_things_is_left_as_it_is(place: Path) -> None:
    place.chmod(0o755)
    (place / "lock").write_text("of somebody else")
    (place / "thesis.txt").touch()
    with pytest.raises(EmbeddedUnavailable, match=r"holds other things .*chmod 700"):
        DataDirectory(place).claim()
    assert mode(place) == 0o755
    assert (place / "lock").read_text() == "of somebody else"


def test_file_in_the_place_of_the_directory_is_named(place: Path) -> None:
    (place / "data").touch()
    with pytest.raises(EmbeddedUnavailable, match=r"/data is no directory"):
        DataDirectory(place / "data").claim()


def test_lock_that_is_a_link_is_not_followed(place: Path) -> None:
    (place / "victim").write_text("kept")
    (place / "data").mkdir()
    (place / "data/lock").symlink_to(place / "victim")
    with pytest.raises(EmbeddedUnavailable, match=r"data/lock"):
        DataDirectory(place / "data").claim()
    assert (place / "victim").read_text() == "kept"


def test_path_beyond_what_postgresql_takes_is_refused_with_its_length(place: Path) -> None:
    path = place / "/".join(["x" * 100] * 9)
    with pytest.raises(EmbeddedUnavailable, match=rf"path is {len(str(path))} bytes long"):
        DataDirectory(path).claim()


def test_control_character_in_the_path_is_refused(place: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="control character"):
        DataDirectory(place / "two\nlines").claim()


def test_read_of_what_was_written_and_of_nothing(place: Path) -> None:
    directory = DataDirectory(place)
    directory.write("note", "first\n")
    directory.write("note", "/odd/\udcff/ü\n")
    assert directory.read("note") == "/odd/\udcff/ü"
    assert mode(place / "note") == 0o600
    assert directory.read("another") is None
    assert [entry.name for entry in place.iterdir()] == ["note"]


def test_whole_file_replaces_a_planted_link_and_spares_its_target(place: Path) -> None:
    (place / "victim").write_text("kept")
    (place / "note").symlink_to(place / "victim")
    write_whole(place / "note", "ours")
    assert not (place / "note").is_symlink()
    assert (place / "victim").read_text() == "kept"


async def test_read_only_directory_is_named(place: Path, live: type_of_lives) -> None:
    refusal = await (await live(place, prefix=on_read_only(place))).refusal()
    assert f"{place} can't be used: Read-only file system" in refusal
    assert "--database-url" in refusal


async def test_directory_that_can_not_be_made_is_named(place: Path, live: type_of_lives) -> None:
    refusal = await (await live(place / "new/data", prefix=on_read_only(place))).refusal()
    assert f"{place}/new/data can't be used: Read-only file system" in refusal


async def test_directory_without_rights_is_named_to_an_ordinary_user(place: Path, live: type_of_lives) -> None:
    place.chmod(0o500)
    refusal = await (await live(place / "data", prefix=AS_ORDINARY)).refusal()
    assert f"{place}/data can't be used: Permission denied" in refusal
    place.chmod(0o700)


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
def test_directory_of_another_user_is_refused(place: Path) -> None:
    (place / "data").mkdir(mode=0o700)
    os.chown(place / "data", 1, 1)
    with pytest.raises(EmbeddedUnavailable, match=r"belongs to uid 1 and the server runs as uid 0"):
        DataDirectory(place / "data").claim()
