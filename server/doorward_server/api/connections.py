"""The TCP connections of a server that stops: closed as soon as no call runs on them, so that its clients lose none.

grpcio's shutdown answers CANCELLED to every call that reaches it in that moment (seen: 1.78 and 1.85; under load, most of
those that are under way), and no client's retry policy repeats that. What is on its way on a connection that is closed is
UNAVAILABLE instead: the client goes elsewhere and repeats it. grpcio has no word for this, so the sockets are found among
the process's own descriptors; on Linux only, elsewhere nothing is done. Called by `app.py` before the shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = ["let_go"]

log = structlog.get_logger()

DESCRIPTORS: Final = "/proc/self/fd"
# Less than a client's retries bridge, which end after a second and a half at the least.
LONGEST_S: Final = 1.0
LOOK_S: Final = 0.01


async def let_go(port: int, busy_peers: Callable[[], Collection[str]]) -> None:
    """Listens on `port` no more, and closes each connection on which no call runs; returns when none is left.

    After a second at the most: what is busy for longer is left to the shutdown. `busy_peers` tells whose connections a call
    runs on, in gRPC's notation. A Unix socket has the port 0, and is left alone.
    """
    if sys.platform != "linux" or port == 0:
        return
    with _sockets_on(port) as found:
        for one in found:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                # gRPC notes that it cannot accept any more, and goes on.
                _shut(one, socket.SHUT_RDWR)
    # First they are read no further: what was read is answered. Whoever still sends at the next look sees the end of it.
    unread: set[int] = set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_S):
            while _close_idle(port, {_port_of(peer) for peer in busy_peers()}, unread):  # noqa: ASYNC110 - gRPC's to end
                await asyncio.sleep(LOOK_S)
            return
    log.info("connections_left", busy=len(busy_peers()))


def _close_idle(port: int, busy: set[int], unread: set[int]) -> bool:
    """Closes the connections from other ports than `busy`, a step further than the last time; whether any is open."""
    is_any = False
    with _sockets_on(port) as found:
        for one in found:
            remote = _remote_port(one)
            is_any = is_any or remote != 0
            if remote and remote not in busy:
                _shut(one, socket.SHUT_RDWR if remote in unread else socket.SHUT_RD)
                unread.add(remote)
    return is_any


@contextlib.contextmanager
def _sockets_on(port: int) -> Iterator[list[socket.socket]]:
    """This process's TCP sockets with that local port, as descriptors of our own, open for the block."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in os.listdir(DESCRIPTORS):  # noqa: PTH208 - numbers are wanted, not paths
            with contextlib.suppress(OSError):  # it is no socket, or was closed since
                copy = stack.enter_context(_copy_of(int(name)))
                if copy.family in {socket.AF_INET, socket.AF_INET6} and copy.getsockname()[1] == port:
                    found.append(copy)
        yield found


def _copy_of(descriptor: int) -> socket.socket:
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _remote_port(one: socket.socket) -> int:
    """That of the other end; 0 if there is none, or none any more."""
    try:
        return int(one.getpeername()[1])
    except OSError:
        return 0


def _port_of(peer: str) -> int:
    """Of `ipv4:ADDRESS:PORT` or `ipv6:ADDRESS:PORT`."""
    port = peer.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0


def _shut(one: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the other end was faster
        one.shutdown(how)
