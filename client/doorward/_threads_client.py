"""What every client of threads is: a connection, a credential, a deadline; an RPC as a method.

`threads.py` makes the four clients of it. Design section 8.
"""

from __future__ import annotations

import copy
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc

from doorward import _shared
from doorward._caller import CHANGE_TIMEOUT_S, Caller
from doorward._channel import route_of
from doorward.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

    from doorward._channel import Connecting, Route
    from doorward._credentials import Metadata
    from doorward.errors import DoorwardError

__all__ = ["AdminClient", "Client", "rpc"]

A = TypeVar("A")
P = ParamSpec("P")
Q = TypeVar("Q")
R = TypeVar("R")


class Connection:
    """The channel of a client and what was opened on it. A channel that was handed in is left open by `close`."""

    def __init__(self, dial: Callable[[], grpc.Channel], *, is_own: bool) -> None:
        self._dial = dial
        self._is_own = is_own
        self._channel: grpc.Channel | None = None
        self._process_id = 0
        self._methods: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.is_closed = False

    def open(self) -> grpc.Channel:
        """The channel, for a call that begins now.

        Raises:
            ClientClosed: it was closed.
            RuntimeError: it was opened by another process.
        """
        channel = self._channel or self._opened()
        if self.is_closed:
            raise ClientClosed
        _shared.require_process(self._process_id)
        return channel

    def method(self, path: str, answer_type: type[Message]) -> Any:
        """What calls an RPC; its requests are messages."""
        channel = self.open()
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = channel.unary_unary(path, _serialized, answer_type.FromString)
        return method

    def close(self) -> None:
        """Ends every call that is under way. Once is as good as often.

        In a child of fork() it ends nothing: what is open is the parent's, and gRPC would wait for threads that stayed there.
        """
        if self._process_id not in {0, os.getpid()}:
            self.is_closed = True
            return
        with self._lock:
            was_closed, self.is_closed = self.is_closed, True
            channel = self._channel
        if channel is not None and self._is_own and not was_closed:
            channel.close()

    def _opened(self) -> grpc.Channel:
        with self._lock:
            if self.is_closed:
                raise ClientClosed
            if self._channel is None:
                self._channel = self._dial()
                self._process_id = os.getpid()
            return self._channel


class Client:
    """One service, as one client calls it."""

    _SERVICE: ClassVar[str]
    _USUAL_TIMEOUT_S: ClassVar[float] = CHANGE_TIMEOUT_S

    def __init__(
        self,
        target: str | Sequence[str] | grpc.Channel,
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
        if isinstance(target, grpc.Channel):
            if how:
                raise ValueError(f"target: a channel of your own has its own {', '.join(how)}")
            channel = target
            self._connection = Connection(lambda: channel, is_own=False)
        else:
            self._connection = Connection(partial(_dial, route_of(target, self._SERVICE, how)), is_own=True)
        self._caller = Caller.of(credential, timeout, self._USUAL_TIMEOUT_S, _as_it_is)

    def __enter__(self) -> Self:
        self._connection.open()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls that are under way end with ClientClosed."""
        self._connection.close()

    def call(self, method: grpc.UnaryUnaryMultiCallable[Q, R], request: Q, *, timeout: float | None = None) -> R:
        """Calls one method of `stub` with a message, as every method here is called: credential, deadline, exceptions."""
        self._connection.open()
        answer: R = self._answered(method, request, self._caller.seconds(timeout))
        return answer

    def _perform(self, call: _shared.Call[A]) -> A:
        method = self._connection.method(call.path, call.answer_type)
        return call.shaped(self._answered(method, call.request, self._caller.seconds(call.timeout)))

    def _answered(self, method: Any, request: Any, seconds: float) -> Any:
        metadata = self._caller.metadata()
        try:
            return method(request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            raise self._raised(error) from None
        except ValueError:
            # What grpc says of a channel that was closed since.
            if self._connection.is_closed:
                raise ClientClosed from None
            raise

    def _raised(self, error: grpc.RpcError) -> DoorwardError:
        # The end of the channel cancels what is under way.
        return ClientClosed() if self._connection.is_closed else self._caller.failure(error)


class AdminClient(Client):
    """A client of a service that changes things."""

    def on_behalf_of(self, whom: str) -> Self:
        """The same client, whose calls are told in the audit log to be for `whom`, for example alice@example.com.

        Shares the connection. Operators may say it; Doorward does not verify it.
        """
        theirs = copy.copy(self)
        theirs._caller = self._caller.acting_for(whom)  # noqa: SLF001 - of the same class
        return theirs


def rpc(make: Callable[P, _shared.Call[A]]) -> Callable[Concatenate[Any, P], A]:
    """The method of a client that performs the call which `make` makes."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return self._perform(make(*args, **kwargs))

    _shared.named_like(method, make)
    return method


def _dial(route: Route) -> grpc.Channel:
    if route.credentials is None:
        return grpc.insecure_channel(route.target, options=route.options)
    return grpc.secure_channel(route.target, route.credentials, options=route.options)


def _serialized(request: Message) -> bytes:
    return request.SerializeToString()


def _as_it_is(found: Metadata) -> Metadata:
    return found
