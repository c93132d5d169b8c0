"""A flood beyond each bound of the listener is refused, and the others go on being served (design section 9)."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from doorward.v1.account_admin_pb2 import ListAccountsRequest, PutAccountRequest
from doorward_server.api.bounds import REFLECTIONS, most_rpcs
from tests.support.rows import Rows
from tests.support.server import ServerProcess, Stubs, start_server, stubs_on
from tests.support.wire import TIMEOUT_S, OwnAccount, an_account, ask, check, eventually, fresh_id, on_all, refusal_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 12
CHECK = "/doorward.v1.Authorizer/Check"
METADATA = 8 * 1024
MESSAGE = 4 * 1024 * 1024
# HTTP/2 (RFC 9113): what a client says first, types of frames, settings, and an error code.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
ENHANCE_YOUR_CALM = 11


class Bounded:
    """A server with few places, an account there, and a token whose checks memory answers."""

    def __init__(self, server: ServerProcess, stubs: Stubs, rows: Rows) -> None:
        self.server, self.stubs, self.rows = server, stubs, rows
        self.account: OwnAccount = an_account(stubs)
        self.secret = self.account.issue(on_all("job_admin")).secret
        assert self.checks()

    def checks(self, stubs: Stubs | None = None) -> bool:
        """Whether a check is answered, and right."""
        project_id = self.account.project_ids[0]
        return bool(check(stubs or self.stubs, self.secret, "jobs:read", project_id=project_id).allowed)

    @contextlib.contextmanager
    def connection(self) -> Iterator[grpc.Channel]:
        """One more."""
        with grpc.insecure_channel(self.server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bounded]:
    base = tmp_path_factory.mktemp("bounded")
    # A hold is how long a change may wait for a lock.
    bounds = ["--max-concurrent-rpcs", str(MOST), "--database-pool", str(MOST + 4), "--hold", "60"]
    server = start_server(base / "data", base / "scratch", bounds)
    with grpc.insecure_channel(server.address) as channel, contextlib.closing(Rows(server.data_dir)) as rows:
        yield Bounded(server, stubs_on(channel, server), rows)
    assert server.stop() == 0


def code_of(error: Any) -> str:
    code: grpc.StatusCode = error.code()
    return code.name


def test_more_calls_than_may_wait_are_refused_and_checks_go_on(bounded: Bounded) -> None:
    put = bounded.stubs.accounts.PutAccount
    requests = [PutAccountRequest(account_id=fresh_id("acc"), display_name="X", plan="team") for _ in range(5 * MOST)]
    refusals: list[Any] = []
    is_flooded = threading.Event()

    def call(request: PutAccountRequest, channel: grpc.Channel) -> None:
        try:
            ask(stubs_on(channel, bounded.server).accounts.PutAccount, request, bounded.stubs.admin, 2 * TIMEOUT_S)
        except grpc.RpcError as error:
            refusals.append(error)
            if len(refusals) == len(requests) - MOST:
                is_flooded.set()

    with contextlib.ExitStack() as stack:
        # A connection has half of the places: so that it takes several to flood the server.
        channels = [stack.enter_context(bounded.connection()) for _ in range(len(requests) // 4)]
        threads = stack.enter_context(ThreadPoolExecutor(len(requests)))
        with bounded.rows.holding("LOCK TABLE accounts IN EXCLUSIVE MODE"):
            calls = [threads.submit(call, request, channels[number // 4]) for number, request in enumerate(requests)]
            assert is_flooded.wait(TIMEOUT_S)
            assert bounded.checks()
        for one in calls:
            one.result()

    told = {(refusal.code, refusal.reason) for refusal in map(refusal_of, refusals)}
    assert told == {("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")}
    assert all(refusal_of(error).retry_after_s for error in refusals)
    assert len(refusals) == len(requests) - MOST
    assert ask(put, requests[0], bounded.stubs.admin).account.account_id == requests[0].account_id


def test_watchers_of_health_take_no_ones_place_but_each_others(bounded: Bounded) -> None:
    with contextlib.ExitStack() as stack:

        def watched() -> Any:
            channel = stack.enter_context(bounded.connection())
            watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
            stack.callback(watch.cancel)
            return watch

        watches = [watched() for _ in range(MOST)]
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVING}
        with pytest.raises(grpc.RpcError) as caught:
            next(watched())
        assert refusal_of(caught.value).reason == "TOO_MANY_REQUESTS"
        assert bounded.checks()
        assert ask(bounded.stubs.accounts.ListAccounts, ListAccountsRequest(), bounded.stubs.admin).accounts
        watches[0].cancel()

        def has_room() -> bool:
            with contextlib.suppress(grpc.RpcError):
                return bool(next(watched()).status == health_pb2.HealthCheckResponse.SERVING)
            return False

        eventually(has_room)


def test_streams_of_reflection_take_no_ones_place_but_each_others(bounded: Bounded) -> None:
    silence = threading.Event()
    question = reflection_pb2.ServerReflectionRequest(list_services="")

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield question
        silence.wait(TIMEOUT_S)

    with contextlib.ExitStack() as stack:
        stack.callback(silence.set)

        def asked() -> Any:
            channel = stack.enter_context(bounded.connection())
            return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(questions())

        streams = [asked() for _ in range(REFLECTIONS)]
        assert all(next(stream).list_services_response.service for stream in streams)
        with pytest.raises(grpc.RpcError) as caught:
            next(asked())
        assert refusal_of(caught.value).reason == "TOO_MANY_REQUESTS"
        assert bounded.checks()


def test_calls_that_never_send_their_message_are_bounded_by_grpc(bounded: Bounded) -> None:
    silence = threading.Event()

    def nothing() -> Iterator[Any]:
        silence.wait(TIMEOUT_S)
        yield from ()

    with contextlib.ExitStack() as stack:
        stack.callback(silence.set)
        channels = [stack.enter_context(bounded.connection()) for _ in range(2 * most_rpcs(MOST) // (MOST // 2))]
        silent: list[Any] = [
            channel.stream_unary(CHECK).future(nothing(), timeout=TIMEOUT_S)
            for channel in channels
            for _ in range(MOST // 2)
        ]

        def is_refused() -> bool:
            return any(call.done() and call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED for call in silent)

        eventually(is_refused)
        (refused, *_) = [call for call in silent if call.done()]
        # A status of grpc's own has no details.
        assert rpc_status.from_call(refused) is None
        for call in silent:
            call.cancel()
    eventually(lambda: succeeds(bounded))


def succeeds(bounded: Bounded) -> bool:
    try:
        return bounded.checks()
    except grpc.RpcError as error:
        if code_of(error) != "RESOURCE_EXHAUSTED":
            raise
        return False


def test_metadata_and_messages_beyond_their_size_are_refused_and_the_connection_stays(bounded: Bounded) -> None:
    question = ListAccountsRequest()
    list_accounts, admin = bounded.stubs.accounts.ListAccounts, bounded.stubs.admin

    for _ in range(20):  # never by chance
        assert ask(list_accounts, question, (*admin, ("x-more", "x" * (METADATA - 1024)))).accounts
        with pytest.raises(grpc.RpcError) as caught:
            ask(list_accounts, question, (*admin, ("x-more", "x" * (METADATA + 1024))))
        assert code_of(caught.value) == "RESOURCE_EXHAUSTED"
    large = ListAccountsRequest(page_token="x" * MESSAGE)
    with pytest.raises(grpc.RpcError) as caught:
        ask(list_accounts, large, admin)

    assert code_of(caught.value) == "RESOURCE_EXHAUSTED"
    assert bounded.checks()


class Raw:
    """A connection whose frames the test writes and reads itself."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self.file = self.socket.makefile("rb")
        self.socket.sendall(PREFACE)
        self.send(SETTINGS, b"")

    def send(self, kind: int, payload: bytes) -> None:
        self.socket.sendall(struct.pack(">I", len(payload))[1:] + bytes([kind, 0, 0, 0, 0, 0]) + payload)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """What comes, to the end of the connection."""
        while len(head := self.file.read(9)) == 9:
            yield head[3], self.file.read(int.from_bytes(head[:3], "big"))

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def test_a_connection_is_told_how_many_streams_and_how_much_metadata_it_may_have(bounded: Bounded) -> None:
    with contextlib.closing(Raw(bounded.server.address)) as raw:
        told = next(payload for kind, payload in raw.frames() if kind == SETTINGS and payload)

    settings = dict(struct.iter_unpack(">HI", told))
    assert settings[MAX_CONCURRENT_STREAMS] == MOST // 2
    assert settings[MAX_HEADER_LIST_SIZE] == METADATA


def test_who_pings_too_often_loses_the_connection_and_no_other_does(bounded: Bounded) -> None:
    with contextlib.closing(Raw(bounded.server.address)) as raw:
        # Each is answered before the next is sent, until one is too many.
        raw.send(PING, b"pingpong")
        frames, pings = raw.frames(), 1
        for kind, payload in frames:
            if kind == GOAWAY:
                goaway = payload
                break
            if kind == PING:
                pings += 1
                raw.send(PING, b"pingpong")

    assert pings < 8
    assert int.from_bytes(goaway[4:8], "big") == ENHANCE_YOUR_CALM
    assert bounded.checks()
