"""Where secrets come from and go: files, variables, standard input; modes, and what no error shows."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward.v1 import authorizer_pb2
from doorward_server.cli import presented

if TYPE_CHECKING:
    from tests.server.cli.conftest import PlayedServer

NO_DIRECTORY = Path("doorward-data")


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def refusal(capsys: pytest.CaptureFixture[str], token_file: Path | None, data_dir: Path = NO_DIRECTORY) -> str:
    """What is said when a credential is read that cannot be one."""
    with pytest.raises(typer.Exit) as ended:
        presented.read_credential(token_file, data_dir)
    assert ended.value.exit_code == 2
    return capsys.readouterr().err


def test_a_named_file_goes_before_the_variable(
    own_directory: Path, credential: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOORWARD_TOKEN", generate(SecretKind.OPERATOR, new_id()).reveal())
    file = written(own_directory / "token", f"{credential.reveal()}\n")
    assert presented.read_credential(file, NO_DIRECTORY) == credential


def test_the_variable_goes_before_the_data_directory(
    own_directory: Path, credential: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(own_directory / "operator.token", generate(SecretKind.OPERATOR, new_id()).reveal())
    monkeypatch.setenv("DOORWARD_TOKEN", credential.reveal())
    assert presented.read_credential(None, own_directory) == credential


def test_the_data_directory_has_a_credential_of_its_own(own_directory: Path, credential: Secret) -> None:
    written(own_directory / "operator.token", credential.reveal())
    assert presented.read_credential(None, own_directory) == credential


def test_a_service_tokens_secret_is_a_credential_too(own_directory: Path) -> None:
    secret = generate(SecretKind.TOKEN, new_id())
    assert presented.read_credential(written(own_directory / "token", secret.reveal()), NO_DIRECTORY) == secret


def test_without_any_credential_the_three_ways_to_give_one_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, None)
    assert "doorward-data/operator.token" in said
    assert all(way in said for way in ("--data-dir", "--token-file", "DOORWARD_TOKEN"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_file_that_others_may_use_is_refused_with_the_way_out(
    own_directory: Path, credential: Secret, capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    said = refusal(capsys, written(own_directory / "token", credential.reveal(), mode))
    assert "--token-file" in said
    assert f"{mode:04o}" in said
    assert "chmod 600" in said


def test_a_missing_file_is_named(own_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, own_directory / "nowhere")
    assert f"--token-file {own_directory / 'nowhere'}" in said
    assert "No such file" in said


def test_a_directory_in_a_files_place_is_refused(own_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "directory" in refusal(capsys, own_directory).lower()


@pytest.mark.parametrize("damage", ["cut off", "mistyped", "two of them", "not ASCII", "not UTF-8", "empty", "huge"])
def test_what_is_no_credential_is_refused_before_it_is_sent_and_not_shown(
    own_directory: Path, credential: Secret, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    text = credential.reveal()
    damaged: dict[str, str | bytes] = {
        "cut off": text[:-1],
        "mistyped": text[:30] + ("a" if text[30] != "a" else "b") + text[31:],
        "two of them": f"{text}\n{text}\n",
        "not ASCII": text[:-1] + "é",
        "not UTF-8": text.encode()[:-1] + b"\xff",
        "empty": "",
        "huge": text * 100,
    }
    said = refusal(capsys, written(own_directory / "token", damaged[damage]))
    assert "--token-file" in said
    assert "60 characters" in said
    assert text[22:40] not in said


def test_a_wrong_variable_is_named_and_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOORWARD_TOKEN", "hunter2hunter2")
    said = refusal(capsys, None)
    assert "DOORWARD_TOKEN" in said
    assert "hunter2" not in said


def test_a_pipe_has_no_mode_to_complain_of(own_directory: Path, credential: Secret) -> None:
    pipe = own_directory / "pipe"
    os.mkfifo(pipe, 0o644)
    writer = threading.Thread(target=pipe.write_text, args=(credential.reveal(),))
    writer.start()
    try:
        assert presented.read_credential(pipe, NO_DIRECTORY) == credential
    finally:
        writer.join()


def check_with(played: PlayedServer, *arguments: str, given: str | bytes | None = None, **environment: str) -> str:
    """The secret that reaches the server."""
    played.answers["Authorizer/Check"] = lambda _request, _context: authorizer_pb2.CheckResponse(allowed=True)
    result = played.run("check", "--permission", "jobs:read", "--project", "p", *arguments, given=given, **environment)
    assert result.exit_code == 0, result.stderr
    return authorizer_pb2.CheckRequest.FromString(played.asked[-1][1]).secret


def test_the_secret_is_read_from_a_file(played: PlayedServer, own_directory: Path) -> None:
    file = written(own_directory / "secret", "from a file\n")
    assert (
        check_with(played, "--secret-file", str(file), given="from a pipe", DOORWARD_SECRET="variable") == "from a file"
    )


def test_the_secret_is_read_from_the_variable(played: PlayedServer) -> None:
    assert check_with(played, given="from a pipe", DOORWARD_SECRET="from a variable") == "from a variable"


def test_the_secret_is_read_from_standard_input(played: PlayedServer) -> None:
    assert check_with(played, given="from a pipe\n") == "from a pipe"


def test_a_hyphen_is_standard_input_whatever_the_variable_says(played: PlayedServer) -> None:
    assert check_with(played, "--secret-file", "-", given="from a pipe", DOORWARD_SECRET="variable") == "from a pipe"


@pytest.mark.parametrize("given", ["", "\n", "x" * 5000, b"\xff\xfe"])
def test_a_secret_that_cannot_be_sent_ends_with_2_not_with_denied(played: PlayedServer, given: str | bytes) -> None:
    result = played.run("check", "--permission", "jobs:read", "--project", "p", given=given)
    assert result.exit_code == 2
    assert "standard input" in result.stderr
    assert not played.asked


def test_a_new_secret_file_is_its_owners_alone_whatever_the_umask(own_directory: Path) -> None:
    former = os.umask(0)
    try:
        with presented.new_secret_file(own_directory / "new") as file:
            presented.hand_over("the secret", file, "token X")
    finally:
        os.umask(former)
    assert (own_directory / "new").read_text() == "the secret\n"
    assert stat.S_IMODE((own_directory / "new").stat().st_mode) == 0o600


def test_a_file_that_exists_is_left_alone(own_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(own_directory / "there", "precious")
    with pytest.raises(typer.Exit), presented.new_secret_file(file):
        pass
    assert file.read_text() == "precious"
    assert "exists already" in capsys.readouterr().err


def test_the_file_goes_when_no_secret_was_made(own_directory: Path) -> None:
    with pytest.raises(typer.Exit), presented.new_secret_file(own_directory / "new"):
        raise typer.Exit(2)
    assert not (own_directory / "new").exists()


def test_a_directory_that_cannot_be_written_to_is_told_before_a_secret_is_made(
    own_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit), presented.new_secret_file(own_directory / "nowhere" / "new"):
        pytest.fail("the block was entered")
    assert "--secret-file" in capsys.readouterr().err
