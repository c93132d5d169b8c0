"""`doorward token with-permission`: which tokens may do something at one account or project, now."""

from typing import Annotated

import typer

from doorward.v1 import authorizer_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.check import OnAccount, OnProject, require_one_resource
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Limit

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("with-permission", short_help="List the tokens that may do something.")(calls_server(with_permission))


def with_permission(
    server: Server,
    permission: Annotated[str, typer.Option(metavar="RESOURCE:ACTION", help="For example jobs:write.")],
    project_id: OnProject = None,
    account_id: OnAccount = None,
    limit: Limit = 100,
) -> None:
    """List the tokens for which a check would say yes now, newest first: usable ones alone, by a grant in force."""
    require_one_resource(project_id, account_id)
    request = authorizer_pb2.ListTokensWithPermissionRequest(permission=permission)
    if project_id is not None:
        request.project_id = project_id
    if account_id is not None:
        request.account_id = account_id
    answer = server.call_paged(server.authorizer.ListTokensWithPermission, request, "tokens", limit)
    rows = [
        (
            token.token_id,
            output.shown(token.display_name),
            wording.grants_in_short(token.grants),
            wording.time(token, "expire_time", "never"),
            wording.time(token, "last_used_time", "never"),
            token.created_by,
        )
        for token in answer.tokens
    ]
    columns = ("TOKEN", "NAME", "GRANTS", "EXPIRES", "LAST USED", "CREATED BY")
    output.show_list(answer, columns, rows, "No token may do this here.", as_json=server.as_json)
