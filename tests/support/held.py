"""A gRPC server of the contract whose answers a test holds back: what a client sends, and when, over a real connection.

    def test_…(held: Held):
        held.hold()                       # from now on calls are decided when they arrive, and answered only when let go
        call = held.next()                # the next call that arrives, within a bounded time
        call.let_go()                     # or held.let_go() for all, those to come too

Checks are decided by their permission: `yes:read` is allowed, `no:read` denied, `new:read` not recognized, `bad:read` an
error of its item. `held.revoked` has secrets that are denied. Any other RPC is answered with an empty response.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2
from tests.support.wire import every_rpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

PATIENCE_S: Final = 30.0
RPCS: Final = {rpc.path: rpc for rpc in every_rpc()}


class Arrived:
    """One call: what was asked, with what, and how long its caller waits."""

    def __init__(self, path: str, request: Any, context: grpc.ServicerContext) -> None:
        self.method = path.rpartition("/")[2]
        self.request = request
        self.metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.seconds_left = context.time_remaining()
        self.is_over = threading.Event()
        self._may_answer = threading.Event()
        if not context.add_callback(self._end):
            self._end()

    @property
    def resources(self) -> list[str]:
        """The projects that it asks about, in order: tests tell checks apart by them."""
        if isinstance(self.request, pb.BatchCheckRequest):
            return [item.project_id for item in self.request.items]
        return [self.request.project_id]

    def let_go(self) -> None:
        """Lets it be answered."""
        self._may_answer.set()

    def wait(self) -> None:
        """Returns once it was let go, or its caller has given up."""
        self._may_answer.wait(PATIENCE_S)

    def _end(self) -> None:
        self.is_over.set()
        self._may_answer.set()


class Held(grpc.GenericRpcHandler):
    """The server. `failures`: statuses that the next calls end with, one each."""

    def __init__(self, target: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None) -> None:
        self.revoked: set[str] = set()
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self._arrived: queue.Queue[Arrived] = queue.Queue()
        self._waiting: list[Arrived] = []
        self._holds = False
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(64), handlers=[self])
        if credentials is None:
            port = self._server.add_insecure_port(target)
        else:
            port = self._server.add_secure_port(target, credentials)
        self.address = target if target.startswith("unix:") else f"127.0.0.1:{port}"
        self._server.start()

    @staticmethod
    def a_credential() -> str:
        """One that a client takes; this server looks at none."""
        return generate(SecretKind.OPERATOR, new_id()).reveal()

    def hold(self) -> None:
        """Calls that arrive from now on are held back."""
        self._holds = True

    def let_go(self) -> None:
        """Answers whatever is held back, and whatever comes."""
        with self._lock:
            self._holds = False
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            call.let_go()

    def next(self) -> Arrived:
        """The next call that arrives."""
        return self._arrived.get(timeout=PATIENCE_S)

    def so_far(self) -> list[Arrived]:
        """Every call that has arrived and was not asked for."""
        calls = []
        while not self._arrived.empty():
            calls.append(self._arrived.get_nowait())
        return calls

    def close(self) -> None:
        """Ends it, and every call."""
        self.let_go()
        self._server.stop(0).wait(PATIENCE_S)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        rpc = RPCS.get(handler_call_details.method)
        if rpc is None:
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(rpc.path, request, context),
            request_deserializer=rpc.request_type.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )

    def _answer(self, path: str, request: Message, context: grpc.ServicerContext) -> Message:
        call = Arrived(path, request, context)
        with self._lock:
            failure = self.failures.pop(0) if self.failures else None
            answer = self._decided(path, request)
            if self._holds:
                self._waiting.append(call)
            else:
                call.let_go()
        self._arrived.put(call)
        call.wait()
        if failure is not None:
            context.abort(*failure)
        if isinstance(answer, status_pb2.Status):
            context.set_trailing_metadata((("grpc-status-details-bin", answer.SerializeToString()),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, answer.message)
        return answer

    def _decided(self, path: str, request: Message) -> Message:
        if isinstance(request, pb.CheckRequest):
            return self._decide(request.secret, request.permission)
        if not isinstance(request, pb.BatchCheckRequest):
            return RPCS[path].response_type()
        answer = pb.BatchCheckResponse(revision="1.7")
        for item in request.items:
            decided = self._decide(item.secret or request.secret, item.permission)
            if isinstance(decided, status_pb2.Status):
                answer.results.add(error=decided)
            else:
                answer.results.add(
                    allowed=decided.allowed,
                    reason=decided.reason,
                    token_id=decided.token_id,
                    account_id=decided.account_id,
                )
        return answer

    def _decide(self, secret: str, permission: str) -> pb.CheckResponse | status_pb2.Status:
        if permission == "bad:read":
            status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no such permission")
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INVALID_FIELDS", domain="doorward"))
            return status
        if permission == "new:read":
            return pb.CheckResponse(reason=types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED, revision="1.7")
        answer = pb.CheckResponse(token_id=f"token of {secret[:40]}", account_id="acme", revision="1.7")
        if secret in self.revoked:
            answer.reason = types_pb2.DENY_REASON_TOKEN_REVOKED
        elif permission == "yes:read":
            answer.allowed = True
        else:
            answer.reason = types_pb2.DENY_REASON_PERMISSION_NOT_GRANTED
        return answer


@pytest.fixture
def held() -> Iterator[Held]:
    """A server of the test's own."""
    held = Held()
    try:
        yield held
    finally:
        held.close()
