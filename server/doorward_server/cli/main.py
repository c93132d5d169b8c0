"""The entry point `doorward`: puts the commands together, and sees to it that no traceback reaches a user.

What an option's own noun is comes as an argument (`token show TOKEN_ID`), everything else as an option (`--account acme`).
Exit codes: 0 done, 1 only for a denied `check` or `explain` and a broken audit, 2 for every error. Design section 9.
"""

import importlib.metadata
import io
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from doorward_server.cli import (
    account,
    audit,
    audit_replay,
    catalog,
    catalog_changes,
    check,
    db,
    explain,
    operator,
    pepper,
    project,
    propagation,
    replicas,
    serve,
    token,
    token_changes,
    token_ends,
    token_lists,
    token_permissions,
    token_self,
)
from doorward_server.cli.failure import FAILED

__all__ = ["app", "main"]

# Looser than a secret's form, so that one that was cut off or mistyped is found too.
_SECRET: Final = re.compile(r"dw(?:st|op)_[0-9A-Za-z]{16}_[0-9A-Za-z]{8}")

app = typer.Typer(
    no_args_is_help=True,
    # Plain text: what stands in brackets in a help text is meant, and boxes do not survive a pipe.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"doorward {importlib.metadata.version('doorward-server')}")
        raise typer.Exit


@app.callback()
def group(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and end.")
    ] = False,
) -> None:
    """Doorward, an authorization service for service account tokens.

    serve, db, pepper, operator create --direct and audit verify | export work on this machine; the others call a server.
    """


serve.add_to(app)
app.add_typer(account.app, name="account")
app.add_typer(project.app, name="project")
app.add_typer(token.app, name="token")
token_lists.add_to(token.app)
token_permissions.add_to(token.app)
token_changes.add_to(token.app)
token_ends.add_to(token.app)
token_self.add_to(token.app)
check.add_to(app)
explain.add_to(app)
app.add_typer(catalog.app, name="catalog")
catalog_changes.add_to(catalog.app)
app.add_typer(operator.app, name="operator")
app.add_typer(audit.app, name="audit")
audit_replay.add_to(audit.app)
replicas.add_to(app)
propagation.add_to(app)
app.add_typer(db.app, name="db")
app.add_typer(pepper.app, name="pepper")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits. Called by the console script."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not fail in a terminal that lacks its letters
    _refuse_secrets(given)
    try:
        app(args=given, prog_name="doorward")
    except Exception as error:  # noqa: BLE001 - the last stop: a fault of ours is told without its text, which may hold anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        _end(
            f"this is a fault of doorward itself: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}. "
            "What the command was to do may or may not have happened. Please report it"
        )


def _refuse_secrets(arguments: Iterable[str]) -> None:
    """Before anything repeats an argument in an error."""
    if any(_SECRET.search(argument) for argument in arguments):
        _end(
            "an argument holds a secret. Arguments stand in process lists and in the shell's history: treat this secret "
            "as leaked. Give one with --secret-file or --token-file, in the variable DOORWARD_SECRET or DOORWARD_TOKEN, or "
            "on standard input; a token or an operator is named by its public id alone"
        )


def _end(problem: str) -> None:
    typer.echo(f"Error: {problem}.", err=True)
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
