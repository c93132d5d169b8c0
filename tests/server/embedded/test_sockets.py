"""The socket's directory: short, private, recorded, removed."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from doorward_server.embedded.directory import DataDirectory
from doorward_server.embedded.errors import EmbeddedUnavailable
from doorward_server.embedded.identity import Identity
from doorward_server.embedded.sockets import SocketDirectory

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = Identity("namespace", 1, 1, "daemon")


@pytest.fixture
def runtime(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's runtime directory."""
    path = place / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


def test_directory_is_private_in_the_runtime_directory_and_recorded(place: Path, runtime: Path) -> None:
    sockets = SocketDirectory(DataDirectory(place))
    sockets.make(IDENTITY)
    assert sockets.path.parent == runtime
    assert stat.S_IMODE(sockets.path.stat().st_mode) == 0o700
    assert sockets.recorded() == sockets.path


def test_directory_goes_at_the_end_and_comes_back_at_the_next_start(place: Path, runtime: Path) -> None:
    sockets = SocketDirectory(DataDirectory(place))
    sockets.make(IDENTITY)
    (sockets.path / ".s.PGSQL.5432.lock").touch()
    path = sockets.path
    sockets.remove()
    sockets.remove()
    assert not list(runtime.iterdir())
    following = SocketDirectory(DataDirectory(place))
    following.make(IDENTITY)
    assert following.path == path


def test_directory_of_a_killed_server_is_cleared_and_used_by_the_next(place: Path, runtime: Path) -> None:
    killed = SocketDirectory(DataDirectory(place))
    killed.make(IDENTITY)
    (killed.path / ".s.PGSQL.5432").touch()
    following = SocketDirectory(DataDirectory(place))
    following.make(IDENTITY)
    assert following.path == killed.path
    assert list(runtime.iterdir()) == [killed.path]
    assert not list(killed.path.iterdir())


def test_name_that_somebody_took_is_left_to_them(place: Path, runtime: Path) -> None:
    former = SocketDirectory(DataDirectory(place))
    former.make(IDENTITY)
    former.path.chmod(0o755)
    (former.path / ".s.PGSQL.5432").touch()
    following = SocketDirectory(DataDirectory(place))
    following.make(IDENTITY)
    assert following.path != former.path
    assert (former.path / ".s.PGSQL.5432").exists()
    assert following.recorded() == following.path


def test_copy_of_the_data_directory_leaves_the_originals_socket_alone(place: Path, runtime: Path) -> None:
    original = SocketDirectory(DataDirectory(place))
    original.make(IDENTITY)
    (original.path / ".s.PGSQL.5432").touch()
    (place / "copy").mkdir()
    (place / "copy/postgres.socket").write_text((place / "postgres.socket").read_text())
    copy = SocketDirectory(DataDirectory(place / "copy"))
    copy.make(IDENTITY)
    assert copy.path != original.path
    assert (original.path / ".s.PGSQL.5432").exists()


def test_place_where_others_could_swap_it_is_passed_over(place: Path, runtime: Path) -> None:
    runtime.chmod(0o777)
    sockets = SocketDirectory(DataDirectory(place))
    sockets.make(IDENTITY)
    assert sockets.path.parent != runtime
    sockets.remove()


@pytest.mark.parametrize("name", ["x" * 80, "with space", "com,ma", "quo'te"])
def test_runtime_directory_that_no_socket_can_live_in_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    unfit = place / name
    unfit.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(unfit))
    sockets = SocketDirectory(DataDirectory(place))
    sockets.make(IDENTITY)
    assert sockets.path.parent != unfit
    assert len(os.fsencode(sockets.path / ".s.PGSQL.5432")) < 104
    sockets.remove()


def test_another_user_does_not_listen_in_our_runtime_directory(place: Path, runtime: Path) -> None:
    sockets = SocketDirectory(DataDirectory(place))
    sockets.make(Identity("user", os.getuid(), os.getgid(), "root"))
    assert sockets.path.parent != runtime
    sockets.remove()


def test_address_before_it_is_made_is_an_error(place: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="not started"):
        _ = SocketDirectory(DataDirectory(place)).path
