"""The seam between transports and use cases: path -> (warm, cold, access), in bytes (design section 11).

`warm` is a plain function: request bytes and the presented credential in, response bytes or a refusal out; None when only
`cold`, a coroutine, can answer. No grpc type and no asyncio here, so that another listener can serve the same table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote

if TYPE_CHECKING:
    from doorward_server.api.access import Access
    from doorward_server.api.errors import Status
    from doorward_server.credentials.certificates import CertifiedOperator
    from doorward_server.model import Caller

__all__ = ["Call", "CallerGone", "Cold", "Method", "Peer", "Stream", "StreamEnds", "Streaming", "Warm", "host_of"]


def host_of(address: str) -> str:
    """The network address in gRPC's notation of a peer, without the port: `ipv4:10.0.0.9:52044` is 10.0.0.9."""
    kind, _, rest = address.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        # A Unix socket's peer has no name of its own.
        return f"{kind}:"
    return unquote(rest.rpartition(":")[0]).strip("[]")


class Peer(NamedTuple):
    """What the transport tells of a call. `until_ns` is its deadline, a reading of the clock; None: it has none.

    `credential`: the header's, else the operator whose certificate the connection was made with.
    """

    credential: str | CertifiedOperator | None
    address: str
    on_behalf_of: str
    until_ns: int | None

    @property
    def host(self) -> str:
        """The network address alone, as the audit has it."""
        return host_of(self.address)


class Call(NamedTuple):
    """One authenticated call. `caller` is None only where the access table asks for no credential."""

    caller: Caller | None
    peer: Peer
    path: str


class CallerGone(Exception):
    """Whoever called is there no more; nothing needs to be answered, and nothing can be."""


class StreamEnds(Exception):
    """No message is read any more, and the stream is to end with `status` once what is under way has been answered."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


class Stream(Protocol):
    """A call of many messages in both directions. One task reads; writes do not overlap."""

    @property
    def peer(self) -> Peer:
        """What the transport tells of the call."""
        ...

    async def read(self) -> bytes | None:
        """The next message; None: the caller sends no more.

        Raises:
            StreamEnds: `end` was called, or the server stops.
        """
        ...

    async def write(self, message: bytes) -> None:
        """Returns once the transport has taken the message: it waits for a caller that reads slowly.

        Raises:
            CallerGone.
        """
        ...

    def end(self, status: Status) -> None:
        """Reads no further, whatever waits for the next message now."""
        ...

    def keep(self) -> None:
        """A server that stops leaves this stream to whoever calls this, who ends it."""
        ...


Warm = Callable[[bytes, "str | None"], "bytes | Status | None"]
Cold = Callable[[bytes, Peer], Awaitable[bytes]]
# Answers a whole stream. How it ends is raised: StreamEnds, or what was refused; else it ends well.
Streaming = Callable[[Stream], Awaitable[None]]


class Method(NamedTuple):
    """One RPC: of single messages, with `cold` and perhaps `warm` (None: every call is cold), or of streams, with `stream`."""

    path: str
    access: Access
    warm: Warm | None
    cold: Cold | None
    stream: Streaming | None = None

    @property
    def is_stream(self) -> bool:
        """Whether a call has many messages, both ways."""
        return self.stream is not None
