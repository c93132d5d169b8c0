"""`doorward operator create --direct`: a credential made on the database, for when nobody can call a server yet.

The one command beside `token issue` that prints a secret, once. Design section 9.
"""

import enum
import json
from typing import Annotated, Final

import typer

from doorward.core.secret import contains_secret
from doorward_server.cli import output
from doorward_server.cli.presented import SecretFile, hand_over, new_secret_file
from doorward_server.cli.settings_options import takes_settings
from doorward_server.model import OperatorRole
from doorward_server.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Who runs Doorward, and the services that ask it.")


_LONGEST_NAME: Final = 200


class Role(enum.StrEnum):
    """The roles, as `--role` takes them."""

    ADMIN = "admin"
    AUDITOR = "auditor"
    CALLER = "caller"


@app.callback()
def group() -> None:
    """Who runs Doorward, and the services that ask it."""


@app.command("create", short_help="Create an operator, and print its credential once.")
@takes_settings("data_dir", "database_url", "database_pooler", "accept_failover_loss", "pepper_file")
def create(
    settings: Settings,
    role: Annotated[
        Role,
        typer.Option(
            metavar="admin|auditor|caller",
            help="The least that does the job: caller, for a service that only asks.",
        ),
    ],
    display_name: Annotated[str, typer.Option(metavar="TEXT", help="The operator's name for people.")],
    direct: Annotated[
        bool, typer.Option("--direct", help="On the database, without a server: for whoever may write to it.")
    ] = False,
    secret_file: SecretFile = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Create an operator, and print its credential: the only time that it is seen."""
    if not direct:
        raise typer.BadParameter("say --direct: operators are created on the database", param_hint="--direct")
    from doorward_server.cli.offline import create_operator  # noqa: PLC0415 - a client command need not load it

    _require_name(display_name)
    with new_secret_file(secret_file) as file:
        secret = create_operator(settings, OperatorRole[role.name], display_name)
        parts = hand_over(secret.reveal(), file, f"operator {secret.subject_id}")
    if json_:
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
