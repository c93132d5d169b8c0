"""`doorward project put | list | delete`: what project-level permissions are about."""

from typing import Annotated

import typer

from doorward.v1 import account_admin_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Limit, OfAccount, ValidateOnly

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Projects of an account.")


@app.command("put", short_help="Create a project, or rename it.")
@calls_server
def put(
    server: Server,
    project_id: Annotated[str, typer.Argument(metavar="PROJECT_ID", help="Unique in the whole deployment.")],
    account_id: OfAccount,
    display_name: Annotated[str, typer.Option(metavar="TEXT", help="The project's name for people.")],
    validate_only: ValidateOnly = False,
) -> None:
    """Create the project in the account, or give it this name.

    Grants on all projects cover it from then on. A project never moves to another account.
    """
    request = account_admin_pb2.PutProjectRequest(
        account_id=account_id, project_id=project_id, display_name=display_name, validate_only=validate_only
    )
    answer = server.call(server.accounts.PutProject, request)
    project = answer.project
    shown = output.details(
        [
            ("Project", project.project_id),
            ("Account", project.account_id),
            ("Name", output.shown(project.display_name)),
            ("Created", wording.time(project, "create_time")),
        ]
    )
    output.show(answer, shown, "", wording.reached(answer, answer.propagation), as_json=server.as_json)


@app.command("list")
@calls_server
def list_(server: Server, account_id: OfAccount, limit: Limit = 100) -> None:
    """List the account's projects by id."""
    request = account_admin_pb2.ListProjectsRequest(account_id=account_id)
    answer = server.call_paged(server.accounts.ListProjects, request, "projects", limit)
    rows = [
        (project.project_id, output.shown(project.display_name), wording.time(project, "create_time"))
        for project in answer.projects
    ]
    columns = ("PROJECT", "NAME", "CREATED")
    output.show_list(answer, columns, rows, "The account has no project.", as_json=server.as_json)


@app.command("delete", short_help="Delete a project, and take it out of every grant.")
@calls_server
def delete(
    server: Server,
    project_id: Annotated[str, typer.Argument(metavar="PROJECT_ID", help="For example warehouse.")],
    account_id: OfAccount,
    validate_only: ValidateOnly = False,
) -> None:
    """Delete the project: when this returns, every check about it is denied, and no grant names it any more.

    A grant that named no other project goes; a token left with no grant stays, and may do nothing. The id may be put again,
    by any account, and no grant remembers it.
    """
    request = account_admin_pb2.DeleteProjectRequest(
        account_id=account_id, project_id=project_id, validate_only=validate_only
    )
    answer = server.call(server.accounts.DeleteProject, request)
    shown = output.details(
        [
            ("Project", answer.project.project_id),
            ("Account", answer.project.account_id),
            ("Name", output.shown(answer.project.display_name)),
            ("Grants changed", str(answer.grants_changed)),
            ("Grants removed", str(answer.grants_removed)),
        ]
    )
    output.show(answer, shown, "", wording.reached(answer, answer.propagation), as_json=server.as_json)
