"""A server's whole log as JSON: every line is an event of docs/logs.md."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import grpc

from doorward.v1.account_admin_pb2 import GetAccountRequest
from tests.repository.sources import ROOT
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import an_account, check, on_all, refused

if TYPE_CHECKING:
    from pathlib import Path


def test_every_line_is_an_event_that_is_documented(tmp_path: Path) -> None:
    documented = set(
        re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "logs.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    server = start_server(tmp_path / "data", tmp_path / "scratch", ["--log-format", "json", "--http", "127.0.0.1:0"])
    with grpc.insecure_channel(server.address) as channel:
        stubs = stubs_on(channel, server)
        account = an_account(stubs)
        secret = account.issue(on_all("member")).secret
        assert check(stubs, secret, "jobs:read", project_id=account.project_ids[0]).allowed
        refused(stubs.accounts.GetAccount, GetAccountRequest(account_id="x"), bearer(secret))
    assert server.stop() == 0

    lines = server.log.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    ours = {event["event"] for event in events if "logger" not in event}
    assert {"replica_registered", "change_applied", "server_stopped"} <= ours <= documented
    assert all({"event", "level", "timestamp"} <= event.keys() for event in events)
    assert secret not in "".join(lines)
