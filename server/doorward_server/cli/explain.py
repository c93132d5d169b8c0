"""`doorward explain`: why a token may do something, or why not, grant by grant, and which grant would help.

The token is named by its id (`--token`), or by a secret as `check` takes it. Ends as `check` does: 0 allowed, 1 denied, 2 for
any error.
"""

from typing import Annotated

import typer

from doorward.v1 import authorizer_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.check import (
    DENIED,
    SOURCES_HELP,
    AtLeastAsFresh,
    FullyConsistent,
    OnAccount,
    OnProject,
    SecretSource,
    consistency_of,
    require_one_resource,
)
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.presented import read_secret

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    described = f"{explain.__doc__}\n\n{SOURCES_HELP}"
    app.command("explain", short_help="Why may this token do this here, or why not?", help=described)(
        calls_server(explain)
    )


def explain(
    server: Server,
    permission: Annotated[str, typer.Option(metavar="RESOURCE:ACTION", help="For example jobs:write.")],
    token_id: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN_ID", help="The token to ask about, instead of a secret.")
    ] = None,
    project_id: OnProject = None,
    account_id: OnAccount = None,
    secret_file: SecretSource = None,
    at_least_as_fresh: AtLeastAsFresh = "",
    fully_consistent: FullyConsistent = False,
) -> None:
    """Explain a check: the part of each grant, and the smallest grant that would allow it. Exit code: as of check.

    With --token no secret is read; this needs a credential of the role admin or auditor, or a service token of that account
    with service_tokens:read.
    """
    require_one_resource(project_id, account_id)
    if token_id is not None and secret_file is not None:
        raise typer.BadParameter("names the token, and so does --secret-file; give one of them", param_hint="--token")
    request = authorizer_pb2.ExplainCheckRequest(
        permission=permission, consistency=consistency_of(at_least_as_fresh, fully_consistent=fully_consistent)
    )
    if project_id is not None:
        request.project_id = project_id
    if account_id is not None:
        request.account_id = account_id
    if token_id is None:
        request.secret = read_secret(secret_file)
    else:
        request.token_id = token_id
    answer = server.call(server.authorizer.ExplainCheck, request)
    output.show(answer, *_told(answer), as_json=server.as_json)
    if not answer.allowed:
        raise typer.Exit(DENIED)


def _told(answer: authorizer_pb2.ExplainCheckResponse) -> list[output.Cell | output.Table]:
    decision = "allowed" if answer.allowed else f"denied: {wording.denial(answer.reason)}"
    token = f"token {answer.token_id}, account {answer.account_id}, " if answer.token_id else ""
    parts: list[output.Cell | output.Table] = [f"{decision} ({token}revision {answer.revision})"]
    if answer.grants:
        rows = [(wording.grants_in_short([told.grant]), wording.grant_part(told.part)) for told in answer.grants]
        parts += ["", output.table(("GRANT", "PART"), rows)]
    if answer.HasField("smallest_grant"):
        smallest = answer.smallest_grant
        has_one = any(told.grant.permission_set == smallest.permission_set for told in answer.grants)
        place = ", in the place of its grant of that set" if has_one else ""
        parts += ["", f"The smallest grant that would allow it{place}: {wording.grant_lines([smallest])}"]
    return parts
