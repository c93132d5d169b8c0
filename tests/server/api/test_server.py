"""What a client's own retry policy makes of our refusals: with real servers and channels, for grpcio decides it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from doorward.clock import SystemClock
from doorward_server.api.access import Access
from doorward_server.api.errors import Status, status_of
from doorward_server.api.methods import Method, Peer
from doorward_server.api.refused import RefusedCalls
from doorward_server.api.server import DoorwardHandlers, channel_options
from doorward_server.errors import NotFound, Refused, Unavailable
from doorward_server.replica.timing import Timing
from doorward_server.service.refusals import Refusals
from doorward_server.storage.pool import Database
from tests.support.stepped import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATH = "/doorward.v1.Authorizer/Check"
PATIENCE_S = 20.0
RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
CONFIG = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRIES}]})
NO_LEASE = Unavailable("NO_LEASE", "this replica holds no lease")


class Service:
    """A method that refuses its first calls, from memory or not, and then answers."""

    def __init__(self, refusals: list[Refused], *, warm: bool) -> None:
        self.refusals = refusals
        self.calls = 0
        access = Access(frozenset())
        self.method = Method(PATH, access, self.answer_warm if warm else None, self.answer_cold)

    def answer_warm(self, _request: bytes, _credential: str | None) -> bytes | Status | None:
        self.calls += 1
        return status_of(self.refusals.pop(0)) if self.refusals else b"yes"

    async def answer_cold(self, _request: bytes, _peer: Peer) -> bytes:
        self.calls += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return b"yes"


@contextlib.asynccontextmanager
async def listening(method: Method, most_calls: int | None = None, **bounds: Any) -> AsyncIterator[str]:
    """A server of this method alone; its address. `bounds` are those of `channel_options`."""
    options = channel_options(max_message_bytes=1000, max_metadata_bytes=8192, **bounds)
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=most_calls)
    timing = Timing(SystemClock())
    refused = RefusedCalls(Refusals(Database("postgresql:///nowhere", hold_ms=5000), timing))
    server.add_generic_rpc_handlers((DoorwardHandlers([method], timing, refused),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def served(service: Service) -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]:
    """The method, as a client with retries calls it."""
    async with listening(service.method) as address:
        options = [("grpc.service_config", CONFIG)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield channel.unary_unary(PATH)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_a_clients_retry_policy_repeats_what_was_unavailable(warm: bool) -> None:
    service = Service([NO_LEASE, NO_LEASE], warm=warm)
    async with served(service) as call:
        assert await call(b"", timeout=PATIENCE_S) == b"yes"
    assert service.calls == 3


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_a_refusal_arrives_whole(warm: bool) -> None:
    refused = NotFound("TOKEN_NOT_FOUND", "there is no such token")
    async with served(Service([refused], warm=warm)) as call:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=PATIENCE_S)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "there is no such token")
    assert caught.value.trailing_metadata()["grpc-status-details-bin"] == status_of(refused).details


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_a_call_that_never_sends_its_message_loses_its_place_with_its_connection(warm: bool) -> None:
    """grpcio starts no handler for it, and it has no deadline: nothing else would ever end it."""
    service, silence = Service([], warm=warm), asyncio.Event()

    async def nothing() -> AsyncIterator[bytes]:
        await silence.wait()
        yield b""

    async with (
        listening(service.method, most_calls=1, connection_age_ms=200, connection_grace_ms=200) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        silent: Any = channel.stream_unary(PATH)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(PATIENCE_S):
                await silent(nothing())

        async def has_room() -> bool:
            call: Any = channel.unary_unary(PATH)
            with contextlib.suppress(grpc.aio.AioRpcError):
                return bool(await call(b"", timeout=PATIENCE_S) == b"yes")
            return False

        await eventually(has_room)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
