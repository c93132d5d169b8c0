"""Fixtures of the command line's tests: a directory and an environment of the test's own, and a server that plays.

`played` is a real gRPC server on loopback whose answers the test says: for what no Doorward would answer on demand.
"""

from __future__ import annotations

import os
import tempfile
from concurrent import futures
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest
from typer.testing import CliRunner

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from google.protobuf.message import Message
    from typer.testing import Result


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty; no variable of Doorward is set."""
    for name in list(os.environ):
        if name.upper().startswith("DOORWARD_"):
            monkeypatch.delenv(name)
    directory = tmp_path / "own"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def credential() -> Secret:
    """An operator's credential that no server knows."""
    return generate(SecretKind.OPERATOR, new_id())


def run(*arguments: str, given: str | bytes | None = None, **environment: str) -> Result:
    """One command, in this process; `given` is its standard input."""
    return CliRunner().invoke(app, arguments, input=given, env=environment, catch_exceptions=False)


@dataclass
class PlayedServer(grpc.GenericRpcHandler):
    """Answers each path as it is told to; `asked` has path, request and authorization of every call."""

    address: str = ""
    unix_address: str = ""
    answers: dict[str, Callable[[bytes, grpc.ServicerContext], Message]] = field(default_factory=dict)
    asked: list[tuple[str, bytes, str]] = field(default_factory=list)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        path = handler_call_details.method.removeprefix("/doorward.v1.")
        metadata = dict(handler_call_details.invocation_metadata or ())
        answer = self.answers.get(path)
        if answer is None:
            return None

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.asked.append((path, request, str(metadata.get("authorization", ""))))
            return answer(request, context).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle)

    def run(self, *arguments: str, given: str | bytes | None = None, **environment: str) -> Result:
        """One command that calls this server."""
        return run(*arguments, given=given, DOORWARD_ADDRESS=self.address, **environment)


@pytest.fixture
def played(credential: Secret, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedServer]:
    """A server that plays; DOORWARD_TOKEN is set to `credential`."""
    made = PlayedServer()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[made])
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    monkeypatch.setenv("DOORWARD_TOKEN", credential.reveal())
    with tempfile.TemporaryDirectory(prefix="doorward-") as directory:  # a socket's path has room for 107 bytes
        made.unix_address = f"unix:{directory}/socket"
        server.add_insecure_port(made.unix_address)
        server.start()
        try:
            yield made
        finally:
            server.stop(None).wait()
