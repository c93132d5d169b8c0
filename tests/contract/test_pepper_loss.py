"""A pepper file that is lost for good costs a bcrypt for each secret, and nobody a new one."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import grpc
import pytest

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.credentials import pepper
from tests.contract.test_cli import CommandLine
from tests.support.rows import Rows
from tests.support.server import ServerProcess, bearer, start_server, stubs_on
from tests.support.wire import OwnAccount, an_account, another_of, ask, check, on_all, refused, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def served(tmp_path: Path) -> Iterator[ServerProcess]:
    server = start_server(tmp_path / "data", tmp_path / "scratch")
    try:
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on the data directory."""
    for name in list(os.environ):
        if name.startswith(("PG", "DOORWARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOORWARD_DATA_DIR", str(tmp_path / "data"))
    return CommandLine()


def test_after_the_loss_of_the_pepper_file_every_secret_still_works(tmp_path: Path, line: CommandLine) -> None:
    path = tmp_path / "data" / "pepper.keys"
    with served(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        account = an_account(stubs_on(channel, server))
        issued, revoked = account.issue(on_all("account_admin")), account.issue(on_all("job_admin"))
        account.revoke(revoked.token.token_id)
    lost = pepper.load(path).current_id
    path.unlink()

    with pytest.raises(AssertionError, match=f"doorward pepper declare-lost {lost}"):
        start_server(tmp_path / "data", tmp_path / "scratch")
    assert not path.exists(), "a new file would hide that the former one was lost"
    said = line.done("pepper", "declare-lost", lost)
    new = pepper.load(path).current_id
    assert new in said
    assert (
        f"The key {lost} counts as lost. Proved by bcrypt when they are presented next: 1 secrets of tokens, 2 of"
        in said
    )

    with served(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        stubs = stubs_on(channel, server)
        account = OwnAccount(stubs, account.account_id, account.project_ids)

        def asked(secret: str) -> str:
            return verdict(check(stubs, secret, "jobs:write", project_id=account.project_ids[0]))

        assert asked(issued.secret) == "ALLOWED"
        assert asked(another_of(issued.secret)) == "TOKEN_UNRECOGNIZED"
        assert asked(revoked.secret) == "TOKEN_REVOKED"
        assert account.token(issued.token.token_id).token_id == issued.token.token_id
        ask(stubs.tokens.ListTokens, pb.ListTokensRequest(account_id=account.account_id), bearer(issued.secret))
        wrong = bearer(another_of(issued.secret))
        assert refused(stubs.tokens.GetToken, pb.GetTokenRequest(token_id="x"), wrong).code == "UNAUTHENTICATED"
        (event,) = ask(
            stubs.tokens.ListAuditEvents, pb.ListAuditEventsRequest(action="DeclarePepperLost"), stubs.admin
        ).audit_events
        assert (event.actor, event.subject) == ("direct", f"pepper:{lost}")
        with contextlib.closing(Rows(server.data_dir)) as rows:
            secrets = dict(rows.fetch("SELECT token_id, pepper_id FROM token_secrets"))
            operators = {pepper_id for (pepper_id,) in rows.fetch("SELECT pepper_id FROM operators")}
            ((fingerprints,),) = rows.fetch("SELECT pepper_fingerprints FROM state")
        assert secrets[issued.token.token_id] == new, "the next restart is warm again"
        assert operators == {new}
        assert set(json.loads(fingerprints)) == {new}
    assert line.run("audit", "verify").code == 0


def test_a_key_that_is_there_or_that_nobody_knows_is_not_declared_lost(tmp_path: Path, line: CommandLine) -> None:
    path = tmp_path / "data" / "pepper.keys"
    with served(tmp_path):
        pass
    present = pepper.load(path).current_id
    ended = line.run("pepper", "declare-lost", present)
    assert ended.code == 2
    assert f"the key {present} is not lost: {path} has it" in ended.err
    ended = line.run("pepper", "declare-lost", "k_nobody")
    assert ended.code == 2
    assert f"it knows: {present}" in ended.err
    with served(tmp_path):
        pass
