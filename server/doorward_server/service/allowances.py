"""How often each peer may do what needs no credential: some at once, then one at intervals; bounded in memory.

Addresses of one IPv6 network of 64 bits count as one peer: whoever has one of them has all. When too many peers are told
apart, the others share one allowance. Used by `report_leaked.py`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from doorward_server.errors import Exhausted

if TYPE_CHECKING:
    from doorward_server.replica.timing import Timing

__all__ = ["Allowances"]

PEERS: Final = 10_000
OTHERS: Final = "others"
NETWORK_BITS: Final = 64


class Allowances:
    """`burst` at once for each peer, and one more every `interval_ns`."""

    def __init__(self, timing: Timing, *, burst: int, interval_ns: int, peers: int = PEERS) -> None:
        self._timing = timing
        self._burst_ns = burst * interval_ns
        self._interval_ns = interval_ns
        self._peers = peers
        # When what each peer has taken will have come back; those who have everything need no place.
        self._due_ns: dict[str, int] = {}

    def take(self, peer: str) -> None:
        """Takes one.

        Raises:
            Exhausted: TOO_MANY_REQUESTS, with the time until there is one again.
        """
        now_ns = self._timing.now_ns()
        key = self._place_of(_network_of(peer), now_ns)
        after_ns = max(self._due_ns.get(key, 0), now_ns) + self._interval_ns
        early_ns = after_ns - now_ns - self._burst_ns
        if early_ns > 0:
            refused = Exhausted(
                "TOO_MANY_REQUESTS", "too many such calls have come from this address; try again in a moment"
            )
            refused.retry_after_s = early_ns / 1e9
            raise refused
        self._due_ns[key] = after_ns

    def _place_of(self, key: str, now_ns: int) -> str:
        if key not in self._due_ns and len(self._due_ns) >= self._peers:
            self._due_ns = {held: due_ns for held, due_ns in self._due_ns.items() if due_ns > now_ns}
            if len(self._due_ns) >= self._peers:
                return OTHERS
        return key


def _network_of(peer: str) -> str:
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, NETWORK_BITS), strict=False))
