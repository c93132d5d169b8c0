"""The way to a server: its address, the credential, a deadline; a failed call ends the command in words.

The only module of the command line that knows grpc. A command is decorated with `calls_server` and gets a `Server`; the
options that lead to it are added to its own. Nothing is connected before the first call. Design section 9.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import grpc
import typer

from doorward.core.secret import Secret
from doorward.v1.account_admin_pb2_grpc import AccountAdminStub
from doorward.v1.authorizer_pb2_grpc import AuthorizerStub
from doorward.v1.system_admin_pb2_grpc import SystemAdminStub
from doorward.v1.token_admin_pb2_grpc import TokenAdminStub
from doorward_server import telemetry
from doorward_server.cli.failure import FAILED, fail, quoted
from doorward_server.cli.presented import read_credential
from doorward_server.cli.rpc_errors import CallFailure, failure_of
from doorward_server.cli.signatures import with_options
from doorward_server.settings import Listen

__all__ = ["DEFAULT_ADDRESS", "Server", "calls_server"]

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
# Room for a page of tokens with many grants each; the default of 4 MiB is what a server should take, not a reader.
_LONGEST_ANSWER: Final = 64 * 1024 * 1024
_PAGE: Final = 500
_DETAILS_KEY: Final = "grpc-status-details-bin"

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

    def __init__(self, address: str, credential: Secret, timeout_s: float, *, as_json: bool) -> None:
        self.as_json = as_json
        self._address = address
        self._credential = credential
        self._timeout_s = timeout_s
        # No proxy: it would see the credential, and an address on loopback means this machine.
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", _LONGEST_ANSWER)]
        self._channel = grpc.insecure_channel(address, options=options)
        self.accounts: AccountAdminStub = AccountAdminStub(self._channel)
        self.tokens: TokenAdminStub = TokenAdminStub(self._channel)
        self.authorizer: AuthorizerStub = AuthorizerStub(self._channel)
        self.system: SystemAdminStub = SystemAdminStub(self._channel)

    def call(self, method: "grpc.UnaryUnaryMultiCallable[Q, R]", request: Q) -> R:
        """The answer.

        Raises:
            typer.Exit: the call failed; why, and what to do, was said.
        """
        metadata = (("authorization", f"Bearer {self._credential.reveal()}"),)
        try:
            return method(request, timeout=self._timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            failure = _failure_of(error, self._address)
        self._give_up(failure)
        raise typer.Exit(FAILED)

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
        """Ends the connection, if there is one."""
        self._channel.close()

    def _give_up(self, failure: CallFailure) -> None:
        if not self.as_json:
            fail(failure.as_text())
        typer.echo(telemetry.redact(failure.as_json()), err=True)


def calls_server(command: Callable[Concatenate[Server, P], None]) -> Callable[..., None]:
    """Adds the options that lead to a server, and hands the command the `Server` in place of them."""
    return with_options(command, _OPTIONS, _run)


def _run(command: Callable[..., None], options: Mapping[str, Any]) -> None:
    address = _target(options["address"], insecure=options["insecure"])
    credential = read_credential(options["token_file"], options["data_dir"])
    server = Server(address, credential, options["timeout"], as_json=options["json"])
    try:
        command(server)
    finally:
        server.close()


def _target(text: str, *, insecure: bool) -> str:
    try:
        address = Listen(text)
    except ValueError:
        raise typer.BadParameter(
            f"{quoted(text)} is no address; write HOST:PORT, [IPV6]:PORT or unix:PATH, for example {DEFAULT_ADDRESS}",
            param_hint="--address",
        ) from None
    if not address.text.startswith("unix:") and address.port == 0:
        raise typer.BadParameter(f"{quoted(text)}: nobody listens on port 0", param_hint="--address")
    if not address.is_local and not insecure:
        raise typer.BadParameter(
            f"{quoted(text)} is another machine, and the credential would cross the network in the clear; use a tunnel to "
            "it, or say --insecure",
            param_hint="--address",
        )
    return text


def _failure_of(error: grpc.RpcError, address: str) -> CallFailure:
    call: Any = error  # what the channel raises is a grpc.Call too; its type does not say so
    details = None
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            details = value
    return failure_of(call.code().name, call.details() or "", address, details)


def _option(name: str, annotation: Any, default: object, *declarations: str, **described: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, typer.Option(*declarations, **described)],
    )


_OPTIONS: Final = (
    _option(
        "address",
        str,
        DEFAULT_ADDRESS,
        metavar="HOST:PORT|unix:PATH",
        envvar="DOORWARD_ADDRESS",
        help="Where the server listens.",
    ),
    _option(
        "token_file",
        Path | None,
        None,
        metavar="FILE",
        help="File that holds the credential to call with. Else DOORWARD_TOKEN, else DIR/operator.token.",
    ),
    _option(
        "data_dir",
        Path,
        Path("doorward-data"),
        metavar="DIR",
        envvar="DOORWARD_DATA_DIR",
        help="The server's data directory, for its first credential.",
    ),
    _option("timeout", float, 10.0, metavar="SECONDS", min=0.1, max=3600.0, help="How long each call may take."),
    _option(
        "insecure",
        bool,
        False,
        "--insecure",
        envvar="DOORWARD_INSECURE",
        help="Call another machine without TLS. The credential then crosses the network in the clear.",
    ),
    _option("json", bool, False, "--json", help="Print the answer as JSON, with the contract's field names."),
)
