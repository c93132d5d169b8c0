"""A server that stops lets its connections go: what is idle is closed, and nobody is told CANCELLED."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from doorward_server.api.connections import let_go
from tests.support.stepped import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sockets are found on Linux only")

PATIENCE_S = 20.0


def serve(connection: socket.socket) -> None:
    """Says back what it hears, until the end of it."""
    while heard := connection.recv(100):
        connection.sendall(heard)
    connection.close()


class Served:
    """A listener in this process, and one client that it accepted."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self.listener.getsockname()[1]
        self.client = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), PATIENCE_S))
        accepted, _ = self.listener.accept()
        thread = threading.Thread(target=serve, args=(accepted,))
        thread.start()
        # Whatever a test leaves open ends with the client.
        stack.callback(thread.join, PATIENCE_S)
        stack.callback(self.client.close)

    def echo(self) -> bytes:
        """What comes back over its connection; nothing if that is closed."""
        with contextlib.suppress(OSError):
            self.client.sendall(b"there?")
            return self.client.recv(100)
        return b""

    @property
    def peer(self) -> str:
        """The client, in gRPC's notation."""
        return f"ipv4:127.0.0.1:{self.client.getsockname()[1]}"


@pytest.fixture
def served() -> Iterator[Served]:
    """One such listener."""
    with contextlib.ExitStack() as stack:
        yield Served(stack)


async def test_an_idle_connection_is_closed(served: Served) -> None:
    assert served.echo() == b"there?"
    await let_go(served.port, lambda: ())
    assert served.echo() == b""


async def test_nobody_new_is_let_in(served: Served) -> None:
    await let_go(served.port, lambda: ())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port), PATIENCE_S)


async def test_a_connection_on_which_a_call_runs_stays_open(served: Served) -> None:
    await let_go(served.port, lambda: {served.peer})
    assert served.echo() == b"there?"


async def test_a_connection_is_closed_once_its_call_has_ended(served: Served) -> None:
    looks = iter([{served.peer}, {served.peer}])
    await let_go(served.port, lambda: next(looks, set()))
    assert served.echo() == b""


async def test_connections_of_other_ports_are_left_alone(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        other = Served(stack)
        await let_go(served.port, lambda: ())
        assert other.echo() == b"there?"
        socket.create_connection(("127.0.0.1", other.port), PATIENCE_S).close()


# ---- with gRPC, under load


class Handlers(grpc.GenericRpcHandler):
    """Answers whatever is called."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(_request: bytes, _context: object) -> bytes:
            return b"yes"

        return grpc.unary_unary_rpc_method_handler(answer)


def call(port: int, outcomes: collections.Counter[str], stop: threading.Event) -> None:
    """Many calls at a time on one connection, none repeated; what they came to is counted."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a/b")
        while not stop.is_set():
            for future in [method.future(b"", timeout=PATIENCE_S) for _ in range(20)]:
                error = future.exception()
                outcomes["OK" if error is None else str(error.code().name)] += 1  # type: ignore[attr-defined]


async def test_under_load_a_stop_cancels_no_call() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    outcomes: collections.Counter[str] = collections.Counter()
    stop = threading.Event()
    clients = [threading.Thread(target=call, args=(port, outcomes, stop)) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        await eventually(lambda: outcomes["OK"] >= 200)
        await let_go(port, lambda: ())
        await server.stop(PATIENCE_S)
    finally:
        stop.set()
        for client in clients:
            await asyncio.to_thread(client.join, PATIENCE_S)
    assert set(outcomes) == {"OK", "UNAVAILABLE"}
