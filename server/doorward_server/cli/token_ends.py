"""`doorward token revoke | report-leak`: tokens end, one or many, by their ids, by a filter or by a secret that leaked."""

from collections.abc import Sequence
from typing import Annotated

import typer

from doorward.v1 import token_admin_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.check import SOURCES_HELP, SecretSource
from doorward_server.cli.connection import Server, calls_server, calls_server_as_nobody
from doorward_server.cli.presented import read_secret
from doorward_server.cli.token import details_of
from doorward_server.cli.token_lists import (
    CreatedBy,
    ExpiresBefore,
    InState,
    NamePrefix,
    OnProject,
    UnusedSince,
    WithLabel,
    WithSet,
    filtered,
)

__all__ = ["add_to"]

ACCOUNT = typer.Option(
    "--account", metavar="ACCOUNT_ID", help="The account of the tokens; needed with filters, else looked up."
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands to those of `token`."""
    app.command("revoke", short_help="Revoke tokens, for good: by id or by filter.")(calls_server(revoke))
    described = f"{report_leak.__doc__}\n\n{SOURCES_HELP}"
    app.command("report-leak", short_help="End a secret that has leaked; needs no credential.", help=described)(
        calls_server_as_nobody(report_leak)
    )


def revoke(
    server: Server,
    token_ids: Annotated[
        list[str] | None, typer.Argument(metavar="TOKEN_ID", help="Public ids of tokens of one account.")
    ] = None,
    account_id: Annotated[str, ACCOUNT] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for people and the audit log.")] = "",
    obtained_by: Annotated[
        str,
        typer.Option(
            metavar="TOKEN_ID",
            help="Only tokens of which this one ever received a secret, by issuing or rotating them.",
        ),
    ] = "",
    descendants: Annotated[
        bool, typer.Option("--descendants", help="With --obtained-by: also what those received, and so on, to the end.")
    ] = False,
    state: InState = None,
    permission_set: WithSet = "",
    project_id: OnProject = "",
    label: WithLabel = None,
    created_by: CreatedBy = "",
    unused_since: UnusedSince = None,
    expires_before: ExpiresBefore = None,
    display_name_prefix: NamePrefix = "",
    all_tokens: Annotated[bool, typer.Option("--all", help="Every token of the account that is not revoked.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--validate-only", help="Only show what would be revoked; nothing is written.")
    ] = False,
) -> None:
    """Revoke tokens, for good: when this returns, nobody anywhere says yes to a check of them that begins from then on.

    Either the tokens are named, and all of them are revoked or none; or filters say which ones of --account. A repeat
    succeeds, keeps each token's first time and reason, and waits again. A leaked token and all that it has obtained:

    doorward token revoke LEAKED; doorward token revoke --account ACCOUNT --obtained-by LEAKED --descendants
    """
    request = filtered(
        token_admin_pb2.RevokeTokensByFilterRequest(
            account_id=account_id,
            permission_set=permission_set,
            project_id=project_id,
            created_by=created_by,
            unused_since=unused_since,
            expires_before=expires_before,
            display_name_prefix=display_name_prefix,
            obtained_by=obtained_by,
            include_descendants=descendants,
            all_tokens=all_tokens,
        ),
        state,
        label or (),
    )
    is_filtered = any(field.name != "account_id" for field, _ in request.ListFields())
    request.reason, request.validate_only = reason, dry_run
    if is_filtered:
        _revoke_matching(server, token_ids or (), request)
    elif token_ids:
        _revoke_named(server, token_ids, account_id, reason, dry_run=dry_run)
    else:
        raise typer.BadParameter("name tokens, or say with filters or --all which ones of --account are meant")


def report_leak(server: Server, secret_file: SecretSource = None) -> None:
    """Report a secret that has leaked: holding it is proof enough, and no credential is needed or sent.

    A token's current secret revokes the token; one that was rotated out ends alone. The answer is the same whether the
    secret was anybody's or not.
    """
    request = token_admin_pb2.ReportLeakedTokenRequest(secret=read_secret(secret_file))
    answer = server.call(server.tokens.ReportLeakedToken, request)
    output.show(answer, "Reported. If it was a token's secret, it has stopped everywhere.", as_json=server.as_json)


def _revoke_matching(
    server: Server, token_ids: Sequence[str], request: token_admin_pb2.RevokeTokensByFilterRequest
) -> None:
    if token_ids:
        raise typer.BadParameter("names tokens, and there are filters too; give one of them", param_hint="TOKEN_ID")
    if not request.account_id:
        raise typer.BadParameter("is needed with filters", param_hint="--account")
    answer = server.call(server.tokens.RevokeTokensByFilter, request)
    reached = wording.reached(answer, answer.propagation)
    said = "would be revoked" if request.validate_only else "revoked"
    output.show(answer, *answer.token_ids, f"{len(answer.token_ids)} {said}.", reached, as_json=server.as_json)


def _revoke_named(server: Server, token_ids: Sequence[str], account_id: str, reason: str, *, dry_run: bool) -> None:
    if len(token_ids) == 1 and not account_id and not dry_run:
        one = server.call(
            server.tokens.RevokeToken, token_admin_pb2.RevokeTokenRequest(token_id=token_ids[0], reason=reason)
        )
        reached = wording.reached(one, one.propagation)
        output.show(one, details_of(one.token), "", reached, as_json=server.as_json)
        return
    request = token_admin_pb2.BatchRevokeTokensRequest(
        account_id=account_id or _account_of(server, token_ids[0]),
        token_ids=token_ids,
        reason=reason,
        validate_only=dry_run,
    )
    answer = server.call(server.tokens.BatchRevokeTokens, request)
    columns = ("TOKEN", "NAME", "STATE", "REVOKED", "REASON")
    table = output.table(columns, [_row(token) for token in answer.tokens])
    output.show(answer, table, "", wording.reached(answer, answer.propagation), as_json=server.as_json)


def _account_of(server: Server, token_id: str) -> str:
    request = token_admin_pb2.GetTokenRequest(token_id=token_id)
    return server.call(server.tokens.GetToken, request).token.account_id


def _row(token: types_pb2.ServiceToken) -> tuple[output.Cell, ...]:
    return (
        token.token_id,
        output.shown(token.display_name),
        wording.token_state(token.state),
        wording.time(token, "revoke_time"),
        output.shown(token.revoke_reason),
    )
