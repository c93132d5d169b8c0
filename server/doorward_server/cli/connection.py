"""The way to a server: its address, the credential, a deadline; a failed call ends the command in words.

The command line stands on the client's `doorward.threads`, and only this module knows it. A command is decorated with
`calls_server` and gets a `Server`; the options that lead to it are added to its own. Nothing is connected before the first
call. Design section 9.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import typer

from doorward.core.secret import Secret
from doorward.threads import (
    AccountAdminClient,
    AuthorizerClient,
    DoorwardError,
    SystemAdminClient,
    TokenAdminClient,
)
from doorward_server import telemetry
from doorward_server.cli.failure import FAILED, fail, quoted
from doorward_server.cli.presented import CREDENTIAL_VARIABLE, read_credential
from doorward_server.cli.rpc_errors import CallFailure, failure_from
from doorward_server.cli.signatures import option, with_options
from doorward_server.cli.tls import TLS_OPTIONS, stands_for_operator, tls_of
from doorward_server.settings import Listen

if TYPE_CHECKING:
    import grpc

    from doorward.v1.account_admin_pb2_grpc import AccountAdminStub
    from doorward.v1.authorizer_pb2_grpc import AuthorizerStub
    from doorward.v1.system_admin_pb2_grpc import SystemAdminStub
    from doorward.v1.token_admin_pb2_grpc import TokenAdminStub

__all__ = [
    "DEFAULT_ADDRESS",
    "Server",
    "calls_server",
    "calls_server_as_nobody",
    "run_with_server",
    "server_options",
]

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
_PAGE: Final = 500
OF_CREDENTIALS: Final = frozenset({"token_file", "data_dir"})

P = ParamSpec("P")


class _Request(Protocol):
    page_size: int
    page_token: str


class _Response(Protocol):
    next_page_token: str


Q = TypeVar("Q")
R = TypeVar("R")
PagedQ = TypeVar("PagedQ", bound=_Request)
PagedR = TypeVar("PagedR", bound=_Response)


class Server:
    """A server, as one command calls it. `as_json`: whoever started the command wants its answer as JSON."""

    def __init__(
        self, address: str, credential: Secret | None, timeout_s: float, *, tls: Mapping[str, Any], as_json: bool
    ) -> None:
        self.as_json = as_json
        self._address = address
        how: dict[str, Any] = {
            "credential": None if credential is None else credential.reveal(),
            "timeout": timeout_s,
            "insecure": True,  # `_target` has judged the address
            "balanced": False,  # people ask one server, and want its own word
            **tls,
        }
        self._accounts = AccountAdminClient(address, **how)
        self._tokens = TokenAdminClient(address, **how)
        self._authorizer = AuthorizerClient(address, **how)
        self._system = SystemAdminClient(address, **how)

    @property
    def accounts(self) -> "AccountAdminStub":
        """AccountAdmin's methods, for `call`."""
        return self._accounts.stub

    @property
    def tokens(self) -> "TokenAdminStub":
        """TokenAdmin's methods, for `call`."""
        return self._tokens.stub

    @property
    def authorizer(self) -> "AuthorizerStub":
        """Authorizer's methods, for `call`."""
        return self._authorizer.stub

    @property
    def system(self) -> "SystemAdminStub":
        """SystemAdmin's methods, for `call`."""
        return self._system.stub

    def call(self, method: "grpc.UnaryUnaryMultiCallable[Q, R]", request: Q) -> R:
        """The answer.

        Raises:
            typer.Exit: the call failed; why, and what to do, was said.
        """
        answer = self.attempt(method, request)
        if isinstance(answer, CallFailure):
            self._give_up(answer)
            raise typer.Exit(FAILED)
        return answer

    def attempt(self, method: "grpc.UnaryUnaryMultiCallable[Q, R]", request: Q) -> R | CallFailure:
        """The answer, or why there is none; for a command that goes on all the same."""
        try:
            # Every client calls alike: which channel it is, the method knows.
            return self._tokens.call(method, request)
        except DoorwardError as error:
            return failure_from(error, self._address, getattr(request, "request_id", ""))

    def call_paged(
        self, method: "grpc.UnaryUnaryMultiCallable[PagedQ, PagedR]", request: PagedQ, items: str, limit: int
    ) -> PagedR:
        """Pages of a list as one response, up to `limit` of its `items` (0: all); its `next_page_token` tells of more.

        Raises:
            typer.Exit: a call failed; why, and what to do, was said.
        """
        request.page_size = min(limit, _PAGE) if limit else _PAGE
        response: Any = self.call(method, request)
        while response.next_page_token and (not limit or len(getattr(response, items)) < limit):
            missing = limit - len(getattr(response, items)) if limit else _PAGE
            request.page_size, request.page_token = min(missing, _PAGE), response.next_page_token
            page: Any = self.call(method, request)
            response.MergeFrom(page)
            response.next_page_token = page.next_page_token  # an empty one is not merged
        if response.next_page_token:
            typer.echo(f"There are more than these {limit}; raise --limit (0: all of them).", err=True)
        found: PagedR = response
        return found

    def close(self) -> None:
        """Ends the connections, if there are any."""
        for client in (self._accounts, self._tokens, self._authorizer, self._system):
            client.close()

    def _give_up(self, failure: CallFailure) -> None:
        if not self.as_json:
            fail(failure.as_text())
        typer.echo(telemetry.redact(failure.as_json()), err=True)


def calls_server(command: Callable[Concatenate[Server, P], None]) -> Callable[..., None]:
    """Adds the options that lead to a server, and hands the command the `Server` in place of them."""
    return with_options(command, _OPTIONS, run_with_server)


def calls_server_as_nobody(command: Callable[Concatenate[Server, P], None]) -> Callable[..., None]:
    """The same for a call that needs no credential: none is looked for, and none is sent."""
    options = [option for option in _OPTIONS if option.name not in OF_CREDENTIALS]
    return with_options(command, options, _run_as_nobody)


def server_options() -> tuple[inspect.Parameter, ...]:
    """The options that lead to a server, for a command that may also work without one."""
    return _OPTIONS


def run_with_server(command: Callable[[Server], None], options: Mapping[str, Any]) -> None:
    """Runs `command` with the server that the values of these options lead to."""
    tls = tls_of(options)
    address = _target(options["address"], may_leave=options["insecure"] or bool(tls))
    # A certificate that stands for an operator needs no credential beside it, unless one is named.
    is_named = options["token_file"] is not None or bool(os.environ.get(CREDENTIAL_VARIABLE, "").strip())
    needs_none = not is_named and stands_for_operator(tls)
    credential = None if needs_none else read_credential(options["token_file"], options["data_dir"])
    _run(command, Server(address, credential, options["timeout"], tls=tls, as_json=options["json"]))


def _run_as_nobody(command: Callable[[Server], None], options: Mapping[str, Any]) -> None:
    tls = tls_of(options)
    address = _target(options["address"], may_leave=options["insecure"] or bool(tls))
    _run(command, Server(address, None, options["timeout"], tls=tls, as_json=options["json"]))


def _run(command: Callable[[Server], None], server: Server) -> None:
    try:
        command(server)
    finally:
        server.close()


def _target(text: str, *, may_leave: bool) -> str:
    try:
        address = Listen(text)
    except ValueError:
        raise typer.BadParameter(
            f"{quoted(text)} is no address; write HOST:PORT, [IPV6]:PORT or unix:PATH, for example {DEFAULT_ADDRESS}",
            param_hint="--address",
        ) from None
    if not address.text.startswith("unix:") and address.port == 0:
        raise typer.BadParameter(f"{quoted(text)}: nobody listens on port 0", param_hint="--address")
    if not address.is_local and not may_leave:
        raise typer.BadParameter(
            f"{quoted(text)} is another machine, and the credential would cross the network in the clear; say --tls-ca "
            "or --tls, use a tunnel to it, or say --insecure",
            param_hint="--address",
        )
    return text


_OPTIONS: Final = (
    option(
        "address",
        str,
        DEFAULT_ADDRESS,
        metavar="HOST:PORT|unix:PATH",
        envvar="DOORWARD_ADDRESS",
        help="Where the server listens.",
    ),
    option(
        "token_file",
        Path | None,
        None,
        metavar="FILE",
        help="File that holds the credential to call with. Else DOORWARD_TOKEN, else DIR/operator.token.",
    ),
    option(
        "data_dir",
        Path,
        Path("doorward-data"),
        metavar="DIR",
        envvar="DOORWARD_DATA_DIR",
        help="The server's data directory, for its first credential.",
    ),
    option("timeout", float, 10.0, metavar="SECONDS", min=0.1, max=3600.0, help="How long each call may take."),
    option(
        "insecure",
        bool,
        False,
        "--insecure",
        envvar="DOORWARD_INSECURE",
        help="Call another machine without TLS. The credential then crosses the network in the clear.",
    ),
    *TLS_OPTIONS,
    option("json", bool, False, "--json", help="Print the answer as JSON, with the contract's field names."),
)
