"""gRPC's standard services, bounded: health, and server reflection (design sections 3 and 9).

Anybody may call them, and their streams last for as long as the caller likes. So each kind has room of its own, apart from
that of Doorward's RPCs: a client that balances watches the health of every server that it knows. Used by `app.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from doorward_server.api.bounds import REFLECTIONS, Room
from doorward_server.api.server import refuse_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

__all__ = ["BoundedHealth", "BoundedReflection"]


class BoundedHealth(health_aio.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1.Health with at most `most_watches` streams."""

    def __init__(self, most_watches: int) -> None:
        super().__init__()
        self._room = Room(most_watches, "watches of its health")

    @property
    def watches(self) -> int:
        """How many streams there are."""
        return self._room.in_use

    async def Watch(self, request: Any, context: Any) -> None:
        """Tells of each change of a service's state, to the end of the call."""
        if self._room.is_full:
            await refuse_with(context, self._room.refusal())
        with self._room.taken():
            await super().Watch(request, context)


class BoundedReflection(reflection_aio.ReflectionServicer):  # type: ignore[misc]
    """grpc.reflection.v1alpha.ServerReflection with few streams."""

    def __init__(self, services: Iterable[str]) -> None:
        super().__init__(services)
        self._room = Room(REFLECTIONS, "streams of server reflection")

    async def ServerReflectionInfo(self, request_iterator: Any, unused_context: Any) -> AsyncIterator[Any]:
        """Answers questions about the contract."""
        if self._room.is_full:
            await refuse_with(unused_context, self._room.refusal())
        with self._room.taken():
            async for answer in super().ServerReflectionInfo(request_iterator, unused_context):
                yield answer
