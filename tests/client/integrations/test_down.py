"""Doorward slow, frozen or gone: every guard refuses, says when to come back, and admits again as soon as it is answered."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.guarded import ADMITTED, NAMES, Service, running
from tests.support.server import start_server, stubs_on
from tests.support.wire import an_account, eventually, on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import ServerProcess


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that may be hurt."""
    server = start_server(tmp_path / "data", tmp_path / "scratch")
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.process.pid, signal.SIGCONT)
        server.stop()


def answers(services: list[Service], secret: str, project_id: str) -> dict[str, tuple[str, str]]:
    return {
        service.name: service.call("start", [f"Bearer {secret}"], project_id=project_id)[:2] for service in services
    }


def test_a_service_whose_doorward_does_not_answer_admits_nobody(own_server: ServerProcess, tmp_path: Path) -> None:
    with grpc.insecure_channel(own_server.address) as channel:
        account = an_account(stubs_on(channel, own_server))
        secret, project_id = account.issue(on("job_admin", account.project_ids[0])).secret, account.project_ids[0]
    with contextlib.ExitStack() as started:
        services = [started.enter_context(running(name, own_server, tmp_path)) for name in NAMES]
        everyone = dict.fromkeys(NAMES, (ADMITTED, ""))
        nobody = dict.fromkeys(NAMES, ("undecided", "NOT_DECIDED"))
        assert answers(services, secret, project_id) == everyone

        os.kill(own_server.process.pid, signal.SIGSTOP)
        assert answers(services, secret, project_id) == nobody

        os.kill(own_server.process.pid, signal.SIGCONT)
        eventually(lambda: answers(services, secret, project_id) == everyone)

        own_server.kill()
        assert answers(services, secret, project_id) == nobody
        # What can be refused without asking is refused as ever.
        assert {service.call("start", [], project_id=project_id).reason for service in services} == {
            "CREDENTIAL_MISSING"
        }
        assert {service.call("purge", [f"Bearer {secret}"], project_id=project_id).reason for service in services} == {
            "NO_RULE"
        }
        for service in services:
            assert "requests are refused" in service.log.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_service_that_never_reached_doorward_admits_nobody(name: str, server: ServerProcess, tmp_path: Path) -> None:
    nowhere = f"unix:{tmp_path}/nobody"
    with running(name, nowhere, tmp_path, DOORWARD_TOKEN_FILE=str(server.caller_token_file)) as service:
        account = an_account_of(server)
        assert service.call("start", [f"Bearer {account[0]}"], project_id=account[1])[:2] == (
            "undecided",
            "NOT_DECIDED",
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_service_whose_own_credential_is_refused_admits_nobody(
    name: str, server: ServerProcess, tmp_path: Path
) -> None:
    secret, project_id = an_account_of(server)
    (tmp_path / "of-a-token.token").write_text(secret)
    # A service token is no operator: it may ask about nobody.
    with running(name, server.address, tmp_path, DOORWARD_TOKEN_FILE=str(tmp_path / "of-a-token.token")) as service:
        answer = service.call("start", [f"Bearer {secret}"], project_id=project_id)
        assert answer[:2] == ("undecided", "NOT_DECIDED")


def an_account_of(server: ServerProcess) -> tuple[str, str]:
    with grpc.insecure_channel(server.address) as channel:
        account = an_account(stubs_on(channel, server))
        return account.issue(on("job_admin", account.project_ids[0])).secret, account.project_ids[0]
