"""How often a peer may ask, by numbers instead of seconds."""

from __future__ import annotations

import pytest

from doorward_server.errors import Exhausted
from doorward_server.service.allowances import Allowances
from tests.support.stepped import SteppedClock, SteppedTiming

INTERVAL_MS = 1000


def allowances(clock: SteppedClock, *, burst: int = 3, peers: int = 100) -> Allowances:
    return Allowances(SteppedTiming(clock), burst=burst, interval_ns=INTERVAL_MS * 1_000_000, peers=peers)


def taken(limits: Allowances, peer: str, times: int = 1) -> int:
    """How many of so many were allowed."""
    allowed = 0
    for _ in range(times):
        try:
            limits.take(peer)
        except Exhausted:
            continue
        allowed += 1
    return allowed


def test_a_peer_may_ask_a_burst_and_then_once_an_interval() -> None:
    clock = SteppedClock()
    limits = allowances(clock)
    assert taken(limits, "10.0.0.1", 10) == 3
    clock.advance(INTERVAL_MS - 1)
    assert taken(limits, "10.0.0.1") == 0
    clock.advance(1)
    assert taken(limits, "10.0.0.1", 10) == 1
    clock.advance(100 * INTERVAL_MS)
    assert taken(limits, "10.0.0.1", 10) == 3, "what was not taken is kept no longer than a burst"


def test_who_is_refused_is_told_when_to_try_again() -> None:
    clock = SteppedClock()
    limits = allowances(clock)
    taken(limits, "10.0.0.1", 3)
    clock.advance(INTERVAL_MS // 4)
    with pytest.raises(Exhausted) as refused:
        limits.take("10.0.0.1")
    assert refused.value.reason == "TOO_MANY_REQUESTS"
    assert refused.value.retry_after_s == pytest.approx(0.75)


def test_peers_are_not_in_each_others_way() -> None:
    limits = allowances(SteppedClock())
    assert [taken(limits, peer, 5) for peer in ("10.0.0.1", "10.0.0.2", "unix:")] == [3, 3, 3]


@pytest.mark.parametrize(
    ("first", "second"),
    [("2001:db8::1", "2001:db8::ffff:1"), ("10.0.0.1", "::ffff:10.0.0.1"), ("fe80::1%eth0", "fe80::2%eth1")],
)
def test_addresses_that_one_peer_has_count_as_one(first: str, second: str) -> None:
    limits = allowances(SteppedClock())
    assert taken(limits, first, 2) + taken(limits, second, 5) == 3


def test_networks_of_others_count_apart() -> None:
    limits = allowances(SteppedClock())
    assert [taken(limits, peer, 5) for peer in ("2001:db8:0:1::1", "2001:db8:0:2::1")] == [3, 3]


def test_memory_is_bounded_and_whoever_is_not_told_apart_shares() -> None:
    clock = SteppedClock()
    limits = allowances(clock, peers=10)
    assert taken(limits, "10.0.0.1", 3) == 3
    assert sum(taken(limits, f"10.0.1.{number}") for number in range(50)) == 9 + 3
    assert taken(limits, "10.0.0.1") == 0, "who is known already is not forgotten for others"
    clock.advance(3 * INTERVAL_MS)
    assert taken(limits, "10.0.2.1", 5) == 3, "and places come free"
