"""The command line as its users run it, against a real server; the main story in processes of its own.

What each option does is tested in tests/server/cli; here is what only both together can show.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from doorward.core.secret import SecretKind, generate, new_id
from doorward_server.cli.main import app
from tests.support.server import start_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.server import ServerProcess


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


class CommandLine:
    """A shell in an empty directory, whose variables lead to the server with its first admin's credential."""

    def run(self, *arguments: str, given: str = "", **environment: str) -> Ended:
        """One command, ended; in this process, which saves the time to start another."""
        result = CliRunner().invoke(app, arguments, input=given, env=environment, catch_exceptions=False)
        return Ended(result.exit_code, result.stdout, result.stderr)

    def done(self, *arguments: str, given: str = "", **environment: str) -> str:
        """What a command printed that ended with 0."""
        ended = self.run(*arguments, given=given, **environment)
        assert ended.code == 0, ended.err
        return ended.out

    def answer(self, *arguments: str, given: str = "", **environment: str) -> Any:
        """The same as JSON."""
        return json.loads(self.done(*arguments, "--json", given=given, **environment))


class CommandProcesses(CommandLine):
    """The same, each command in a process of its own."""

    def run(self, *arguments: str, given: str = "", **environment: str) -> Ended:
        result = subprocess.run(
            [sys.executable, "-m", "doorward_server.cli.main", *arguments],
            env={**os.environ, **environment},
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(result.returncode, result.stdout, result.stderr)


@pytest.fixture
def line(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line of the test's own."""
    for name in list(os.environ):
        if name.startswith(("PG", "DOORWARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOORWARD_ADDRESS", server.address)
    monkeypatch.setenv("DOORWARD_DATA_DIR", str(server.data_dir))
    monkeypatch.chdir(tmp_path)
    return CommandLine()


@pytest.fixture
def account_id(line: CommandLine) -> str:
    """An account of the test's own, on the plan `team`, with the project `<account>-p1`."""
    account_id = f"cli-{uuid4().hex[:8]}"
    line.done("account", "put", account_id, "--display-name", "Café [x] 東京", "--plan", "team")
    line.done("project", "put", f"{account_id}-p1", "--account", account_id, "--display-name", "First")
    return account_id


def issue(line: CommandLine, account_id: str, *more: str) -> Any:
    """Issues a token with `job_admin` on the account's project; the whole answer."""
    grant = f"job_admin:{account_id}-p1"
    return line.answer("token", "issue", "--account", account_id, "--display-name", "n", "--grant", grant, *more)


def test_a_token_is_issued_checked_revoked_and_seen_denied(account_id: str) -> None:
    line = CommandProcesses()
    project = f"{account_id}-p1"
    said = line.done(
        "token", "issue", "--account", account_id, "--display-name", "nightly", "--grant", f"job_admin:{project}",
        "--ttl", "90d", "--label", "team=data", "--secret-file", "nightly.secret",
    )  # fmt: skip
    (token_id,) = [text.split()[1] for text in said.splitlines() if text.startswith("Token ")]
    check = ("check", "--permission", "jobs:write", "--project", project, "--secret-file", "nightly.secret")

    assert line.done(*check).startswith(f"allowed (token {token_id}, account {account_id}, revision ")
    elsewhere = line.run(
        "check", "--permission", "billing:read", "--account", account_id, "--secret-file", "nightly.secret"
    )
    assert (elsewhere.code, elsewhere.out.split()[:2]) == (1, ["denied:", "PERMISSION_NOT_GRANTED:"])
    assert "jobs:write" in line.done("permissions", "--project", project, "--secret-file", "nightly.secret").split()
    assert "Active       yes" in line.done("introspect", "--secret-file", "nightly.secret")

    revoked = line.answer("token", "revoke", token_id, "--reason", "contractor left")
    denied = line.run(*check)
    assert (denied.code, denied.out.split()[:2]) == (1, ["denied:", "TOKEN_REVOKED:"])
    shown = line.done("token", "show", token_id)
    assert "REVOKED" in shown
    assert "contractor left" in shown
    assert line.done("await-propagation", revoked["propagation"]["revision"]).startswith("True everywhere: ")


def test_lists_show_what_is_there(line: CommandLine, account_id: str) -> None:
    ids = [issue(line, account_id)["token"]["token_id"] for _ in range(3)]
    line.done("token", "revoke", ids[0])
    listed = line.run("token", "list", "--account", account_id, "--limit", "2")
    assert [row.split()[0] for row in listed.out.splitlines()[1:]] == [ids[2], ids[1]]
    assert "--limit" in listed.err
    revoked = line.answer("token", "list", "--account", account_id, "--state", "revoked")
    assert [token["token_id"] for token in revoked["tokens"]] == [ids[0]]
    assert account_id in line.done("account", "list", "--limit", "0")
    assert line.answer("project", "list", "--account", account_id)["projects"][0]["display_name"] == "First"
    assert "Café [x] 東京" in line.done("account", "get", account_id)


def test_the_catalog_and_the_replicas_can_be_seen(line: CommandLine, account_id: str) -> None:
    sets = line.answer("token", "permission-sets", "--account", account_id)["permission_sets"]
    assert {one["name"]: one["title"] for one in sets if one["covered"]}["account_admin"] == "Owner"
    assert line.done("catalog", "show", "--toml") == line.answer("catalog", "show")["catalog"]
    (replica,) = line.answer("replicas")["replicas"]
    assert replica["replica_id"] in line.done("replicas")


def test_only_checking_writes_nothing(line: CommandLine, account_id: str, tmp_path: Path) -> None:
    answer = issue(line, account_id, "--validate-only", "--secret-file", "none")
    assert answer["secret"] == ""
    assert "propagation" not in answer
    assert line.answer("token", "list", "--account", account_id)["tokens"] == []
    assert not (tmp_path / "none").exists()


def test_a_callers_credential_may_check_and_no_more(line: CommandLine, account_id: str, server: ServerProcess) -> None:
    secret = issue(line, account_id)["secret"]
    caller = ("--token-file", str(server.caller_token_file))
    about = ("--permission", "jobs:write", "--project", f"{account_id}-p1")
    assert line.run("check", *about, *caller, given=secret).code == 0
    refused = line.run("token", "list", "--account", account_id, *caller)
    assert refused.code == 2
    assert refused.err.startswith("Error: PERMISSION_DENIED (CALLER_NOT_PERMITTED): ")


def test_every_bad_field_is_told_at_once(line: CommandLine) -> None:
    wrong = ("--display-name", "", "--grant", "job_admin:no project", "--label", f"{'k' * 64}=v", "--ttl", "0s")
    refused = line.run("token", "issue", "--account", "no account", *wrong)
    assert refused.code == 2
    assert refused.err.startswith("Error: INVALID_ARGUMENT (INVALID_FIELDS): ")
    for field in ("account_id", "display_name", "grants[0].project_ids[0]", "labels", "ttl"):
        assert f"\n  {field}" in refused.err


def test_an_unknown_secret_is_denied_and_an_unknown_permission_an_error(line: CommandLine) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    unknown = line.run("check", "--permission", "jobs:write", "--project", "p", given=secret)
    assert (unknown.code, unknown.out.split()[1]) == (1, "TOKEN_UNRECOGNIZED:")
    wrong = line.run("check", "--permission", "jobs:delete", "--project", "p", given=secret)
    assert wrong.code == 2
    assert "PERMISSION_UNKNOWN" in wrong.err
    assert secret not in unknown.out + unknown.err + wrong.err


def test_an_unknown_credential_is_refused_and_not_shown(line: CommandLine) -> None:
    credential = generate(SecretKind.OPERATOR, new_id()).reveal()
    refused = line.run("account", "list", DOORWARD_TOKEN=credential)
    assert refused.code == 2
    assert refused.err.startswith("Error: UNAUTHENTICATED (CREDENTIAL_UNRECOGNIZED): ")
    assert credential not in refused.err


def test_an_operator_made_on_a_running_servers_database_may_call_at_once(line: CommandLine, account_id: str) -> None:
    create = ("operator", "create", "--direct", "--role", "auditor", "--display-name", "audit")
    CommandProcesses().done(*create, "--secret-file", "auditor.token")
    auditor = ("--token-file", "auditor.token")
    assert account_id in line.done("account", "get", account_id, *auditor)
    assert line.run("token", "revoke", new_id(), *auditor).code == 2


@pytest.mark.usefixtures("line")
def test_a_running_servers_schema_is_up_to_date() -> None:
    assert CommandProcesses().done("db", "migrate") == "The schema is up to date.\n"


def test_a_key_in_use_cannot_be_retired(line: CommandLine) -> None:
    (key,) = line.answer("pepper", "list")["keys"]
    refused = line.run("pepper", "retire", key["key_id"])
    assert (refused.code, key["current"]) == (2, True)
    assert "current" in refused.err


def test_what_the_server_says_to_try_works_as_it_stands(
    line: CommandLine, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    (to_try,) = [
        text.strip() for text in server.output.read_text().splitlines() if text.strip().startswith("doorward ")
    ]
    monkeypatch.delenv("DOORWARD_ADDRESS")
    monkeypatch.delenv("DOORWARD_DATA_DIR")
    assert line.done(*shlex.split(to_try)[1:]).startswith("The log ends at ")


def test_a_pepper_key_is_replaced_and_retired_and_the_next_start_does_without_it(
    tmp_path: Path, line: CommandLine
) -> None:
    """Two restarts: with the new key as the current one, and without the old one."""
    data_dir, scratch = tmp_path / "data", tmp_path / "scratch"
    here = ("--data-dir", str(data_dir))
    start_server(data_dir, scratch).stop()
    (former,) = line.answer("pepper", "list", *here)["keys"]
    line.done("pepper", "add", *here)
    line.done("pepper", "activate", line.answer("pepper", "list", *here)["keys"][1]["key_id"], *here)

    restarted = start_server(data_dir, scratch)
    try:
        needed = CommandProcesses().run("pepper", "retire", former["key_id"], *here)
        for credential in (restarted.operator_token_file, restarted.caller_token_file):
            ask = ("check", "--permission", "jobs:read", "--project", "p", "--token-file", str(credential))
            assert line.run(*ask, "--address", restarted.address, given="x").code == 1
        CommandProcesses().done("pepper", "retire", former["key_id"], *here)
    finally:
        restarted.stop()
    assert (needed.code, "of operators: 2" in needed.err) == (2, True)

    again = start_server(data_dir, scratch)
    try:
        assert line.done("account", "list", "--address", again.address, *here) == ""
    finally:
        again.stop()
