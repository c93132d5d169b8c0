"""The example services of `examples/`, started for real and called over the network, all four alike.

    def test_…(service: Service):
        answer = service.call("start", ["Bearer " + secret], project_id="p1")
        answer.kind, answer.reason                      # "admitted", "unauthenticated", "denied", …

What each says in its own protocol (status, challenge, details) is in `answer.said`; that it fits the kind is asserted here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import quote

import grpc
import pytest

from examples import jobs_pb2, jobs_pb2_grpc
from tests.support.server import PATIENCE_S, clean_environment
from tests.support.wire import eventually, refusal_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.support.server import ServerProcess

ROOT: Final = Path(__file__).resolve().parents[2]
NAMES: Final = ("grpc_aio", "grpc_threads", "asgi", "fastapi")
ADMITTED: Final = "admitted"
KINDS_BY_CODE: Final = {
    "UNAUTHENTICATED": "unauthenticated",
    "PERMISSION_DENIED": "denied",
    "INVALID_ARGUMENT": "unclear",
    "UNAVAILABLE": "undecided",
    "INTERNAL": "failed",
}
KINDS_BY_STATUS: Final = {401: "unauthenticated", 403: "denied", 400: "unclear", 503: "undecided", 500: "failed"}
ERRORS: Final = {"unauthenticated": "invalid_token", "denied": "insufficient_scope"}


class Answer(NamedTuple):
    """What came of a call. `said`: the response's content, or the refusal taken apart."""

    kind: str
    reason: str
    said: Any


class Caller(Protocol):
    """Calls a running example. `start` and `list` are about a project, `usage` about an account; `purge` has no rule."""

    def call(self, operation: str, credentials: Sequence[str], **ids: str) -> Answer:
        """One call, with an authorization header for each of `credentials`."""
        ...


@dataclass
class Service:
    """A running example."""

    name: str
    process: subprocess.Popen[bytes]
    caller: Caller
    log: Path

    @property
    def is_grpc(self) -> bool:
        return self.name.startswith("grpc")

    def call(self, operation: str, credentials: Sequence[str], **ids: str) -> Answer:
        return self.caller.call(operation, credentials, **ids)


class Grpc:
    """Calls the examples of gRPC."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = jobs_pb2_grpc.JobsStub(self.channel)

    def call(self, operation: str, credentials: Sequence[str], **ids: str) -> Answer:
        metadata = tuple(("authorization", credential) for credential in credentials)
        rpc, request = {
            "start": (self.stub.StartJob, jobs_pb2.StartJobRequest(project_id=ids.get("project_id", ""))),
            "usage": (self.stub.ReadUsage, jobs_pb2.ReadUsageRequest(account_id=ids.get("account_id", ""))),
            "purge": (self.stub.PurgeJobs, jobs_pb2.PurgeJobsRequest(project_id=ids.get("project_id", ""))),
        }[operation]
        try:
            answer = rpc(request, metadata=metadata, timeout=PATIENCE_S)  # type: ignore[operator]
        except grpc.RpcError as error:
            return answer_of(error)
        return Answer(ADMITTED, "", answer)

    def close(self) -> None:
        self.channel.close()


def answer_of(error: Any) -> Answer:
    """A failed call as an answer; what must be in every refusal is asserted."""
    refusal = refusal_of(error)
    kind = KINDS_BY_CODE[refusal.code]
    assert refusal.domain == "doorward.guard"
    assert (refusal.retry_after_s is not None) is (kind == "undecided")
    return Answer(kind, refusal.reason, refusal)


class Http:
    """Calls the examples of HTTP."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, operation: str, credentials: Sequence[str], **ids: str) -> Answer:
        project, account = quote(ids.get("project_id", "")), quote(ids.get("account_id", ""))
        method, path = {
            "start": ("POST", f"/projects/{project}/jobs"),
            "list": ("GET", f"/projects/{project}/jobs"),
            "usage": ("GET", f"/accounts/{account}/usage"),
            "purge": ("DELETE", f"/projects/{project}/jobs"),
        }[operation]
        return self.ask(method, path, [("Authorization", credential) for credential in credentials])

    def ask(self, method: str, path: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """Any request; one header for each pair."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            body, found = response.read(), {name.lower(): value for name, value in response.getheaders()}
        return self.answer(response.status, found, body)

    @staticmethod
    def answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
        """A response as an answer; what must be in every refusal is asserted."""
        if status not in KINDS_BY_STATUS or b"reason" not in body:
            return Answer(ADMITTED if status == 200 else str(status), "", json.loads(body or b"null"))
        content = json.loads(body)
        content = content.get("detail", content)
        kind = KINDS_BY_STATUS[status]
        assert ("www-authenticate" in headers) is (status in {401, 403})
        assert ("retry-after" in headers) is (status == 503)
        assert headers["cache-control"] == "no-store"
        challenge = headers.get("www-authenticate", "")
        if kind in ERRORS:
            error = f', error="{ERRORS[kind]}"' if content["reason"] != "CREDENTIAL_MISSING" else ""
            scope = f', scope="{content["permission"]}"' if "permission" in content else ""
            assert challenge == f'Bearer realm="doorward"{error}{scope}'
            assert content["error"] == ERRORS[kind]
        return Answer(kind, content["reason"], content)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def running(name: str, server: ServerProcess | str, scratch: Path, **settings: str) -> Iterator[Service]:
    """Starts an example that asks this server, and stops it in the end."""
    log, output = scratch / f"{name}.log", scratch / f"{name}.out"
    address = server if isinstance(server, str) else server.address
    if not isinstance(server, str):
        settings = {"DOORWARD_TOKEN_FILE": str(server.caller_token_file), **settings}
    own = {"DOORWARD_ADDRESS": address, "LISTEN": "127.0.0.1:0", "PORT": "0", **settings}
    with log.open("wb") as log_file, output.open("wb") as output_file:
        process = subprocess.Popen(
            [sys.executable, "-m", f"examples.{name}_service"],
            cwd=ROOT,
            env=clean_environment(own),
            stdin=subprocess.DEVNULL,
            stdout=output_file,
            stderr=log_file,
        )
    try:
        port = _port_of(process, log, output)
        caller = Grpc(port) if name.startswith("grpc") else Http(port)
        with contextlib.closing(caller):
            yield Service(name, process, caller, log)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _port_of(process: subprocess.Popen[bytes], log: Path, output: Path) -> int:
    found: list[str] = []

    def has_one() -> bool:
        assert process.poll() is None, f"the example ended:\n{log.read_text()[-4000:]}"
        found[:] = re.findall(r"listens on port (\d+)", output.read_text())
        found.extend(re.findall(r"running on http://127\.0\.0\.1:(\d+)", log.read_text()))
        return bool(found)

    eventually(has_one, PATIENCE_S)
    return int(found[0])


@pytest.fixture(scope="module", params=NAMES)
def service(
    request: pytest.FixtureRequest, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Each example in turn, which asks the session's server."""
    with running(request.param, server, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="module", params=[name for name in NAMES if name.startswith("grpc")])
def grpc_service(
    request: pytest.FixtureRequest, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Grpc]:
    """Each of those of gRPC."""
    with running(request.param, server, tmp_path_factory.mktemp("service")) as service:
        assert isinstance(service.caller, Grpc)
        yield service.caller


@pytest.fixture(scope="module", params=[name for name in NAMES if not name.startswith("grpc")])
def http_service(
    request: pytest.FixtureRequest, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Http]:
    """Each of those of HTTP."""
    with running(request.param, server, tmp_path_factory.mktemp("service")) as service:
        assert isinstance(service.caller, Http)
        yield service.caller
