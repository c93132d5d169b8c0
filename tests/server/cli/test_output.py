"""What is printed: JSON for programs, tables for people, and nothing that a table cuts."""

from __future__ import annotations

import io
import json
import sys

import pytest
import typer

from doorward.v1 import account_admin_pb2, authorizer_pb2, types_pb2
from doorward_server.cli import output


def test_json_has_the_contracts_names_and_every_default() -> None:
    parsed = json.loads(output.json_of(authorizer_pb2.CheckResponse(token_id="T", account_id="acme")))
    assert parsed == {
        "allowed": False,
        "reason": "DENY_REASON_UNSPECIFIED",
        "token_id": "T",
        "account_id": "acme",
        "revision": "",
    }


def test_json_is_ascii_so_that_no_terminal_and_no_pipe_chokes_on_it() -> None:
    message = types_pb2.Account(display_name="Café \x1b[2J \u202e")
    text = output.json_of(message)
    assert text.isascii()
    assert json.loads(text)["display_name"] == "Café \x1b[2J \u202e"


def test_an_id_is_never_cut_or_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    rows = [("a" * 64, "b" * 64, "c" * 500), ("short", "", "end")]
    output.say(output.table(("ONE", "TWO", "THREE"), rows))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == list(rows[0])


def test_a_table_is_plain_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(output.table(("STATE", "N"), [(output.styled("ACTIVE", "green"), "1")]), "after it")
    assert capsys.readouterr().out == "STATE   N\nACTIVE  1\nafter it\n"


def test_what_looks_like_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("[bold]x[/bold] :smile:", output.details([("[red]", "[/]")]))
    assert capsys.readouterr().out == "[bold]x[/bold] :smile:\n[red]  [/]\n"


def test_a_value_of_several_lines_stays_in_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(output.details([("Grants", "a:*\nb:p1"), ("Name", "x")]))
    assert capsys.readouterr().out == "Grants  a:*\n        b:p1\nName    x\n"


def test_foreign_text_cannot_move_the_cursor() -> None:
    assert output.shown("a\x1b[2Jb\nc\u202ed\x9be é 東京") == "a\\x1b[2Jb\\nc\\u202ed\\x9be é 東京"


def test_an_empty_list_says_so_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_list(account_admin_pb2.ListAccountsResponse(), ("A",), [], "There is none.", as_json=False)
    assert capsys.readouterr() == ("", "There is none.\n")


def test_an_empty_list_is_json_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_list(account_admin_pb2.ListAccountsResponse(), ("A",), [], "There is none.", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"accounts": [], "next_page_token": ""}


class _Closed(io.StringIO):
    """What standard output is when the disk is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_an_answer_that_cannot_be_written_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", _Closed())
    with pytest.raises(typer.Exit) as ended:
        output.write("allowed\n")
    assert ended.value.exit_code == 2
    assert "No space left on device" in capsys.readouterr().err
