"""`doorward token describe-self | revoke-self`, with a token as the credential, against a real server."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from google.protobuf.duration_pb2 import Duration

from doorward.v1.token_admin_pb2 import RotateTokenRequest
from tests.contract.test_cli import CommandLine
from tests.support.wire import ask, on_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import OwnAccount


@pytest.fixture
def line(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line that finds the server, and no credential but the one that a test gives it."""
    for name in list(os.environ):
        if name.startswith(("PG", "DOORWARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOORWARD_ADDRESS", server.address)
    monkeypatch.chdir(tmp_path)
    return CommandLine()


def secret_file(directory: Path, secret: str) -> str:
    path = directory / "own.token"
    path.touch(mode=0o600)
    path.write_text(secret)
    return str(path)


def test_a_token_is_shown_to_whoever_holds_it(line: CommandLine, account: OwnAccount, tmp_path: Path) -> None:
    issued = account.issue(on_all("member"), display_name="nightly")
    own = ("--token-file", secret_file(tmp_path, issued.secret))

    shown = line.done("token", "describe-self", *own)
    answer = line.answer("token", "describe-self", *own)

    assert shown.split()[:4] == ["Token", issued.token.token_id, "Name", "nightly"]
    assert "rotated out" not in shown
    assert answer["token"]["token_id"] == issued.token.token_id
    assert issued.secret not in shown + json.dumps(answer)


def test_who_holds_a_former_secret_is_told_to_change_over(line: CommandLine, account: OwnAccount, stubs: Stubs) -> None:
    issued = account.issue(on_all("member"))
    request = RotateTokenRequest(token_id=issued.token.token_id, overlap=Duration(seconds=3600))
    end = ask(stubs.tokens.RotateToken, request, stubs.admin).former_secret_expire_time

    shown = line.done("token", "describe-self", DOORWARD_TOKEN=issued.secret)

    assert f"stops at {end.ToDatetime():%Y-%m-%d %H:%M:%S}Z" in shown


def test_a_token_ends_itself_and_a_repeat_is_not_recognized(line: CommandLine, account: OwnAccount) -> None:
    issued = account.issue(on_all("member"))

    revoked = line.done("token", "revoke-self", "--reason", "job finished", DOORWARD_TOKEN=issued.secret)
    repeat = line.run("token", "revoke-self", DOORWARD_TOKEN=issued.secret)

    assert "job finished" in revoked
    assert "True everywhere: revision " in revoked
    assert (repeat.code, "CREDENTIAL_UNRECOGNIZED" in repeat.err) == (2, True)


def test_an_operator_has_no_self(line: CommandLine, server: ServerProcess) -> None:
    ended = line.run("token", "describe-self", "--token-file", str(server.operator_token_file))

    assert (ended.code, "CALLER_NOT_PERMITTED" in ended.err) == (2, True)
