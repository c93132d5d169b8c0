"""`doorward token issue | show | permission-sets`: a token's life, as an administrator sees it.

`issue` is the one command that prints a token's secret, once.
"""

from typing import Annotated

import typer
from google.protobuf import duration_pb2, timestamp_pb2

from doorward.v1 import token_admin_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.presented import SecretFile, hand_over, new_secret_file
from doorward_server.cli.values import (
    Label,
    Limit,
    OfAccount,
    RepeatedId,
    ValidateOnly,
    labels_of,
    parse_duration,
    parse_grant,
    parse_label,
    parse_time,
    request_id_of,
)

__all__ = ["app", "details_of"]

app = typer.Typer(no_args_is_help=True, help="Service tokens: issue, show, list, update, rotate, revoke.")

TokenId = Annotated[
    str, typer.Argument(metavar="TOKEN_ID", help="The token's public id, 16 characters; not its secret.")
]


@app.command("issue", short_help="Issue a token, and print its secret once.")
@calls_server
def issue(
    server: Server,
    account_id: OfAccount,
    display_name: Annotated[str, typer.Option(metavar="TEXT", help="The token's name for people.")],
    grant: Annotated[
        list[types_pb2.Grant],
        typer.Option(
            parser=parse_grant,
            metavar="SET:SCOPE",
            help="What it may do: 'job_admin:*' (quoted, for the shell) is the set on all projects, "
            "metadata_only:proj_a,proj_b on these. May be repeated, each set once.",
        ),
    ],
    ttl: Annotated[
        duration_pb2.Duration | None,
        typer.Option(parser=parse_duration, metavar="DURATION", help="Expire after this long: 90d, 12h, 30m."),
    ] = None,
    expire_time: Annotated[
        timestamp_pb2.Timestamp | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Expire then (RFC 3339): 2027-01-01T00:00:00Z."),
    ] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    label: Annotated[
        list[Label] | None,
        typer.Option(parser=parse_label, metavar="KEY=VALUE", help="To find it by. May be repeated."),
    ] = None,
    allow_self_rotation: Annotated[
        bool, typer.Option("--allow-self-rotation", help="It may rotate its own secret.")
    ] = False,
    secret_file: SecretFile = None,
    request_id: RepeatedId = "",
    validate_only: ValidateOnly = False,
) -> None:
    """Issue a token, and print its secret: the only time that it is seen.

    Without --ttl or --expire-time it never expires. When this returns the token works everywhere.
    """
    if ttl is not None and expire_time is not None:
        raise typer.BadParameter(
            "says when it expires, and so does --ttl; give one of them", param_hint="--expire-time"
        )
    request = token_admin_pb2.IssueTokenRequest(
        account_id=account_id,
        display_name=display_name,
        description=description,
        labels=labels_of(label or ()),
        grants=grant,
        ttl=ttl,
        expire_time=expire_time,
        allow_self_rotation=allow_self_rotation,
        request_id=request_id_of(request_id, validate_only=validate_only),
        validate_only=validate_only,
    )
    secret_parts: tuple[str, ...] = ()
    with new_secret_file(None if validate_only else secret_file) as file:
        answer = server.call(server.tokens.IssueToken, request)
        if answer.secret:
            secret_parts = hand_over(answer.secret, file, f"token {answer.token.token_id}")
        if file is not None:
            answer.ClearField("secret")
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, *secret_parts, details_of(answer.token), "", reached, as_json=server.as_json)


@app.command("show", short_help="Show one token.")
@calls_server
def show(server: Server, token_id: TokenId) -> None:
    """Show one token, a revoked one too: its state, grants, expiry and last use. Never its secret."""
    answer = server.call(server.tokens.GetToken, token_admin_pb2.GetTokenRequest(token_id=token_id))
    output.show(answer, details_of(answer.token), as_json=server.as_json)


@app.command("permission-sets", short_help="List what can be granted.")
@calls_server
def permission_sets(server: Server, account_id: OfAccount, limit: Limit = 0) -> None:
    """List the permission sets that a token of the account can be granted, titled as its plan calls them."""
    request = token_admin_pb2.ListPermissionSetsRequest(account_id=account_id)
    answer = server.call_paged(server.tokens.ListPermissionSets, request, "permission_sets", limit)
    rows = [
        (
            found.name,
            output.shown(found.title),
            "yes" if found.covered else "no",
            ", ".join(found.aliases),
            str(len(found.account_permissions)),
            str(len(found.project_permissions)),
            output.shown(found.description),
        )
        for found in answer.permission_sets
    ]
    columns = ("SET", "TITLE", "IN PLAN", "ALIASES", "OF ACCOUNT", "OF PROJECTS", "DESCRIPTION")
    output.show_list(answer, columns, rows, "The catalog has no permission set.", as_json=server.as_json)


def details_of(token: types_pb2.ServiceToken) -> output.Table:
    """A token's record, a line for each field."""
    fields: list[tuple[str, output.Cell]] = [
        ("Token", token.token_id or "none yet"),
        ("Name", output.shown(token.display_name)),
        ("Account", token.account_id),
        ("State", wording.token_state(token.state)),
        ("Grants", wording.grant_lines(token.grants) or "none"),
        ("Expires", wording.time(token, "expire_time", "never")),
        ("Last used", wording.time(token, "last_used_time", "never")),
        ("Created", wording.time(token, "create_time")),
        ("Created by", token.created_by),
        ("Updated", wording.time(token, "update_time")),
        ("Etag", output.shown(token.etag) or "none yet"),
    ]
    if token.HasField("revoke_time"):
        fields.append(("Revoked", wording.time(token, "revoke_time")))
        fields.append(("Reason", output.shown(token.revoke_reason) or "none given"))
    if token.description:
        fields.append(("Description", output.shown(token.description)))
    if token.labels:
        fields.append(("Labels", wording.labels(token.labels.items())))
    if token.allow_self_rotation:
        fields.append(("Self-rotation", "allowed"))
    return output.details(fields)
