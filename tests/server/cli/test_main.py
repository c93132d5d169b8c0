"""The whole command line: every command has its help, and nothing ends in a traceback or shows a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer.main

from doorward.core.secret import SecretKind, generate, new_id
from doorward_server.cli import main
from tests.server.cli.conftest import run

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = {
    "serve",
    "account put",
    "account get",
    "account list",
    "project put",
    "project list",
    "token issue",
    "token show",
    "token list",
    "token revoke",
    "token permission-sets",
    "token update",
    "token rotate",
    "token disable",
    "token enable",
    "token describe-self",
    "token rotate-self",
    "token revoke-self",
    "token report-leak",
    "check",
    "introspect",
    "permissions",
    "account suspend",
    "account resume",
    "account delete",
    "account preview-plan",
    "project delete",
    "catalog show",
    "catalog diff",
    "catalog apply",
    "operator create",
    "operator list",
    "operator revoke",
    "explain",
    "token with-permission",
    "replicas",
    "await-propagation",
    "db migrate",
    "db new-epoch",
    "pepper add",
    "pepper activate",
    "pepper retire",
    "pepper declare-lost",
    "pepper list",
    "audit list",
    "audit verify",
    "audit export",
    "audit replay",
}
OFFLINE = {
    "serve",
    "db migrate",
    "db new-epoch",
    "pepper add",
    "pepper activate",
    "pepper retire",
    "pepper declare-lost",
    "pepper list",
    "audit verify",
    "audit export",
}
WITHOUT_CREDENTIAL = {"token report-leak"}


def command_names(group: object, prefix: str = "") -> Iterator[str]:
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from command_names(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def ended(*arguments: str) -> int:
    """The exit code of the entry point."""
    with pytest.raises(SystemExit) as exit_:
        main.main(arguments)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_the_commands_are_those_whose_rpcs_work() -> None:
    assert set(command_names(typer.main.get_command(main.app))) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_says_what_it_does_and_what_each_option_means(name: str) -> None:
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    head, _, options = result.stdout.partition("Options:\n")
    assert len(head.split("\n\n", 1)[1].strip()) > 20
    for line in options.splitlines():
        if line.startswith("  --"):
            assert "<" not in line, f"an option without a word for its value: {line}"


@pytest.mark.parametrize("name", sorted(COMMANDS - OFFLINE))
def test_every_command_that_calls_a_server_takes_the_same_options(name: str) -> None:
    said = run(*name.split(), "--help").stdout
    of_credentials = ("--token-file", "--data-dir")
    for option in ("--address", "--timeout", "--json"):
        assert option in said
    for option in of_credentials:
        assert (option in said) is (name not in WITHOUT_CREDENTIAL)


@pytest.mark.parametrize("name", ["check", "introspect", "permissions", "token report-leak"])
def test_who_takes_a_secret_says_why_it_is_no_argument(name: str) -> None:
    said = " ".join(run(*name.split(), "--help").stdout.split())
    assert "never an argument" in said
    assert "process lists" in said
    assert "DOORWARD_SECRET" in said


@pytest.mark.parametrize("kind", list(SecretKind))
@pytest.mark.parametrize("damage", [slice(None), slice(0, -1), slice(0, 40)])
@pytest.mark.parametrize(
    "before", [("check",), ("token", "revoke"), ("check", "--secret"), ("account", "list", "--limit"), ("nonsense",)]
)
def test_a_secret_among_the_arguments_is_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str], before: tuple[str, ...], kind: SecretKind, damage: slice
) -> None:
    text = generate(kind, new_id()).reveal()[damage]
    assert ended(*before, text) == 2
    captured = capsys.readouterr()
    assert "an argument holds a secret" in captured.err
    assert text[22:] not in captured.out + captured.err


def test_a_public_id_is_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("token", "show", new_id()) == 2
    assert "an argument holds a secret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("token", "nonsense"),
        ("token", "list"),
        ("account", "list", "--limit", "many"),
        ("serve", "--nonsense"),
    ],
)
def test_a_mistaken_command_line_ends_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(*arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_a_fault_of_ours_is_told_without_traceback_or_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = generate(SecretKind.OPERATOR, new_id()).reveal()
    monkeypatch.setenv("DOORWARD_TOKEN", secret)

    def broken(*_: object, **__: object) -> None:
        raise KeyError(secret)

    monkeypatch.setattr("doorward_server.cli.presented.find_secret", broken)
    assert ended("account", "list") == 2
    said = capsys.readouterr().err
    assert "KeyError at test_main.py" in said
    assert "Traceback" not in said
    assert secret[22:] not in said


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out.startswith("doorward ")


def test_an_answer_that_nobody_reads_ends_with_2_and_without_a_word() -> None:
    """Not with 1: that is what `check` says for denied."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        command = [sys.executable, "-m", "doorward_server.cli.main", "pepper", "add", "--pepper-file", "keys"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (2, b"")


def test_a_name_that_the_terminal_lacks_letters_for_is_printed_all_the_same() -> None:
    command = [
        sys.executable,
        "-m",
        "doorward_server.cli.main",
        "pepper",
        "add",
        "--pepper-file",
        "\N{CJK UNIFIED IDEOGRAPH-6771}",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"\\u6771" in result.stdout
