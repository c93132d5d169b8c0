"""`doorward db migrate | new-epoch`: the database's schema, and its life after a restore, without a server.

Design sections 6 and 7.
"""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from doorward_server.cli import output
from doorward_server.cli.settings_options import takes_settings
from doorward_server.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The database, without a server.")

# Neither command needs a pepper key, and who looks after a database need not have any.
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


@app.command("new-epoch", short_help="Begin a new epoch in a database that was restored.")
@takes_settings("data_dir", "database_url", "database_pooler", "accept_failover_loss", "hold", filled_in=_NO_PEPPER)
def new_epoch(settings: Settings, json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Begin a new epoch in a database that was restored from a backup.

    For when all servers and the former database are stopped and the backup is in place, before the servers start.
    Forgets the replicas that the backup knows, and waits until none of them can answer a check any more: the longest
    hold among them, and at least --hold, which must be the longest that any server was started with. Revisions of
    before are refused from then on. Killed while it waits, it has changed nothing; a repeat begins one epoch more,
    which does no harm.
    """
    from doorward_server.cli.offline import new_epoch as begin  # noqa: PLC0415 - a client command need not load it

    begun = begin(settings, output.note)
    if json_:
        told = {"revision": str(begun.revision), "replicas_forgotten": begun.replicas, "waited_ms": begun.hold_ms}
        output.write(json.dumps(told, indent=2) + "\n")
        return
    output.say(
        f"A new epoch has begun, at revision {begun.revision}.",
        "Start the servers now. What was revoked, disabled or suspended after the backup was made is active again:",
        "revoke it anew before callers come back. What was issued after it is unknown.",
    )
