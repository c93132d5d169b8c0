"""The HTTP page of a real server: metrics, liveness, readiness."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from doorward.core.token_table import Tables
from doorward_server.monitoring import Monitoring, Sources
from doorward_server.replica.holding import Holding
from tests.support.stepped import SteppedClock, SteppedTiming

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def holding() -> Holding:
    return Holding(SteppedTiming(SteppedClock()), hold_ms=5000, tables=Tables(100), proofs=100)


@pytest.fixture
def page(holding: Holding) -> Iterator[str]:
    monitoring = Monitoring("127.0.0.1:0", Sources(holding, lambda: 0, dict, dict))
    monitoring.start()
    try:
        yield f"http://{monitoring.address}"
    finally:
        monitoring.stop()


def fetched(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def with_lease(holding: Holding) -> None:
    holding.registered("a", 1, 7, b"12345678")
    holding.renewed(holding.timing.now_ns(), 7, b"12345678", 1)


def test_a_process_is_alive_without_a_lease_and_ready_with_one(holding: Holding, page: str) -> None:
    assert fetched(f"{page}/livez") == (200, "alive\n")
    assert fetched(f"{page}/readyz")[0] == 503
    with_lease(holding)
    assert fetched(f"{page}/readyz") == (200, "ready\n")


def test_the_metrics_show_lease_position_and_lag(holding: Holding, page: str) -> None:
    assert "doorward_lease_seconds 0.0" in fetched(f"{page}/metrics")[1]
    with_lease(holding)
    holding.renewed(holding.timing.now_ns(), 9, b"abcdefgh", 2)
    status, text = fetched(f"{page}/metrics")
    assert status == 200
    assert "doorward_lease_seconds 4.0" in text
    assert "doorward_applied_revision 7.0" in text
    assert "doorward_lag_changes 2.0" in text
    assert "# TYPE doorward_barrier_seconds histogram" in text


def test_other_paths_are_not_found(page: str) -> None:
    assert fetched(f"{page}/secrets")[0] == 404
