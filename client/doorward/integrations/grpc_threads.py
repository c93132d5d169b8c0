"""Guards the methods of a grpc server with threads. `grpc_aio` has the same names for a server of grpc.aio.

    from doorward.integrations.grpc_threads import OPEN, Guard, Needs, from_metadata, identity
    from doorward.threads import AuthorizerClient

    guard = Guard(
        AuthorizerClient("127.0.0.1:50051", credential=Path("caller.token")),
        {
            "/shop.v1.Jobs/StartJob": Needs("jobs:write", project_id="project_id"),
            "/shop.v1.Jobs/FollowJobs": Needs("jobs:read", project_id=from_metadata("project-id")),
            "/grpc.health.v1.Health/Check": OPEN,
        },
    )
    server = grpc.server(ThreadPoolExecutor(32), interceptors=[guard])

A method without a rule is refused. A call is checked once, when it begins, in the thread that handles it; `identity()` tells
its handler whose token it was. Where an id may stand, and what that means for a stream: `_rpc.py`. Design section 8;
docs/guards.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import grpc

from doorward.integrations._guard import (
    ADMITTED,
    CHECK_TIMEOUT_S,
    Authorizer,
    Gate,
    Identity,
    ThreadsGuard,
    decide_threads,
    find_identity,
    identity,
)
from doorward.integrations._refusals import NO_RULE, NotAdmitted, Refusal, unclear
from doorward.integrations._rpc import (
    HEALTH,
    Place,
    Rules,
    Table,
    behaviour_of,
    from_metadata,
    handler_like,
    is_in_metadata,
    question_in,
    require_same,
    require_secret,
    status_of,
)
from doorward.integrations._rules import OPEN, Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doorward.decisions import Decision

__all__ = [
    "HEALTH",
    "OPEN",
    "Authorizer",
    "Guard",
    "Identity",
    "Needs",
    "Rules",
    "find_identity",
    "from_metadata",
    "identity",
]


class Guard(ThreadsGuard, grpc.ServerInterceptor):
    """The interceptor. Put it first, so that no other one works for a call that is refused."""

    def __init__(
        self,
        authorizer: Authorizer[Decision],
        rules: Rules,
        *,
        timeout: float = CHECK_TIMEOUT_S,
    ) -> None:
        """`timeout`: seconds that a check may take; a call that has less left gives it less.

        Raises:
            ValueError, TypeError: a rule that cannot be one.
        """
        self._gate = Gate(authorizer, timeout)
        self._table = Table(rules)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of the call, behind its check."""
        handler = continuation(handler_call_details)
        rule = self._table.find(handler_call_details.method)
        if handler is None or rule is OPEN:  # gRPC answers UNIMPLEMENTED to what nobody serves
            return handler
        guarded: grpc.RpcMethodHandler[Any, Any] = handler_like(handler, self._behaviour(rule, handler))
        return guarded

    def _behaviour(self, rule: Needs[Place] | None, handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[..., Any]:
        inner = behaviour_of(handler)
        enter = self._enter_stream if handler.request_streaming else self._enter

        def behaviour(request: Any, context: Any) -> Any:
            if rule is None:
                _abort(context, NO_RULE)
            return inner(enter(rule, request, context), context)

        return behaviour

    def _enter(self, needs: Needs[Place], request: Any, context: Any) -> Any:
        """Returns the request for the handler, once the call is let in."""
        try:
            question = question_in(self._gate, needs, context.invocation_metadata(), request)
            # gRPC runs each call in a context of its own, from here to its last answer.
            ADMITTED.set(decide_threads(self._gate, question, context.time_remaining()))
        except NotAdmitted as refused:
            _abort(context, refused.refusal)
        return request

    def _enter_stream(self, needs: Needs[Place], requests: Any, context: Any) -> Any:
        if is_in_metadata(needs):
            return self._enter(needs, requests, context)
        try:
            require_secret(self._gate, context.invocation_metadata())
            messages = iter(requests)
            try:
                first = next(messages)
            except StopIteration:
                raise NotAdmitted(unclear(needs.id_name)) from None
            question = question_in(self._gate, needs, context.invocation_metadata(), first)
            ADMITTED.set(decide_threads(self._gate, question, context.time_remaining()))
        except NotAdmitted as refused:
            _abort(context, refused.refusal)
        return _Requests(first, messages, lambda message: require_same(self._gate, needs, question, message), context)


class _Requests:
    """The requests of a stream, from the first one on, each of which must be about the same."""

    def __init__(self, first: Any, others: Iterator[Any], require: Callable[[Any], None], context: Any) -> None:
        self._first = [first]
        self._others = others
        self._require = require
        self._context = context

    def __iter__(self) -> _Requests:
        return self

    def __next__(self) -> Any:
        if self._first:
            return self._first.pop()
        message = next(self._others)
        try:
            self._require(message)
        except NotAdmitted as refused:
            _abort(self._context, refused.refusal)
        return message


def _abort(context: Any, refusal: Refusal) -> Never:
    code, message, trailing = status_of(refusal)
    context.set_trailing_metadata(trailing)
    context.abort(code, message)
    raise AssertionError("abort returned")
