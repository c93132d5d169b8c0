"""The seam between transports and use cases: path -> (warm, cold, access), in bytes (design section 11).

`warm` is a plain function: request bytes and the presented credential in, response bytes or a refusal out; None when only
`cold`, a coroutine, can answer. No grpc type and no asyncio here, so that another listener can serve the same table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from doorward_server.api.access import Access
    from doorward_server.api.errors import Status
    from doorward_server.model import Caller

__all__ = ["Call", "Cold", "Method", "Peer", "Warm"]


class Peer(NamedTuple):
    """What the transport tells of a call. `until_ns` is its deadline, a reading of the clock; None: it has none."""

    credential: str | None
    address: str
    on_behalf_of: str
    until_ns: int | None


class Call(NamedTuple):
    """One authenticated call. `caller` is None only where the access table asks for no credential."""

    caller: Caller | None
    peer: Peer


Warm = Callable[[bytes, "str | None"], "bytes | Status | None"]
Cold = Callable[[bytes, Peer], Awaitable[bytes]]


class Method(NamedTuple):
    """One RPC. `warm` None: every call is cold. `is_stream`: a call is answered without reading what it sends."""

    path: str
    access: Access
    warm: Warm | None
    cold: Cold
    is_stream: bool = False
