"""Which of a database URL's hosts a new connection begins with, and which connections lead to the primary.

Two kinds of host would keep a server waiting for ever: a machine that lost its power refuses nothing, and a deposed
primary takes connections, answers reads and acknowledges nothing. So whoever was kept waiting begins with another host the
next time; and since a renewal that is acknowledged is a write, it tells where the primary is, and no connection that leads
elsewhere is used for long after it. Used by `connect.Connector`, `pool.Database` and `line.Line`. Design section 6, External.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from doorward_server.storage.connect import Connection

__all__ = ["Hosts"]


class Hosts:
    """Indexes of the hosts of one URL, and of what is known about them. It waits for nothing and asks nobody."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._first = 0
        self._primary: int | None = None
        self._led_astray = False
        self._leads_to: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()

    def in_order(self, silent: int | None = None) -> list[int]:
        """What a new connection tries, one after the other; the one that was `silent` comes last."""
        order = [(self._first + step) % self._count for step in range(self._count)]
        return sorted(order, key=lambda index: index == silent)

    def trying(self, index: int) -> None:
        """Said before it is tried: whoever gives up on it meanwhile begins with the next one the next time."""
        self._first = (index + 1) % self._count

    def reached(self, index: int, connection: Connection) -> None:
        """`connection` leads there."""
        self._first = self._leads_to[connection] = index
        self._led_astray |= index != self._primary

    def of(self, connection: Connection) -> int | None:
        """Where `connection` leads."""
        return self._leads_to.get(connection)

    def is_astray(self, connection: Connection) -> bool:
        """Whether the last acknowledged write was elsewhere."""
        return self._count > 1 and self._primary is not None and self._leads_to.get(connection) != self._primary

    def found_primary(self, connection: Connection) -> bool:
        """A write was acknowledged where `connection` leads. Whether some connection since the last time may lead elsewhere."""
        index = self._leads_to.get(connection, self._first)
        may_lead_elsewhere = self._count > 1 and (self._led_astray or index != self._primary)
        self._first = self._primary = index
        self._led_astray = False
        return may_lead_elsewhere
