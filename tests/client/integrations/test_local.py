"""Every guard takes a LocalAuthorizer in place of a client: it decides in the service, and refuses as with a client."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.guarded import ADMITTED, NAMES, running
from tests.support.server import start_server, stubs_on
from tests.support.wire import an_account, eventually, mistyped, on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.guarded import Service
    from tests.support.server import ServerProcess

# The examples ask with it when this says so.
LOCALLY = {"DECIDE": "here"}


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose watchers are these services alone."""
    base = tmp_path_factory.mktemp("local")
    server = start_server(base / "data", base / "scratch", ["--hold", "1"])
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def local_service(name: str, server: ServerProcess, scratch: Path) -> Iterator[Service]:
    with running(name, server, scratch, **LOCALLY) as service:
        yield service


@pytest.mark.parametrize("name", NAMES)
def test_a_guard_admits_and_refuses_by_what_its_process_holds(
    name: str, own_server: ServerProcess, tmp_path: Path
) -> None:
    with grpc.insecure_channel(own_server.address) as channel, local_service(name, own_server, tmp_path) as service:
        account = an_account(stubs_on(channel, own_server))
        mine, other = account.project_ids
        issued = account.issue(on("job_admin", mine))

        def said(secret: str = issued.secret, project_id: str = mine) -> tuple[str, str]:
            return service.call("start", [f"Bearer {secret}"], project_id=project_id)[:2]

        assert said() == (ADMITTED, "")
        assert said(project_id=other) == ("denied", "PROJECT_NOT_GRANTED")
        assert said(mistyped(issued.secret))[0] == "unauthenticated"

        def is_watched() -> bool:
            """Whether the service confirms changes, and so decides by itself."""
            said()
            return account.set_plan("enterprise").propagation.watchers_confirmed == 1

        eventually(is_watched)
        propagation = account.revoke(issued.token.token_id).propagation
        assert said() == ("unauthenticated", "TOKEN_REVOKED")
        assert propagation.watchers_confirmed == 1
        assert propagation.replicas_expired == 0


def test_guards_whose_doorward_is_gone_admit_nobody(tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", tmp_path / "scratch", ["--hold", "1"])
    try:
        with contextlib.ExitStack() as opened:
            channel = opened.enter_context(grpc.insecure_channel(server.address))
            account = an_account(stubs_on(channel, server))
            issued = account.issue(on("job_admin", account.project_ids[0]))
            services = [opened.enter_context(local_service(name, server, tmp_path)) for name in NAMES]

            def said() -> dict[str, tuple[str, str]]:
                return {
                    service.name: service.call("start", [f"Bearer {issued.secret}"], project_id=account.project_ids[0])[
                        :2
                    ]
                    for service in services
                }

            assert said() == dict.fromkeys(NAMES, (ADMITTED, ""))
            server.kill()
            # Whoever held a sub-lease lost it with the stream.
            eventually(lambda: said() == dict.fromkeys(NAMES, ("undecided", "NOT_DECIDED")))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.process.pid, 9)
        server.process.wait()
