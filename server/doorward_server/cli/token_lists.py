"""`doorward token list`, and the filters that it shares with `doorward token revoke`."""

import enum
from collections.abc import Sequence
from typing import Annotated, TypeVar

import typer
from google.protobuf import timestamp_pb2

from doorward.v1 import token_admin_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Label, Limit, OfAccount, labels_of, parse_label, parse_time

__all__ = [
    "CreatedBy",
    "ExpiresBefore",
    "InState",
    "NamePrefix",
    "OnProject",
    "State",
    "UnusedSince",
    "WithLabel",
    "WithSet",
    "add_to",
    "filtered",
]

R = TypeVar("R", token_admin_pb2.ListTokensRequest, token_admin_pb2.RevokeTokensByFilterRequest)


class State(enum.StrEnum):
    """The states that tokens can be found by."""

    ACTIVE = "active"
    DISABLED = "disabled"
    EXPIRED = "expired"
    REVOKED = "revoked"


InState = Annotated[
    State | None,
    typer.Option("--state", metavar="active|disabled|expired|revoked", help="Only tokens in this state."),
]
WithSet = Annotated[
    str, typer.Option("--permission-set", metavar="SET", help="Only tokens with a grant of this set, or of this alias.")
]
OnProject = Annotated[
    str,
    typer.Option(
        "--project", metavar="PROJECT_ID", help="Only tokens that reach this project, by its name or by all projects."
    ),
]
WithLabel = Annotated[
    list[Label] | None,
    typer.Option(
        "--label", parser=parse_label, metavar="KEY=VALUE", help="Only tokens with this label. May be repeated."
    ),
]
CreatedBy = Annotated[
    str, typer.Option("--created-by", metavar="operator:ID|token:ID", help="Only tokens that this one has issued.")
]
UnusedSince = Annotated[
    timestamp_pb2.Timestamp | None,
    typer.Option(
        "--unused-since",
        parser=parse_time,
        metavar="TIME",
        help="Only tokens not used at or after it (RFC 3339), nor issued after it: 2026-01-01T00:00:00Z.",
    ),
]
ExpiresBefore = Annotated[
    timestamp_pb2.Timestamp | None,
    typer.Option(
        "--expires-before",
        parser=parse_time,
        metavar="TIME",
        help="Only tokens that expire before it, those that have expired too.",
    ),
]
NamePrefix = Annotated[
    str, typer.Option("--display-name-prefix", metavar="TEXT", help="Only tokens whose name begins so, in this case.")
]


def add_to(app: typer.Typer) -> None:
    """Adds the command to those of `token`."""
    app.command("list", short_help="List an account's tokens, by many filters.")(calls_server(list_))


def list_(
    server: Server,
    account_id: OfAccount,
    state: InState = None,
    permission_set: WithSet = "",
    project_id: OnProject = "",
    label: WithLabel = None,
    created_by: CreatedBy = "",
    unused_since: UnusedSince = None,
    expires_before: ExpiresBefore = None,
    display_name_prefix: NamePrefix = "",
    limit: Limit = 100,
) -> None:
    """List the account's tokens that match every filter; revoked ones too, unless --state says otherwise.

    Newest first; with --unused-since the longest unused first, with --expires-before the soonest to expire first.
    """
    request = filtered(
        token_admin_pb2.ListTokensRequest(
            account_id=account_id,
            permission_set=permission_set,
            project_id=project_id,
            created_by=created_by,
            unused_since=unused_since,
            expires_before=expires_before,
            display_name_prefix=display_name_prefix,
        ),
        state,
        label or (),
    )
    answer = server.call_paged(server.tokens.ListTokens, request, "tokens", limit)
    rows = [
        (
            token.token_id,
            output.shown(token.display_name),
            wording.token_state(token.state),
            wording.grants_in_short(token.grants),
            wording.time(token, "expire_time", "never"),
            wording.time(token, "last_used_time", "never"),
            token.created_by,
        )
        for token in answer.tokens
    ]
    columns = ("TOKEN", "NAME", "STATE", "GRANTS", "EXPIRES", "LAST USED", "CREATED BY")
    output.show_list(answer, columns, rows, "No token matches.", as_json=server.as_json)


def filtered(request: R, state: State | None, label: Sequence[Label]) -> R:
    """The request, with those filters that are not a field's own text."""
    if state is not None:
        request.state = types_pb2.TokenState.Value(f"TOKEN_STATE_{state.name}")
    request.labels.update(labels_of(label))
    return request
