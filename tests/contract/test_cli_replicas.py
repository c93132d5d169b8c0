"""`doorward replicas`, against a real server: an administrator sees at a glance which replica is late."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import pytest

from doorward.v1.system_admin_pb2 import ListReplicasRequest
from tests.contract.test_cli import CommandLine
from tests.support.frail import HOLD_S
from tests.support.wire import ask, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.frail import Frail

pytestmark = pytest.mark.usefixtures("recovered")

# Long, so that a slow test does not make one that is late one whose lease has ended.
HOLD_OF_OTHERS_S: Final = 300
REPLICA: Final = """
INSERT INTO replicas (replica_id, epoch, hold_ms, applied_revision, renewed_time, started_time, address)
SELECT gen_random_uuid(), epoch, $1, revision - $2, now() - $3 * interval '1 second', now(), $4 FROM state
"""


@pytest.fixture
def line(frail: Frail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line that leads to the server that may be hurt."""
    for name in list(os.environ):
        if name.startswith(("PG", "DOORWARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOORWARD_ADDRESS", frail.server.address)
    monkeypatch.setenv("DOORWARD_DATA_DIR", str(frail.server.data_dir))
    monkeypatch.chdir(tmp_path)
    return CommandLine()


@contextlib.contextmanager
def another_replica(frail: Frail, address: str, *, renewed_ago_s: float, lag: int = 0) -> Iterator[None]:
    """A row beside the server's own, of a replica that is not heard of any more."""
    frail.rows.fetch(REPLICA, HOLD_OF_OTHERS_S * 1000, lag, renewed_ago_s, address)
    try:
        yield
    finally:
        frail.rows.fetch("DELETE FROM replicas WHERE address = $1", address)


def row_of(line: CommandLine, address: str) -> list[str]:
    """LEASE, RENEWED and so on of the replica at this address, word by word."""
    (row,) = [words for words in map(str.split, line.done("replicas").splitlines()) if address in words]
    return row[row.index(address) + 1 :]


def test_a_replica_that_renews_holds_a_good_lease(frail: Frail, line: CommandLine) -> None:
    eventually(lambda: row_of(line, frail.server.address)[0] == "good")
    renewed = row_of(line, frail.server.address)[1:]
    assert renewed[1:6] == ["s", "ago", "of", str(HOLD_S), "s"]
    assert float(renewed[0]) >= 0


def test_who_missed_a_renewal_is_late_and_its_lag_is_shown(frail: Frail, line: CommandLine) -> None:
    with another_replica(frail, "late.example:1", renewed_ago_s=0.6 * HOLD_OF_OTHERS_S, lag=3):
        row = row_of(line, "late.example:1")
    assert row[0] == "late"
    assert row[2:6] == ["s", "ago", "of", str(HOLD_OF_OTHERS_S)]
    assert float(row[1]) >= 0.6 * HOLD_OF_OTHERS_S
    assert row[8] == "3"


def test_who_is_silent_for_a_lease_has_none(frail: Frail, line: CommandLine) -> None:
    with another_replica(frail, "dead.example:1", renewed_ago_s=0.8 * HOLD_OF_OTHERS_S):
        assert row_of(line, "dead.example:1")[0] == "ended"


def test_the_time_since_a_renewal_is_the_databases_and_stands_in_json(frail: Frail, line: CommandLine) -> None:
    with another_replica(frail, "late.example:1", renewed_ago_s=1000):
        (shown,) = [found for found in line.answer("replicas")["replicas"] if found["address"] == "late.example:1"]
        listed = ask(frail.stubs.system.ListReplicas, ListReplicasRequest(), frail.stubs.admin)
    (found,) = [one for one in listed.replicas if one.address == "late.example:1"]
    assert found.since_renewal.seconds >= float(shown["since_renewal"].removesuffix("s")) - 1 >= 999
