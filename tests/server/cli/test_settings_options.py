"""The settings as options: each one is there, options win over variables, and what is wrong is named without a secret."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from doorward_server import app as server_app
from doorward_server.cli.settings_options import read_settings, setting_options, takes_settings
from doorward_server.settings import Settings
from tests.server.cli.conftest import run

if TYPE_CHECKING:
    from types import ModuleType

URL = "postgresql://doorward:hunter2hunter2@db.example.com/doorward"


def refusal(capsys: pytest.CaptureFixture[str], **given: object) -> str:
    """What is said of settings that are wrong."""
    with pytest.raises(typer.Exit) as ended:
        read_settings(given, {})
    assert ended.value.exit_code == 2
    return capsys.readouterr().err


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which a server would have been started; each start ends with the status 7."""
    started: list[Settings] = []

    def start(settings: Settings) -> int:
        started.append(settings)
        return 7

    monkeypatch.setattr(server_app, "run", start)
    return started


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_serve_has_every_setting_with_variable_and_meaning(name: str) -> None:
    (option,) = [one for one in setting_options() if one.name == name]
    said = " ".join(run("serve", "--help").stdout.split())
    assert f"--{name.replace('_', '-')}" in said
    assert f"DOORWARD_{name.upper()}" in said
    assert option.meaning
    assert option.meaning.split()[0] in said


def test_help_shows_what_stands_in_brackets() -> None:
    assert "[IPV6]:PORT" in run("serve", "--help").stdout


def test_serve_starts_a_server_and_ends_with_its_status(served: list[Settings]) -> None:
    assert run("serve").exit_code == 7
    assert served == [Settings()]


def test_an_option_wins_over_its_variable_and_that_over_the_default(served: list[Settings]) -> None:
    run("serve", "--hold", "7", "--no-reflection", DOORWARD_HOLD="9", DOORWARD_DRAIN="3", DOORWARD_INSECURE="on")
    run("serve", "--no-insecure", DOORWARD_INSECURE="on")
    assert (served[0].hold, served[0].drain, served[0].insecure, served[0].reflection) == (7.0, 3.0, True, False)
    assert served[1].insecure is False


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("hold", "0.1", "greater than or equal to 0.5"),
        ("hold", "soon", "number"),
        ("database_pool", "1", "greater than or equal to 2"),
        ("log_level", "loud", "'debug'"),
        ("listen", "localhost", "HOST:PORT"),
        ("database_pooler", "statement", "'session' or 'transaction'"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_given_and_what_would_be_right(
    capsys: pytest.CaptureFixture[str], name: str, value: str, told: str
) -> None:
    said = refusal(capsys, **{name: value})
    assert said.startswith(f"Error: --{name.replace('_', '-')}: ")
    assert told in said
    assert repr(value) in said


def test_a_wrong_variable_is_named_as_such(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOORWARD_HOLD", "0.1")
    assert refusal(capsys).startswith("Error: DOORWARD_HOLD: ")


def test_everything_that_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, hold="0.1", drain="-1", log_format="xml")
    assert all(flag in said for flag in ("--hold", "--drain", "--log-format"))


def test_what_does_not_go_together_names_the_option_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--insecure" in refusal(capsys, listen="0.0.0.0:50051")
    assert refusal(capsys, database_url=URL).startswith("Error: --pepper-file: ")


def test_every_workers_page_has_a_port_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, http="127.0.0.1:65534", workers="4")
    assert said.startswith("Error: --http: ")
    assert "port 65537" in said
    assert "65532 or lower" in said
    assert "50051" in refusal(capsys, http="127.0.0.1:50050", workers="2")
    for http, workers in (("127.0.0.1:65532", "4"), ("127.0.0.1:50049", "2"), ("127.0.0.1:0", "4")):
        assert read_settings({"http": http, "workers": workers}, {}).http == http


@pytest.mark.parametrize(
    "given", [{"database_url": "mysql://doorward:hunter2hunter2@db"}, {"database_url": URL, "hold": "0"}]
)
def test_no_error_shows_a_database_password(capsys: pytest.CaptureFixture[str], given: dict[str, Any]) -> None:
    assert "hunter2" not in refusal(capsys, **given)


def test_no_help_shows_what_a_variable_holds() -> None:
    assert "hunter2" not in run("serve", "--help", DOORWARD_DATABASE_URL=URL).output


def test_what_is_filled_in_gives_way_to_option_and_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    filled_in = {"pepper_file": Path("filled-in")}
    assert read_settings({}, filled_in).pepper_file == Path("filled-in")
    assert read_settings({"pepper_file": "given"}, filled_in).pepper_file == Path("given")
    monkeypatch.setenv("DOORWARD_PEPPER_FILE", "variable")
    assert read_settings({}, filled_in).pepper_file == Path("variable")


def test_a_command_takes_only_the_settings_that_it_names() -> None:
    @takes_settings("data_dir")
    def command(_settings: Settings) -> None:
        raise AssertionError("never called")

    assert list(command.__annotations__) == ["data_dir"]


def _settings_doc() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "tools" / "settings_doc.py"
    spec = importlib.util.spec_from_file_location("settings_doc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_what_the_model_makes() -> None:
    document = _settings_doc()
    assert document.PAGE.read_text(encoding="utf-8") == document.rendered()


def test_the_settings_page_has_a_row_for_every_setting() -> None:
    rows = [line for line in _settings_doc().rendered().splitlines() if line.startswith("| `--")]
    assert [row.split("`")[1] for row in rows] == [option.flag for option in setting_options()]
    assert all(row.count(" | ") == 4 for row in rows)
