"""A worker whose watchers may still decide when it dies: its row is not taken away before their sub-leases can have ended."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.cluster.test_workers import connected_to_each, events, replica_ids, running
from tests.support.server import PATIENCE_S
from tests.support.watching import Watching
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import ServerProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """Workers, of which each has a row."""
    with running(tmp_path) as server:
        yield server


def row_of(server: ServerProcess, pid: int) -> str:
    (number,) = {event["worker"] for event in events(server, "worker_started") if event["process"] == pid}
    return str([event for event in events(server, "replica_registered") if event["worker"] == number][-1]["replica_id"])


def killed(server: ServerProcess, pid: int) -> None:
    ended = len(events(server, "worker_ended"))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(events(server, "worker_ended")) > ended, PATIENCE_S)


def test_the_row_of_a_worker_with_a_watcher_is_left_to_be_pruned(server: ServerProcess) -> None:
    with connected_to_each(server) as by_process:
        victim, survivor = sorted(by_process)
        row = row_of(server, victim)
        with Watching(by_process[victim]) as watcher:
            watcher.granted()
            killed(server, victim)
        eventually(lambda: bool(events(server, "worker_rows_left")), PATIENCE_S)
        # Nothing changes here, so nobody prunes it.
        assert row in replica_ids(by_process[survivor])


def test_the_row_of_a_worker_whose_watcher_said_goodbye_goes_at_once(server: ServerProcess) -> None:
    with connected_to_each(server) as by_process:
        victim, survivor = sorted(by_process)
        row = row_of(server, victim)
        with Watching(by_process[victim]) as watcher:
            watcher.granted()
            watcher.goodbye()
            killed(server, victim)
        eventually(lambda: row not in replica_ids(by_process[survivor]), PATIENCE_S)
    assert events(server, "worker_rows_left") == []
