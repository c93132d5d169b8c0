"""A port is held against everybody but those who share it, and by one parent only."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from doorward_server.start import StartRefused
from doorward_server.workers.port import held_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers share a port on Linux only")

ANY_PORT = "127.0.0.1:0"
PATIENCE_S = 20.0


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextlib.contextmanager
def listening(port: int, *, reuses: bool = True, shares: bool = False) -> Iterator[socket.socket]:
    """A server on loopback; `reuses` as almost every one does, `shares` as a worker."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuses)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
        server.bind(("127.0.0.1", port))
        server.listen()
        yield server


def is_taken(port: int, *, reuses: bool) -> bool:
    """Whether a server that does not share its port is refused this one."""
    try:
        with listening(port, reuses=reuses):
            return False
    except OSError as error:
        return error.errno == errno.EADDRINUSE


def leave_ends(port: int) -> None:
    """Has a server on `port` that closes a connection first and goes: its end of that stays for a minute."""
    with listening(port) as server, socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        accepted, _ = server.accept()
        accepted.close()
        assert client.recv(1) == b""


def test_the_real_port_is_told() -> None:
    with held_port(ANY_PORT) as address:
        assert address.startswith("127.0.0.1:")
        assert port_of(address) > 0


@pytest.mark.parametrize("reuses", [True, False])
def test_a_held_port_is_taken_for_a_server_that_does_not_share(reuses: bool) -> None:
    with held_port(ANY_PORT) as address:
        assert is_taken(port_of(address), reuses=reuses)
    assert not is_taken(port_of(address), reuses=reuses)


def test_those_who_share_get_in_and_take_all_connections() -> None:
    with held_port(ANY_PORT) as address, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(listening(port_of(address), shares=True)) for _ in range(2)]
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(address)), PATIENCE_S))
        accepted = 0
        for worker in workers:
            worker.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(worker.accept()[0])
                    accepted += 1
        assert accepted == 20


def test_a_held_port_answers_nobody_by_itself() -> None:
    with held_port(ANY_PORT) as address, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(address)), PATIENCE_S)


@pytest.mark.parametrize("shares", [True, False])
def test_a_port_on_which_somebody_listens_is_refused_even_if_they_would_share(shares: bool) -> None:
    with (
        listening(0, shares=shares) as server,
        pytest.raises(StartRefused, match=r"cannot listen on 127\.0\.0\.1:\d+: the address is in use.*--listen"),
        held_port(f"127.0.0.1:{server.getsockname()[1]}"),
    ):
        pass


def test_two_parents_cannot_hold_one_port() -> None:
    with (
        held_port(ANY_PORT) as address,
        pytest.raises(StartRefused, match="the address is in use"),
        held_port(address),
    ):
        pass


def test_what_former_connections_left_is_in_nobodys_way() -> None:
    with held_port(ANY_PORT) as address:
        pass
    leave_ends(port_of(address))
    assert is_taken(port_of(address), reuses=False), "nothing was left"

    with held_port(address) as again:
        assert again == address
        # Held as firmly as any other.
        assert is_taken(port_of(address), reuses=True)
        with pytest.raises(StartRefused), held_port(address):
            pass
        with listening(port_of(address), shares=True):
            pass


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "localhost"])  # noqa: S104
def test_every_address_of_the_host_is_held(host: str) -> None:
    with held_port(f"{host}:0") as address:
        assert address.startswith(f"{host}:")
        assert is_taken(port_of(address), reuses=True)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartRefused, match="none of this machine"), held_port("192.0.2.1:50051"):
        pass
