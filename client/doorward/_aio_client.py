"""What every client of asyncio is: a connection, a credential, a deadline; an RPC as a coroutine function.

`aio.py` makes the four clients of it. Design section 8.
"""

from __future__ import annotations

import asyncio
import copy
import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc
import grpc.aio

from doorward import _shared
from doorward._caller import CHANGE_TIMEOUT_S, Caller
from doorward._channel import route_of
from doorward.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from google.protobuf.message import Message

    from doorward._channel import Connecting, Route
    from doorward._credentials import Metadata

__all__ = ["AdminClient", "Client", "rpc"]

A = TypeVar("A")
P = ParamSpec("P")
Q = TypeVar("Q")
R = TypeVar("R")


class Connection:
    """The channel of a client and what was opened on it. A channel that was handed in is left open by `close`."""

    def __init__(self, dial: Callable[[], grpc.aio.Channel], *, is_own: bool) -> None:
        self._dial = dial
        self._is_own = is_own
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process_id = 0
        self._methods: dict[str, Any] = {}
        self.is_closed = False

    def open(self) -> grpc.aio.Channel:
        """The channel, for a call that begins now.

        Raises:
            ClientClosed: it was closed.
            RuntimeError: it was opened by another event loop, or by another process.
        """
        if self.is_closed:
            raise ClientClosed
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                _shared.require_process(self._process_id)
                raise RuntimeError(
                    "this client belongs to the event loop of its first call; another loop needs its own"
                )
            self._loop, self._process_id = loop, os.getpid()
        if self._channel is None:
            self._channel = self._dial()
        return self._channel

    def method(self, path: str, answer_type: type[Message]) -> Any:
        """What calls an RPC; its requests are messages."""
        channel = self.open()
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = channel.unary_unary(path, _serialized, answer_type.FromString)
        return method

    async def close(self) -> None:
        """Ends every call that is under way. Once is as good as often."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._is_own and self._channel is not None:
            await self._channel.close()


class Client:
    """One service, as one client calls it."""

    _SERVICE: ClassVar[str]
    _USUAL_TIMEOUT_S: ClassVar[float] = CHANGE_TIMEOUT_S

    def __init__(
        self,
        target: str | Sequence[str] | grpc.aio.Channel,
        *,
        credential: str | os.PathLike[str] | Callable[[], str] | None = None,
        timeout: float | None = None,
        **how: Unpack[Connecting],
    ) -> None:
        """Connects nothing yet.

        `target`: HOST:PORT, unix:PATH or gRPC's own notation; several servers as a list, of which each call takes one
        that is well; or a channel of your own, which this client leaves open, with its own configuration.
        `credential`: what to call with. A str is the credential itself; a Path is a file, read again when it changes; a
        callable is asked before every call, and must be quick. None: a client certificate says who calls.
        `timeout`: seconds for a call that names none: 2 for the Authorizer, 30 for others. `how`: see `Connecting`.

        Raises:
            ValueError: an argument that cannot be right.
            OSError: a file of `tls_…` cannot be read.
        """
        if isinstance(target, grpc.aio.Channel):
            if how:
                raise ValueError(f"target: a channel of your own has its own {', '.join(how)}")
            channel = target
            self._connection = Connection(lambda: channel, is_own=False)
        else:
            self._connection = Connection(partial(_dial, route_of(target, self._SERVICE, how)), is_own=True)
        self._caller = Caller.of(credential, timeout, self._USUAL_TIMEOUT_S, _as_metadata)

    async def __aenter__(self) -> Self:
        self._connection.open()
        return self

    async def __aexit__(self, *_failure: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; calls that are under way end with ClientClosed."""
        await self._connection.close()

    async def call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, *, timeout: float | None = None
    ) -> R:
        """Calls one method of `stub` with a message, as every method here is called: credential, deadline, exceptions."""
        self._connection.open()
        answer: R = await self._answered(method, request, self._caller.seconds(timeout))
        return answer

    async def _perform(self, call: _shared.Call[A]) -> A:
        method = self._connection.method(call.path, call.answer_type)
        return call.shaped(await self._answered(method, call.request, self._caller.seconds(call.timeout)))

    async def _answered(self, method: Any, request: Any, seconds: float) -> Any:
        metadata = self._caller.metadata()
        try:
            return await method(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._caller.failure(error) from None
        except asyncio.CancelledError:
            # The end of the channel arrives like the end of the caller.
            task = asyncio.current_task()
            if self._connection.is_closed and not (task is not None and task.cancelling()):
                raise ClientClosed from None
            raise


class AdminClient(Client):
    """A client of a service that changes things."""

    def on_behalf_of(self, whom: str) -> Self:
        """The same client, whose calls are told in the audit log to be for `whom`, for example alice@example.com.

        Shares the connection. Operators may say it; Doorward does not verify it.
        """
        theirs = copy.copy(self)
        theirs._caller = self._caller.acting_for(whom)  # noqa: SLF001 - of the same class
        return theirs


def rpc(make: Callable[P, _shared.Call[A]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, A]]:
    """The method of a client that performs the call which `make` makes."""

    async def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return await self._perform(make(*args, **kwargs))

    _shared.named_like(method, make)
    return method


def _dial(route: Route) -> grpc.aio.Channel:
    if route.credentials is None:
        return grpc.aio.insecure_channel(route.target, options=route.options)
    return grpc.aio.secure_channel(route.target, route.credentials, options=route.options)


def _serialized(request: Message) -> bytes:
    return request.SerializeToString()


def _as_metadata(found: Metadata) -> grpc.aio.Metadata:
    return grpc.aio.Metadata(*found)
