"""Holds a port for the workers of one parent (design section 9): proves it free, then lets only those who share it in.

SO_REUSEPORT admits whoever sets it, so it must not be what decides whether the port is free: this socket is bound without
it, which fails while anybody else has the port, and sets it only then. It never listens, and so takes no connection; but
as long as it is open, a server that does not share ports is refused. Called by `parent.py`. Linux only: elsewhere the
connections would not be spread.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from doorward_server.settings import Listen
from doorward_server.start import StartRefused, cannot_listen

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["held_port"]

# This machine does not have the address, such as ::1 of localhost where IPv6 is off.
ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextlib.contextmanager
def held_port(text: str) -> Iterator[str]:
    """Holds HOST:PORT for the block; yields the address with the real port, where it was 0.

    Raises:
        StartRefused: the port is taken, or the address is none of this machine.
    """
    if sys.platform != "linux":
        raise StartRefused("several workers can share a port on Linux only; run one (--workers 1)")
    listen = Listen(text)
    port, is_held = listen.port, False
    with contextlib.ExitStack() as held:
        for family, address in _addresses(listen):
            try:
                bound = held.enter_context(_bound(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno in ABSENT:
                    continue
                why = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
                raise StartRefused(cannot_listen(text, why)) from None
            port, is_held = bound.getsockname()[1], True
            if _is_wildcard(address[0]):
                break
        if not is_held:
            raise StartRefused(cannot_listen(text, "the address is none of this machine"))
        yield f"{text.rpartition(':')[0]}:{port}"


def _addresses(listen: Listen) -> list[tuple[int, tuple[Any, ...]]]:
    """Where gRPC would listen. For a wildcard that is one socket for both families, or else one for IPv4."""
    if _is_wildcard(listen.host):
        return [(socket.AF_INET6, ("::", listen.port)), (socket.AF_INET, ("0.0.0.0", listen.port))]  # noqa: S104
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartRefused(cannot_listen(listen.text, f"{listen.host} has no address ({error.strerror})")) from None
    return [(family, address) for family, _, _, _, address in found]


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    """A socket that has the address to itself, until others are let in who share it with this user's processes."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not _is_wildcard(address[0])))
        try:
            bound.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # The ends of former connections stand in the way for a minute; with this they do not, but a server does.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            # Kept, it would let in whoever sets it too, as long as nobody listens.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        bound.close()
        raise
    return bound
