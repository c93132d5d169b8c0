"""`doorward token update | rotate | disable | enable`: what changes a token that is there.

`rotate` prints the new secret, once, as `issue` does.
"""

from typing import Annotated

import typer
from google.protobuf import duration_pb2, timestamp_pb2

from doorward.v1 import token_admin_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.presented import SecretFile, hand_over, new_secret_file
from doorward_server.cli.token import TokenId, details_of
from doorward_server.cli.values import (
    Label,
    RepeatedId,
    ValidateOnly,
    labels_of,
    parse_duration,
    parse_grant,
    parse_label,
    parse_time,
    request_id_of,
)

__all__ = ["Overlap", "add_to", "show_rotated"]

Overlap = Annotated[
    duration_pb2.Duration,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        help="How long the present secret goes on working: 0s (it stops at once) to 30d. Never beyond the token's expiry.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to those of `token`."""
    for command, in_short in (
        (update, "Change fields of a token in place."),
        (rotate, "Make a new secret of a token, and print it once."),
        (disable, "Stop a token, reversibly."),
        (enable, "Let a disabled token work again."),
    ):
        app.command(command.__name__, short_help=in_short)(calls_server(command))


def update(
    server: Server,
    token_id: TokenId,
    display_name: Annotated[str | None, typer.Option(metavar="TEXT", help="Its name for people.")] = None,
    description: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What it is for; '' takes the description away.")
    ] = None,
    grant: Annotated[
        list[types_pb2.Grant] | None,
        typer.Option(
            parser=parse_grant,
            metavar="SET:SCOPE",
            help="What it may do from now on, in place of all that it could: 'job_admin:*' or metadata_only:proj_a,proj_b. "
            "May be repeated, each set once.",
        ),
    ] = None,
    label: Annotated[
        list[Label] | None,
        typer.Option(parser=parse_label, metavar="KEY=VALUE", help="In place of all its labels. May be repeated."),
    ] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Take all its labels away.")] = False,
    expire_time: Annotated[
        timestamp_pb2.Timestamp | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Expire then (RFC 3339): 2027-01-01T00:00:00Z."),
    ] = None,
    never_expires: Annotated[bool, typer.Option("--never-expires", help="Take its expiry away.")] = False,
    allow_self_rotation: Annotated[
        bool | None,
        typer.Option("--allow-self-rotation/--no-self-rotation", help="Whether it may rotate its own secret."),
    ] = None,
    etag: Annotated[
        str, typer.Option(metavar="ETAG", help="Only if the token is still as it was when this etag was read.")
    ] = "",
    validate_only: ValidateOnly = False,
) -> None:
    """Change fields of a token in place: its secrets stay, and what no option names is left alone.

    Grants and labels are replaced whole. A later expiry brings an expired token back.
    """
    _refuse_both(label, no_labels, "--label", "--no-labels")
    _refuse_both(expire_time, never_expires, "--expire-time", "--never-expires")
    named = {
        "display_name": display_name is not None,
        "description": description is not None,
        "grants": bool(grant),
        "labels": bool(label) or no_labels,
        "expire_time": expire_time is not None or never_expires,
        "allow_self_rotation": allow_self_rotation is not None,
    }
    if not any(named.values()):
        raise typer.BadParameter("nothing is to be changed; name what, for example --display-name TEXT")
    token = types_pb2.ServiceToken(
        token_id=token_id,
        etag=etag,
        display_name=display_name or "",
        description=description or "",
        grants=grant or (),
        labels=labels_of(label or ()),
        expire_time=expire_time,
        allow_self_rotation=bool(allow_self_rotation),
    )
    request = token_admin_pb2.UpdateTokenRequest(token=token, validate_only=validate_only)
    request.update_mask.paths.extend(path for path, is_named in named.items() if is_named)
    answer = server.call(server.tokens.UpdateToken, request)
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, details_of(answer.token), "", reached, as_json=server.as_json)


def rotate(
    server: Server,
    token_id: TokenId,
    overlap: Overlap,
    secret_file: SecretFile = None,
    request_id: RepeatedId = "",
    validate_only: ValidateOnly = False,
) -> None:
    """Make a new secret of a token, and print it: the only time that it is seen. The token stays what it is.

    Within the overlap both secrets work, so that those who hold the former one can change over. Rotating again within it
    drops the one in between at once, and the oldest keeps its own end.
    """
    request = token_admin_pb2.RotateTokenRequest(
        token_id=token_id,
        overlap=overlap,
        request_id=request_id_of(request_id, validate_only=validate_only),
        validate_only=validate_only,
    )
    secret_parts: tuple[str, ...] = ()
    with new_secret_file(None if validate_only else secret_file) as file:
        answer = server.call(server.tokens.RotateToken, request)
        if answer.secret:
            secret_parts = hand_over(answer.secret, file, f"token {token_id}")
        if file is not None:
            answer.ClearField("secret")
    show_rotated(server, answer, secret_parts)


def show_rotated(
    server: Server,
    answer: token_admin_pb2.RotateTokenResponse | token_admin_pb2.RotateSelfResponse,
    secret_parts: tuple[str, ...],
) -> None:
    """Prints the answer of a rotation, with what was said of its secret."""
    parts: list[output.Cell | output.Table] = [*secret_parts, details_of(answer.token), ""]
    if answer.HasField("former_secret_expire_time"):
        parts.append(f"The former secret works until {wording.time(answer, 'former_secret_expire_time')}.")
    elif secret_parts:
        parts.append("The former secret has stopped.")
    output.show(answer, *parts, wording.reached(answer, answer.propagation), as_json=server.as_json)


def disable(server: Server, token_id: TokenId) -> None:
    """Stop a token, reversibly: when this returns, every check of it is denied. Its secrets, grants and expiry stay.

    A repeat changes nothing and waits again.
    """
    answer = server.call(server.tokens.DisableToken, token_admin_pb2.DisableTokenRequest(token_id=token_id))
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, details_of(answer.token), "", reached, as_json=server.as_json)


def enable(server: Server, token_id: TokenId) -> None:
    """Let a disabled token work again, with the same secrets and grants, unless it has expired meanwhile."""
    answer = server.call(server.tokens.EnableToken, token_admin_pb2.EnableTokenRequest(token_id=token_id))
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, details_of(answer.token), "", reached, as_json=server.as_json)


def _refuse_both(value: object, flag: bool, option: str, opposite: str) -> None:
    if value and flag:
        raise typer.BadParameter(f"cannot be given together with {option}", param_hint=opposite)
