"""`doorward check | introspect | permissions`: what a secret may do, asked as any service would.

The secret is never an argument: it comes from a file, a variable or standard input (`presented.read_secret`).
`check` ends with 0 for allowed, 1 for denied, 2 for any error.
"""

from pathlib import Path
from typing import Annotated, Final

import typer

from doorward.v1 import authorizer_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.presented import read_secret

__all__ = [
    "DENIED",
    "SOURCES_HELP",
    "AtLeastAsFresh",
    "FullyConsistent",
    "OnAccount",
    "OnProject",
    "SecretSource",
    "add_to",
    "consistency_of",
    "require_one_resource",
]

DENIED: Final = 1

SOURCES_HELP: Final = """\
The secret is read from --secret-file, from the variable DOORWARD_SECRET, or from standard input, and is never an
argument: arguments stand in process lists, where every user of the machine reads them, and in the shell's history.
"""

SecretSource = Annotated[
    Path | None,
    typer.Option("--secret-file", metavar="FILE", help="File that holds the secret; -: standard input."),
]
AtLeastAsFresh = Annotated[
    str, typer.Option(metavar="REVISION", help="Answer from a state that contains this revision, as 1.4711.")
]
FullyConsistent = Annotated[
    bool, typer.Option("--fully-consistent", help="Read the log's end first, and answer from a state that contains it.")
]
OnProject = Annotated[str | None, typer.Option("--project", metavar="PROJECT_ID", help="The project that it is about.")]
OnAccount = Annotated[str | None, typer.Option("--account", metavar="ACCOUNT_ID", help="The account that it is about.")]


def add_to(app: typer.Typer) -> None:
    """Adds the three commands."""
    for command, in_short in (
        (check, "May this token do this here?"),
        (introspect, "What is this token?"),
        (permissions, "What may this token do?"),
    ):
        described = f"{command.__doc__}\n\n{SOURCES_HELP}"
        app.command(command.__name__, short_help=in_short, help=described)(calls_server(command))


def check(
    server: Server,
    permission: Annotated[str, typer.Option(metavar="RESOURCE:ACTION", help="For example jobs:write.")],
    project_id: OnProject = None,
    account_id: OnAccount = None,
    secret_file: SecretSource = None,
    at_least_as_fresh: AtLeastAsFresh = "",
    fully_consistent: FullyConsistent = False,
) -> None:
    """Ask whether the token with this secret may do something. Exit code: 0 allowed, 1 denied, 2 error."""
    require_one_resource(project_id, account_id)
    request = authorizer_pb2.CheckRequest(
        permission=permission, consistency=consistency_of(at_least_as_fresh, fully_consistent=fully_consistent)
    )
    if project_id is not None:
        request.project_id = project_id
    if account_id is not None:
        request.account_id = account_id
    request.secret = read_secret(secret_file)
    answer = server.call(server.authorizer.Check, request)
    decision = "allowed" if answer.allowed else f"denied: {wording.denial(answer.reason)}"
    output.show(answer, f"{decision}{_asked_of(answer)}", as_json=server.as_json)
    if not answer.allowed:
        raise typer.Exit(DENIED)


def introspect(
    server: Server,
    secret_file: SecretSource = None,
    at_least_as_fresh: AtLeastAsFresh = "",
    fully_consistent: FullyConsistent = False,
) -> None:
    """Show what the token with this secret is: whether it can be used, its grants and its expiry."""
    consistency = consistency_of(at_least_as_fresh, fully_consistent=fully_consistent)
    request = authorizer_pb2.IntrospectTokenRequest(secret=read_secret(secret_file), consistency=consistency)
    answer = server.call(server.authorizer.IntrospectToken, request)
    fields: list[tuple[str, output.Cell]] = [
        ("Active", "yes" if answer.active else f"no: {wording.denial(answer.reason)}")
    ]
    if answer.token_id:
        fields += [
            ("Token", answer.token_id),
            ("Name", output.shown(answer.display_name)),
            ("Account", answer.account_id),
            ("State", wording.token_state(answer.state)),
            ("Grants", wording.grant_lines(answer.grants) or "none"),
            ("Expires", wording.time(answer, "expire_time", "never")),
            ("Secret ends", wording.time(answer, "secret_expire_time", "with the token")),
            ("Last used", wording.time(answer, "last_used_time", "never")),
            ("Created", wording.time(answer, "create_time")),
        ]
    output.show(answer, output.details([*fields, ("Revision", answer.revision)]), as_json=server.as_json)


def permissions(
    server: Server,
    project_id: OnProject = None,
    secret_file: SecretSource = None,
    at_least_as_fresh: AtLeastAsFresh = "",
    fully_consistent: FullyConsistent = False,
) -> None:
    """List the permissions that the token with this secret has: on a project, or without --project on its account."""
    request = authorizer_pb2.ListPermissionsRequest(
        consistency=consistency_of(at_least_as_fresh, fully_consistent=fully_consistent)
    )
    if project_id is not None:
        request.project_id = project_id
    request.secret = read_secret(secret_file)
    answer = server.call(server.authorizer.ListPermissions, request)
    output.show(answer, *answer.permissions, as_json=server.as_json)
    if not answer.usable:
        output.note(f"None: {wording.denial(answer.reason)}.")
    elif not answer.permissions:
        output.note("None.")


def require_one_resource(project_id: str | None, account_id: str | None) -> None:
    """Sees that a permission is asked about on exactly one resource.

    Raises:
        typer.BadParameter: on none or on both.
    """
    if (project_id is None) == (account_id is None):
        raise typer.BadParameter(
            "give one of --project (for a project-level permission) and --account (for an account-level one)",
            param_hint="--project",
        )


def consistency_of(at_least_as_fresh: str, *, fully_consistent: bool) -> types_pb2.Consistency | None:
    """How fresh the answer must be; None: nothing is demanded.

    Raises:
        typer.BadParameter: both are demanded.
    """
    if at_least_as_fresh and fully_consistent:
        raise typer.BadParameter(
            "says how fresh the answer must be, and so does --at-least-as-fresh; give one of them",
            param_hint="--fully-consistent",
        )
    if fully_consistent:
        return types_pb2.Consistency(fully_consistent=True)
    return types_pb2.Consistency(at_least_as_fresh=at_least_as_fresh) if at_least_as_fresh else None


def _asked_of(answer: authorizer_pb2.CheckResponse) -> str:
    token = f"token {answer.token_id}, account {answer.account_id}, " if answer.token_id else ""
    return f" ({token}revision {answer.revision})"
