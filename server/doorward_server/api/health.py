"""gRPC health: SERVING while this replica holds a usable lease, else NOT_SERVING, so that callers go elsewhere.

Answers for the whole server ("") and for each service of the contract. Long-lived part, started by `app.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
from grpc_health.v1 import health_pb2

if TYPE_CHECKING:
    from grpc_health.v1.health import aio

    from doorward_server.replica.holding import Holding

__all__ = ["SERVICES", "HealthKeeper"]

log = structlog.get_logger()

SERVICES: Final = (
    "doorward.v1.AccountAdmin",
    "doorward.v1.TokenAdmin",
    "doorward.v1.Authorizer",
    "doorward.v1.SystemAdmin",
)
# A lease that ends without a word from the keeper is noticed this soon.
LOOK_NS: Final = 100_000_000


class HealthKeeper:
    """Keeps the health service's word in step with the lease."""

    def __init__(self, holding: Holding, servicer: aio.HealthServicer) -> None:
        self._holding = holding
        self._servicer = servicer
        self._serving: bool | None = None
        self._leaving = False

    async def run(self) -> None:
        """Runs until cancelled."""
        timing = self._holding.timing
        while True:
            await self._say(self._holding.capture() is not None)
            await timing.sleep_until_or(timing.now_ns() + LOOK_NS, self._holding.moved)

    async def leave(self) -> None:
        """NOT_SERVING from now on: this server drains."""
        await self._say(False)
        self._leaving = True

    async def _say(self, serving: bool) -> None:
        if self._leaving or serving is self._serving:
            return
        self._serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._servicer.set(service, status)
        log.info("health_changed", serving=serving)
