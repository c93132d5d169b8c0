"""A real `doorward serve` process with its own PostgreSQL, for tests that speak to it over the network."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import pytest

from doorward.v1 import account_admin_pb2_grpc, authorizer_pb2_grpc, system_admin_pb2_grpc, token_admin_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PATIENCE_S = 60.0


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would bend PostgreSQL's clients or Doorward's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DOORWARD_"))}
    return {**kept, **(extra or {})}


@dataclass
class ServerProcess:
    """A running server. `log` and `output` are files that it writes."""

    process: subprocess.Popen[bytes]
    address: str
    data_dir: Path
    log: Path
    output: Path

    @property
    def operator_token_file(self) -> Path:
        return self.data_dir / "operator.token"

    @property
    def caller_token_file(self) -> Path:
        return self.data_dir / "caller.token"

    @property
    def operator_credential(self) -> str:
        return self.operator_token_file.read_text().strip()

    @property
    def caller_credential(self) -> str:
        return self.caller_token_file.read_text().strip()

    def stop(self, within_s: float = PATIENCE_S) -> int:
        """SIGTERM, and the exit status; SIGKILL if that takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE_S)
            raise

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(PATIENCE_S)


@dataclass
class Stubs:
    """The generated stubs on one channel, and the metadata of two operators."""

    channel: grpc.Channel
    accounts: account_admin_pb2_grpc.AccountAdminStub
    tokens: token_admin_pb2_grpc.TokenAdminStub
    authorizer: authorizer_pb2_grpc.AuthorizerStub
    system: system_admin_pb2_grpc.SystemAdminStub
    admin: tuple[tuple[str, str], ...]
    caller: tuple[tuple[str, str], ...]


def bearer(credential: str) -> tuple[tuple[str, str], ...]:
    """The metadata that presents a credential."""
    return (("authorization", f"Bearer {credential}"),)


def stubs_on(channel: grpc.Channel, server: ServerProcess) -> Stubs:
    """Stubs on `channel` with the server's first credentials."""
    return Stubs(
        channel,
        account_admin_pb2_grpc.AccountAdminStub(channel),
        token_admin_pb2_grpc.TokenAdminStub(channel),
        authorizer_pb2_grpc.AuthorizerStub(channel),
        system_admin_pb2_grpc.SystemAdminStub(channel),
        bearer(server.operator_credential),
        bearer(server.caller_credential),
    )


def start_server(
    data_dir: Path,
    scratch: Path,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    listen: str = "127.0.0.1:0",
    within_s: float = PATIENCE_S,
) -> ServerProcess:
    """Starts a server and waits until it says that it listens.

    Raises:
        AssertionError: it ended, or did not say so in time; with the end of its log.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    log, output = scratch / f"server-{time.monotonic_ns()}.log", scratch / f"server-{time.monotonic_ns()}.out"
    own = ["--listen", listen, "--data-dir", str(data_dir), "--log-level", "debug"]
    with log.open("wb") as log_file, output.open("wb") as output_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "doorward_server.cli.main", "serve", *own, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output_file,
            stderr=log_file,
            env=clean_environment(environment),
            start_new_session=True,
        )
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for line in output.read_text().splitlines():
            if line.startswith("Doorward listens on "):
                return ServerProcess(process, line.removeprefix("Doorward listens on "), data_dir, log, output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            break
    if process.poll() is None:
        process.kill()
        process.wait(PATIENCE_S)
    raise AssertionError(f"the server did not start (status {process.returncode}):\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the whole session: tests use accounts of their own in it."""
    base = tmp_path_factory.mktemp("server")
    running = start_server(base / "data", base / "scratch")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture(scope="session")
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    """Stubs on the session's server."""
    with grpc.insecure_channel(server.address) as channel:
        yield stubs_on(channel, server)
