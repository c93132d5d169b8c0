"""A server that may be hurt: of its own, with a short hold, whose database a test locks, trips and alters."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from doorward.v1.account_admin_pb2 import PutAccountRequest, PutProjectRequest
from tests.support.rows import Rows
from tests.support.server import start_server, stubs_on
from tests.support.wire import OwnAccount, an_account, ask, check, eventually, fresh_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import ServerProcess, Stubs

# Short, since losing a lease takes as long; long enough for a busy machine to renew in.
HOLD_S: Final = 2
MAX_LIVE_TOKENS: Final = 2

TRIP: Final = """
CREATE FUNCTION trip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$;
"""
A_SILENT_REPLICA: Final = """
INSERT INTO replicas (replica_id, epoch, hold_ms, applied_revision, renewed_time, started_time, address)
VALUES (gen_random_uuid(), 1, 300000, 0, now(), now(), 'silent')
"""


@dataclass
class Frail:
    """The server, what speaks to it, its database, and an account there, another one for each test."""

    server: ServerProcess
    stubs: Stubs
    rows: Rows
    account: OwnAccount

    def put_account(self, account_id: str = "") -> PutAccountRequest:
        """A request that changes something."""
        return PutAccountRequest(account_id=account_id or fresh_id("acc"), display_name="An account", plan="team")

    def put_project(self) -> PutProjectRequest:
        """Another one."""
        account_id = self.account.account_id
        return PutProjectRequest(account_id=account_id, project_id=fresh_id("p"), display_name="A project")

    @contextlib.contextmanager
    def tripped(self, body: str, trigger: str) -> Iterator[None]:
        """Runs `body` whenever an account is written."""
        self.rows.fetch(TRIP.format(body))
        deferred = "DEFERRABLE INITIALLY DEFERRED" if "CONSTRAINT" in trigger else ""
        self.rows.fetch(f"CREATE {trigger} ON accounts {deferred} FOR EACH ROW EXECUTE FUNCTION trip()")
        try:
            yield
        finally:
            self.rows.fetch("DROP FUNCTION trip CASCADE")

    @contextlib.contextmanager
    def a_silent_replica(self) -> Iterator[None]:
        """Beside it a replica that has registered and is not heard of any more."""
        self.rows.fetch(A_SILENT_REPLICA)
        try:
            yield
        finally:
            self.rows.fetch("DELETE FROM replicas WHERE address = 'silent'")

    def recover(self) -> None:
        """Returns once it answers checks and makes changes."""

        def is_well() -> bool:
            with contextlib.suppress(grpc.RpcError):
                check(self.stubs, "nonsense", "jobs:read", project_id="p")
                ask(self.stubs.accounts.PutProject, self.put_project(), self.stubs.admin)
                return True
            return False

        eventually(is_well)
        self.account = an_account(self.stubs)


@contextlib.contextmanager
def frail_server(base: Path) -> Iterator[Frail]:
    """Runs one in `base`."""
    arguments = ["--max-live-tokens", str(MAX_LIVE_TOKENS), "--hold", str(HOLD_S)]
    server = start_server(base / "data", base / "scratch", arguments)
    with grpc.insecure_channel(server.address) as channel, contextlib.closing(Rows(server.data_dir)) as rows:
        stubs = stubs_on(channel, server)
        yield Frail(server, stubs, rows, an_account(stubs))
    assert server.stop() == 0
