"""The pepper file on the disk: modes, kills, two editors at once. Real files, real processes, real signals."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from doorward_server.credentials import pepper, pepper_file
from doorward_server.credentials.pepper_file import MAX_FILE_BYTES, Content, PepperInvalid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pepper.keys"


def killed_at(call: str, statement: str, path: Path) -> None:
    """Runs `statement` in a process of its own that kills itself when it comes to the system call `call`."""
    program = f"""
import os, signal, sys
from pathlib import Path
from doorward_server.credentials import pepper
path = Path(sys.argv[1])
def kill(event, arguments):
    if event == {call!r} and str(arguments[0]).endswith(".draft"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
{statement}
"""
    process = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_file_that_others_may_use_is_refused_with_the_way_out(path: Path, mode: int) -> None:
    pepper.create(path)
    path.chmod(mode)

    with pytest.raises(PepperInvalid, match=f"has mode {mode:04o}.*chmod 600"):
        pepper.load(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_file_that_is_its_owners_alone_is_read(path: Path, mode: int) -> None:
    pepper.create(path)
    path.chmod(mode)

    assert pepper.load(path).key_ids


def test_created_and_edited_files_are_0600_whatever_the_umask(path: Path) -> None:
    for umask in (0o000, 0o077, 0o377):
        former = os.umask(umask)
        try:
            path.unlink(missing_ok=True)
            pepper.create(path)
            modes = [stat.S_IMODE(path.stat().st_mode)]
            pepper.add(path)
            modes.append(stat.S_IMODE(path.stat().st_mode))
        finally:
            os.umask(former)
        assert modes == [0o600, 0o600]


def test_missing_file_and_missing_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(PepperInvalid, match=r"pepper\.keys: does not exist; name the pepper file"):
        pepper.load(tmp_path / "pepper.keys")
    for act in (pepper.load, pepper.create, pepper.add):
        with pytest.raises(PepperInvalid, match=f"there is no directory {tmp_path}/none"):
            act(tmp_path / "none" / "pepper.keys")


def test_what_is_no_plain_file_is_refused_and_hangs_nobody(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)

    for odd in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(PepperInvalid, match="is no plain file"):
            pepper.load(odd)


def test_system_error_is_told_in_the_systems_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for act in (pepper.load, pepper.create):
        with pytest.raises(PepperInvalid, match="Not a directory"):
            act(tmp_path / "file" / "pepper.keys")


def test_read_only_directory_is_told(tmp_path: Path) -> None:
    program = """
import os
from pathlib import Path
from doorward_server.credentials import pepper
if os.geteuid() == 0:
    os.setuid(12345)  # root may write everywhere
try:
    pepper.create(Path("pepper.keys"))
except pepper.PepperInvalid as error:
    print(error)
"""
    tmp_path.chmod(0o555)
    try:
        process = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        )
    finally:
        tmp_path.chmod(0o700)

    assert process.stdout == "pepper.keys: cannot be written: Permission denied\n"


@pytest.mark.parametrize(("size", "is_read"), [(MAX_FILE_BYTES, True), (MAX_FILE_BYTES + 1, False)])
def test_size_is_bounded(path: Path, size: int, is_read: bool) -> None:
    ring = pepper.create(path)
    with path.open("a") as file:
        file.write("#" * (size - path.stat().st_size - 1) + "\n")

    if is_read:
        assert pepper.load(path).key_ids == ring.key_ids
    else:
        with pytest.raises(PepperInvalid, match=f"has {size} bytes; a pepper file has at most {MAX_FILE_BYTES}"):
            pepper.load(path)


def test_content_shows_no_line() -> None:
    content = Content(("key k_a c2VjcmV0",))

    assert "c2VjcmV0" not in f"{content!r} {content}"


def test_finished_work_leaves_nothing_beside_the_file(path: Path) -> None:
    pepper.create(path)
    pepper.activate(path, pepper.add(path))
    with pytest.raises(PepperInvalid):
        pepper.retire(path, "k_none")
    with pytest.raises(PepperInvalid):
        pepper.create(path)

    assert list(path.parent.iterdir()) == [path]


def test_symbolic_link_stays_and_the_file_behind_it_is_edited(tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere", tmp_path / "pepper.keys"
    pepper.create(real)
    link.symlink_to(real)

    key_id = pepper.add(link)

    assert link.is_symlink()
    assert key_id in pepper.load(real).key_ids


def test_edit_leaves_the_file_to_its_owner_also_when_root_edits(path: Path) -> None:
    pepper.create(path)
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)

    pepper.add(path)

    assert (path.stat().st_uid, path.stat().st_gid) == owner


# Kills


def test_killed_before_the_file_has_its_name_there_is_none_and_the_next_create_heals(path: Path) -> None:
    killed_at("os.link", "pepper.create(path)", path)
    assert not path.exists()
    assert list(path.parent.iterdir()) != []  # the draft, or nothing is tested

    ring = pepper.create(path)

    assert pepper.load(path).key_ids == ring.key_ids
    assert list(path.parent.iterdir()) == [path]


def test_killed_between_link_and_unlink_the_file_is_whole_and_the_next_edit_spares_it(path: Path) -> None:
    """The draft is then the pepper file by another name: who wrote into it would destroy the keys."""
    killed_at("os.remove", "pepper.create(path)", path)
    ring = pepper.load(path)
    assert path.stat().st_nlink == 2

    with pytest.raises(PepperInvalid, match="exists already"):
        pepper.create(path)
    key_id = pepper.add(path)

    assert pepper.load(path).digest("text") == ring.digest("text")
    assert pepper.load(path).key_ids == (ring.current_id, key_id)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("edit", ["pepper.add(path)", "pepper.activate(path, pepper.load(path).key_ids[1])"])
def test_killed_between_draft_and_rename_the_former_file_stands_and_the_next_edit_heals(path: Path, edit: str) -> None:
    pepper.create(path)
    pepper.add(path)
    before = path.read_bytes()

    killed_at("os.rename", edit, path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2

    key_id = pepper.add(path)

    assert key_id in pepper.load(path).key_ids
    assert path.read_bytes().startswith(before)
    assert list(path.parent.iterdir()) == [path]


def test_foreign_file_in_the_drafts_place_is_cleared_away_and_never_followed(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    draft = tmp_path / ".pepper.keys.draft"
    draft.symlink_to(precious)

    with pytest.raises(PepperInvalid, match="cannot be written"):
        pepper.create(path)
    draft.unlink()
    draft.write_text("left over")
    pepper.create(path)

    assert precious.read_text() == "untouched"
    assert not draft.exists()


# Two at once


def test_edit_while_another_is_under_way_is_refused_and_loses_nothing(path: Path) -> None:
    pepper.create(path)
    before = path.read_bytes()
    refused: list[str] = []

    def change(content: Content) -> Content:
        for act in (pepper.add, pepper.create):
            with pytest.raises(PepperInvalid, match="another process is changing this file; try again") as raised:
                act(path)
            refused.append(raised.value.problem)
        return Content((*content.lines, "# changed"))

    pepper_file.replace(path, change)

    assert len(refused) == 2
    assert path.read_bytes() == before + b"# changed\n"
    assert pepper.add(path)


def test_processes_that_add_at_once_never_lose_a_key(path: Path) -> None:
    program = """
import sys
from pathlib import Path
from doorward_server.credentials import pepper
added = 0
while added < 15:
    try:
        print(pepper.add(Path(sys.argv[1])))
        added += 1
    except pepper.PepperInvalid as error:
        assert "try again" in str(error), error
"""
    pepper.create(path)
    command = [sys.executable, "-c", program, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]

    added = [key_id for process in processes for key_id in process.communicate(timeout=100)[0].split()]

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(added) == 45
    assert set(added) <= set(pepper.load(path).key_ids)


def test_only_one_of_several_processes_creates_the_file(path: Path) -> None:
    program = """
import sys
from pathlib import Path
from doorward_server.credentials import pepper
try:
    print(pepper.create(Path(sys.argv[1])).current_id)
except pepper.PepperInvalid:
    pass
"""
    command = [sys.executable, "-c", program, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]

    created = [key_id for process in processes for key_id in process.communicate(timeout=100)[0].split()]

    assert created == [pepper.load(path).current_id]


def test_reader_needs_no_lock(path: Path) -> None:
    ring = pepper.create(path)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        assert pepper.load(path).key_ids == ring.key_ids
