"""`doorward operator create | list | revoke`: who runs Doorward, and the services that ask it.

`create` prints a credential, once, and with `--direct` it makes one on the database, for when nobody can call a server.
Design section 9.
"""

import enum
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Concatenate, Final, ParamSpec

import typer
from google.protobuf import duration_pb2, timestamp_pb2

from doorward.core.secret import contains_secret
from doorward.v1 import system_admin_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server, run_with_server, server_options
from doorward_server.cli.presented import SecretFile, hand_over, new_secret_file
from doorward_server.cli.settings_options import parameters_of, read_settings
from doorward_server.cli.signatures import with_options
from doorward_server.cli.values import Limit, ValidateOnly, parse_duration, parse_time
from doorward_server.model import OperatorRole
from doorward_server.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Who runs Doorward, and the services that ask it.")


P = ParamSpec("P")

_LONGEST_NAME: Final = 200
_ON_THE_DATABASE: Final = ("database_url", "database_pooler", "accept_failover_loss", "pepper_file")


class Role(enum.StrEnum):
    """The roles, as `--role` takes them."""

    ADMIN = "admin"
    AUDITOR = "auditor"
    CALLER = "caller"


RoleOption = Annotated[
    Role,
    typer.Option(
        metavar="admin|auditor|caller", help="The least that does the job: caller, for a service that only asks."
    ),
]


class _Way:
    """To a server, or to the database itself: the options of both, of which a command takes one.

    An option of the other way is refused, not ignored.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._settings = {name: given[name] for name in _ON_THE_DATABASE}
        self._options = {name: value for name, value in given.items() if name not in self._settings}
        self.as_json: bool = given["json"]

    def to_server(self, work: Callable[[Server], None]) -> None:
        """Runs `work` with the server that the options lead to.

        Raises:
            typer.BadParameter, typer.Exit: they don't.
        """
        for name, value in self._settings.items():
            if value is not None:
                flag = f"--{name.replace('_', '-')}"
                raise typer.BadParameter("is for work on the database itself; say --direct too", param_hint=flag)
        run_with_server(work, self._options)

    def to_database(self) -> Settings:
        """The settings that lead to the database.

        Raises:
            typer.BadParameter, typer.Exit: they don't.
        """
        if self._options["token_file"] is not None:
            raise typer.BadParameter("is for calls to a server; --direct needs none", param_hint="--token-file")
        return read_settings({**self._settings, "data_dir": str(self._options["data_dir"])}, {})


def _either_way(command: Callable[Concatenate[_Way, P], None]) -> Callable[..., None]:
    """Adds the options of both ways, and hands the command the `_Way` in place of them."""
    shared = (*server_options(), *parameters_of(*_ON_THE_DATABASE))
    return with_options(command, shared, lambda bound, given: bound(_Way(given)))


@app.command("create", short_help="Create an operator, and print its credential once.")
@_either_way
def create(
    way: _Way,
    role: RoleOption,
    display_name: Annotated[str, typer.Option(metavar="TEXT", help="The operator's name for people.")],
    ttl: Annotated[
        duration_pb2.Duration | None,
        typer.Option(parser=parse_duration, metavar="DURATION", help="Expire after this long: 90d, 12h, 1d12h."),
    ] = None,
    expire_time: Annotated[
        timestamp_pb2.Timestamp | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Expire then (RFC 3339): 2027-01-01T00:00:00Z."),
    ] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="On the database, without a server: for whoever may write to it.")
    ] = False,
    secret_file: SecretFile = None,
    validate_only: ValidateOnly = False,
) -> None:
    """Create an operator, and print its credential: the only time that it is seen.

    With --direct it takes no server and no credential, only the database and the pepper keys; the operator never expires.
    """
    if ttl is not None and expire_time is not None:
        raise typer.BadParameter(
            "says when it expires, and so does --ttl; give one of them", param_hint="--expire-time"
        )
    if direct:
        for flag, is_given in (("--ttl", ttl), ("--expire-time", expire_time), ("--validate-only", validate_only)):
            if is_given:
                raise typer.BadParameter("needs a server; leave it out with --direct", param_hint=flag)
        _create_directly(way, role, display_name, secret_file)
        return
    request = system_admin_pb2.CreateOperatorRequest(
        role=types_pb2.OperatorRole.Value(f"OPERATOR_ROLE_{role.name}"),
        display_name=display_name,
        ttl=ttl,
        expire_time=expire_time,
        validate_only=validate_only,
    )
    way.to_server(lambda server: _create(server, request, secret_file))


@app.command("list")
@calls_server
def list_(
    server: Server,
    role: Annotated[
        Role | None, typer.Option(metavar="admin|auditor|caller", help="Only operators with this role.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Revoked and expired ones too.")] = False,
    limit: Limit = 100,
) -> None:
    """List operators, the newest first. Credentials are never shown."""
    wanted = types_pb2.OPERATOR_ROLE_UNSPECIFIED
    if role is not None:
        wanted = types_pb2.OperatorRole.Value(f"OPERATOR_ROLE_{role.name}")
    request = system_admin_pb2.ListOperatorsRequest(role=wanted, include_inactive=every)
    answer = server.call_paged(server.system.ListOperators, request, "operators", limit)
    rows = [
        (
            operator.operator_id,
            wording.operator_role(operator.role),
            output.shown(operator.display_name),
            wording.time(operator, "create_time"),
            wording.time(operator, "expire_time", "never"),
            wording.time(operator, "revoke_time"),
        )
        for operator in answer.operators
    ]
    columns = ("OPERATOR", "ROLE", "NAME", "CREATED", "EXPIRES", "REVOKED")
    output.show_list(answer, columns, rows, "No operator matches.", as_json=server.as_json)


@app.command("revoke", short_help="Revoke an operator's credential, for good.")
@calls_server
def revoke(
    server: Server,
    operator_id: Annotated[str, typer.Argument(metavar="OPERATOR_ID", help="The id that list shows.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the audit log.")] = "",
    validate_only: ValidateOnly = False,
) -> None:
    """Revoke an operator's credential, for good: when this returns, no call with it passes anywhere.

    What the operator did stays. One may revoke itself, and the last admin too: `operator create --direct` makes a new one.
    """
    request = system_admin_pb2.RevokeOperatorRequest(
        operator_id=operator_id, reason=reason, validate_only=validate_only
    )
    answer = server.call(server.system.RevokeOperator, request)
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, _details(answer.operator), "", reached, as_json=server.as_json)


def _create(server: Server, request: system_admin_pb2.CreateOperatorRequest, secret_file: Path | None) -> None:
    secret_parts: tuple[str, ...] = ()
    with new_secret_file(None if request.validate_only else secret_file) as file:
        answer = server.call(server.system.CreateOperator, request)
        if answer.secret:
            secret_parts = hand_over(answer.secret, file, f"operator {answer.operator.operator_id}")
        if file is not None:
            answer.ClearField("secret")
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, *secret_parts, _details(answer.operator), "", reached, as_json=server.as_json)


def _create_directly(way: _Way, role: Role, display_name: str, secret_file: Path | None) -> None:
    from doorward_server.cli.offline import create_operator  # noqa: PLC0415 - a client command need not load it

    _require_name(display_name)
    settings = way.to_database()
    with new_secret_file(secret_file) as file:
        secret = create_operator(settings, OperatorRole[role.name], display_name)
        parts = hand_over(secret.reveal(), file, f"operator {secret.subject_id}")
    if way.as_json:
        made = {"operator_id": secret.subject_id, "role": role.value, "display_name": display_name}
        if file is None:
            made["secret"] = secret.reveal()
        output.write(json.dumps(made, indent=2) + "\n")
        return
    fields = [("Operator", secret.subject_id), ("Role", role.value), ("Name", output.shown(display_name))]
    output.say(*parts, output.details(fields))


def _require_name(display_name: str) -> None:
    if not 1 <= len(display_name) <= _LONGEST_NAME or contains_secret(display_name):
        raise typer.BadParameter(
            f"must have 1 to {_LONGEST_NAME} characters, and no secret in it", param_hint="--display-name"
        )


def _details(operator: system_admin_pb2.Operator) -> output.Table:
    fields: list[tuple[str, output.Cell]] = [
        ("Operator", operator.operator_id or "none yet"),
        ("Role", wording.operator_role(operator.role)),
        ("Name", output.shown(operator.display_name)),
        ("Created", wording.time(operator, "create_time")),
        ("Expires", wording.time(operator, "expire_time", "never")),
    ]
    if operator.HasField("revoke_time"):
        fields.append(("Revoked", wording.time(operator, "revoke_time")))
    return output.details(fields)
