"""`doorward db migrate`: brings the database's schema up to date, without a server."""

from pathlib import Path
from typing import Final

import typer

from doorward_server.cli import output
from doorward_server.cli.settings_options import takes_settings
from doorward_server.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The database, without a server.")

# No migration needs a pepper key, and who migrates a database need not have any.
_NO_PEPPER: Final = {"pepper_file": Path("pepper.keys")}


@app.callback()
def group() -> None:
    """The database, without a server."""


@app.command("migrate")
@takes_settings("data_dir", "database_url", "database_pooler", "accept_failover_loss", filled_in=_NO_PEPPER)
def migrate(settings: Settings) -> None:
    """Bring the schema up to date. A server does it by itself when it starts.

    Works on the database that --database-url names, else on the data directory's own PostgreSQL. A repeat changes
    nothing; servers of the version before go on running meanwhile.
    """
    from doorward_server.cli.offline import migrate_schema  # noqa: PLC0415 - a client command need not load it

    applied = migrate_schema(settings)
    output.say(*(f"Applied {name}" for name in applied) if applied else ("The schema is up to date.",))
