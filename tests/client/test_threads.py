"""The threaded client step by step, on grpcio-testing's channel: no server, no clock, every call in the test's hand."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc_testing
import pytest

from doorward import errors
from doorward._batching import DEFAULT_BOUNDS
from doorward.core.secret import SecretKind, generate, new_id
from doorward.threads import AuthorizerClient, TokenAdminClient
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import token_admin_pb2
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doorward.decisions import Decision

AUTHORIZER = pb.DESCRIPTOR.services_by_name["Authorizer"]
TOKEN_ADMIN = token_admin_pb2.DESCRIPTOR.services_by_name["TokenAdmin"]
CREDENTIAL = generate(SecretKind.OPERATOR, new_id()).reveal()
OK = grpc.StatusCode.OK
MOST = DEFAULT_BOUNDS.most_in_flight
YES = pb.CheckResponse(allowed=True, token_id="t", revision="1.1")


class Told:
    """A future of grpcio-testing, which has no done callback: here a thread of the test waits for its end and tells it."""

    def __init__(self, future: Any, pool: ThreadPoolExecutor) -> None:
        self._future, self._pool = future, pool

    def result(self) -> Any:
        return self._future.result()

    def cancel(self) -> bool:
        return bool(self._future.cancel())

    def add_done_callback(self, tell: Callable[[Any], None]) -> None:
        def wait_and_tell() -> None:
            self._future.code()  # returns at the end
            tell(self)

        self._pool.submit(wait_and_tell)


class Channel(grpc.Channel):
    """grpcio-testing's channel, with such futures."""

    def __init__(self, channel: Any, pool: ThreadPoolExecutor) -> None:
        self._channel, self._pool = channel, pool

    def unary_unary(self, method: str, *serializers: Any, **more: Any) -> Any:
        multi = self._channel.unary_unary(method, *serializers, **more)
        future = multi.future
        multi.future = lambda *request, **how: Told(future(*request, **how), self._pool)
        return multi

    def unary_stream(self, *_arguments: Any, **_more: Any) -> Any:
        raise NotImplementedError

    def stream_unary(self, *_arguments: Any, **_more: Any) -> Any:
        raise NotImplementedError

    def stream_stream(self, *_arguments: Any, **_more: Any) -> Any:
        raise NotImplementedError

    def subscribe(self, *_arguments: Any, **_more: Any) -> None:
        raise NotImplementedError

    def unsubscribe(self, *_arguments: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise AssertionError("a channel of one's own is left open")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()


class Taken:
    """A call that was begun."""

    def __init__(self, request: Any, call: Any) -> None:
        self.request = request
        self.is_open = True
        self._call = call

    @property
    def projects(self) -> list[str]:
        """What a batch asks about, in order."""
        return [item.project_id for item in pb.BatchCheckRequest.FromString(self.request).items]

    def end(self, answer: Any = None, code: grpc.StatusCode = OK, details: str = "") -> None:
        """Answers it, or lets it fail."""
        self.is_open = False
        self._call.terminate(answer, (), code, details)


class Line:
    """Two clients on a channel that answers when told to."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.channel: Any = grpc_testing.channel([AUTHORIZER, TOKEN_ADMIN], grpc_testing.strict_fake_time(0))
        channel = Channel(self.channel, pool)
        self.authorizer = AuthorizerClient(channel, credential=CREDENTIAL, timeout=30.0)
        self.tokens = TokenAdminClient(channel, credential=CREDENTIAL)
        self._pool = pool
        self._taken: list[Taken] = []

    def begin(self, project_id: str) -> Future[Decision]:
        """Begins a check."""
        return self._pool.submit(self.authorizer.check, "s", "jobs:read", project_id=project_id)

    def take(self, method: str) -> Taken:
        """The next call of a method."""
        service = AUTHORIZER if method in AUTHORIZER.methods_by_name else TOKEN_ADMIN
        metadata, request, call = self.channel.take_unary_unary(service.methods_by_name[method])
        assert ("authorization", f"Bearer {CREDENTIAL}") in metadata
        self._taken.append(Taken(request, call))
        return self._taken[-1]

    def make_familiar(self) -> None:
        """The first check of the secret goes alone, and is answered."""
        begun = self.begin("first")
        self.take("Check").end(YES)
        assert begun.result(30)

    def wait_for(self, number: int) -> None:
        """Returns once so many checks are in batches or wait for one."""
        lanes = self.authorizer._checks._lanes
        eventually(lambda: sum(1 for lane in lanes.values() for _ in lane.line.outstanding()) == number)

    def close(self) -> None:
        """Lets go whoever waits still."""
        for taken in self._taken:
            if taken.is_open:
                taken.end(code=grpc.StatusCode.CANCELLED)


@pytest.fixture
def line() -> Iterator[Line]:
    with ThreadPoolExecutor(16) as pool:
        line = Line(pool)
        try:
            yield line
        finally:
            line.close()


def test_those_that_wait_go_out_together_when_one_ends(line: Line) -> None:
    line.make_familiar()
    alone = line.begin("alone")
    goes_alone = line.take("Check")
    singles = []
    for number in range(MOST - 1):
        begun = line.begin(f"single-{number}")
        singles.append((begun, line.take("BatchCheck")))
        assert singles[-1][1].projects == [f"single-{number}"]
    waiting = []
    for number in range(3):
        waiting.append(line.begin(f"waits-{number}"))
        line.wait_for(MOST + number)
    goes_alone.end(YES)
    assert alone.result(30)
    together = line.take("BatchCheck")
    assert together.projects == ["waits-0", "waits-1", "waits-2"]
    results = [pb.BatchCheckResult(allowed=number == 1, token_id=f"t{number}") for number in range(3)]
    together.end(pb.BatchCheckResponse(results=results))
    assert [one.result(30).token_id for one in waiting] == ["t0", "t1", "t2"]
    assert [one.result(30).allowed for one in waiting] == [False, True, False]
    for begun, taken in singles:
        taken.end(pb.BatchCheckResponse(results=results[:1]))
        assert begun.result(30).token_id == "t0"


def test_a_failure_is_translated(line: Line) -> None:
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(line.tokens.get_token, "0123456789abcdef")
        taken = line.take("GetToken")
        assert taken.request.token_id == "0123456789abcdef"
        taken.end(code=grpc.StatusCode.NOT_FOUND, details="no such token")
        with pytest.raises(errors.NotFound, match="no such token"):
            begun.result(30)


def test_a_broken_batch_is_told_to_who_waits_for_it_and_to_nobody_else(line: Line) -> None:
    line.make_familiar()
    alone = line.begin("alone")
    goes_alone = line.take("Check")
    joined = line.begin("joined")
    line.take("BatchCheck").end(pb.BatchCheckResponse())  # one item was asked, none is answered
    with pytest.raises(errors.InternalFault, match="0 results"):
        joined.result(30)
    goes_alone.end(YES)
    assert alone.result(30)


def test_no_thread_of_ours_is_left(line: Line) -> None:
    before = threading.active_count()
    line.make_familiar()
    assert threading.active_count() <= before + 1  # the pool's, which is the caller
