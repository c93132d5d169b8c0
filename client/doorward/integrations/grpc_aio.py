"""Guards the methods of a grpc.aio server. `grpc_threads` has the same names for a server with threads.

    from doorward.aio import AuthorizerClient
    from doorward.integrations.grpc_aio import OPEN, Guard, Needs, from_metadata, identity

    guard = Guard(
        AuthorizerClient("127.0.0.1:50051", credential=Path("caller.token")),
        {
            "/shop.v1.Jobs/StartJob": Needs("jobs:write", project_id="project_id"),
            "/shop.v1.Jobs/FollowJobs": Needs("jobs:read", project_id=from_metadata("project-id")),
            "/grpc.health.v1.Health/Check": OPEN,
        },
    )
    server = grpc.aio.server(interceptors=[guard])

A method without a rule is refused. A call is checked once, when it begins; `identity()` tells its handler whose token it
was. Where an id may stand, and what that means for a stream: `_rpc.py`. Design section 8; docs/guards.md.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Never

import grpc
import grpc.aio

from doorward.integrations._guard import (
    ADMITTED,
    CHECK_TIMEOUT_S,
    AioGuard,
    Authorizer,
    Gate,
    Identity,
    decide_aio,
    find_identity,
    identity,
)
from doorward.integrations._refusals import FAILED, NO_RULE, NotAdmitted, Refusal, unclear
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
    from collections.abc import AsyncIterator, Awaitable, Callable

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

log: Final = logging.getLogger("doorward")


class Guard(AioGuard, grpc.aio.ServerInterceptor):
    """The interceptor. Put it first, so that no other one works for a call that is refused."""

    def __init__(
        self,
        authorizer: Authorizer[Awaitable[Decision]],
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

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of the call, behind its check."""
        handler = await continuation(handler_call_details)
        rule = self._table.find(handler_call_details.method)
        if handler is None or rule is OPEN:  # gRPC answers UNIMPLEMENTED to what nobody serves
            return handler
        guarded: grpc.RpcMethodHandler[Any, Any] = handler_like(handler, self._behaviour(rule, handler))
        return guarded

    def _behaviour(self, rule: Needs[Place] | None, handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[..., Any]:
        inner = behaviour_of(handler)
        if rule is None:
            return _refusing(NO_RULE)
        if not (inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)):
            # gRPC would run it in a thread, where nothing can be awaited.
            log.error("%s is no coroutine function, and cannot be guarded in a grpc.aio server", inner)
            return _refusing(FAILED)
        enter = self._enter_stream if handler.request_streaming else self._enter
        if inspect.isasyncgenfunction(inner):
            return _yielding(enter, rule, inner)
        return _returning(enter, rule, inner)

    async def _enter(self, needs: Needs[Place], request: Any, context: Any) -> tuple[Any, Any]:
        """Returns request and context for the handler, once the call is let in."""
        try:
            question = question_in(self._gate, needs, context.invocation_metadata(), request)
            ADMITTED.set(await decide_aio(self._gate, question, context.time_remaining()))
        except NotAdmitted as refused:
            await _abort(context, refused.refusal)
        return request, context

    async def _enter_stream(self, needs: Needs[Place], requests: Any, context: Any) -> tuple[Any, Any]:
        if is_in_metadata(needs):
            return await self._enter(needs, requests, context)
        try:
            require_secret(self._gate, context.invocation_metadata())
            messages = aiter(requests)
            try:
                first = await anext(messages)
            except StopAsyncIteration:
                raise NotAdmitted(unclear(needs.id_name)) from None
            question = question_in(self._gate, needs, context.invocation_metadata(), first)
            ADMITTED.set(await decide_aio(self._gate, question, context.time_remaining()))
        except NotAdmitted as refused:
            await _abort(context, refused.refusal)
        rest = _Requests(first, messages, lambda message: require_same(self._gate, needs, question, message), context)
        return rest, _Context(context, rest)


class _Requests:
    """The requests of a stream, from the first one on, each of which must be about the same."""

    def __init__(self, first: Any, others: AsyncIterator[Any], require: Callable[[Any], None], context: Any) -> None:
        self._first = [first]
        self._others = others
        self._require = require
        self._context = context

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        if self._first:
            return self._first.pop()
        message = await anext(self._others)
        try:
            self._require(message)
        except NotAdmitted as refused:
            await _abort(self._context, refused.refusal)
        return message


class _Context:
    """The call's context, for handlers that read with it: the first message is theirs too. All else is gRPC's own."""

    def __init__(self, context: Any, requests: _Requests) -> None:
        self._context = context
        self._requests = requests

    async def read(self) -> Any:
        """The next request, or grpc.aio.EOF."""
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            return grpc.aio.EOF

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _returning(enter: Callable[..., Awaitable[Any]], needs: Needs[Place], inner: Any) -> Callable[..., Any]:
    """For a coroutine function: one answer, or several through context.write."""

    async def behaviour(request: Any, context: Any) -> Any:
        return await inner(*await enter(needs, request, context))

    return behaviour


def _yielding(enter: Callable[..., Awaitable[Any]], needs: Needs[Place], inner: Any) -> Callable[..., Any]:
    """For an asynchronous generator function. gRPC tells the two apart by their kind, which therefore stays."""

    async def behaviour(request: Any, context: Any) -> AsyncIterator[Any]:
        async with aclosing(inner(*await enter(needs, request, context))) as responses:
            async for response in responses:
                yield response

    return behaviour


def _refusing(refusal: Refusal) -> Callable[..., Any]:
    async def behaviour(_request: Any, context: Any) -> None:
        await _abort(context, refusal)

    return behaviour


async def _abort(context: Any, refusal: Refusal) -> Never:
    await context.abort(*status_of(refusal))
    raise AssertionError("abort returned")
