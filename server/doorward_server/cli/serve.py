"""`doorward serve`: the server, with every setting as an option."""

import typer

from doorward_server.cli.settings_options import takes_settings
from doorward_server.settings import Settings

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("serve", short_help="Run the server.")(serve)


@takes_settings()
def serve(settings: Settings) -> None:
    """Run the server, until SIGTERM or Ctrl-C ends it.

    Without --database-url it runs a PostgreSQL of its own in the data directory. The first start writes two credentials
    there: operator.token (admin) and caller.token (caller). Each option is also an environment variable; the option wins.

    With --workers N, SIGUSR2 replaces one worker after another, and no call is lost.
    """
    # A client command need not load the whole server, nor a parent the part that its workers do.
    if settings.workers > 1:
        from doorward_server.workers import parent  # noqa: PLC0415

        raise typer.Exit(parent.run(settings))
    from doorward_server import app as server  # noqa: PLC0415

    raise typer.Exit(server.run(settings))
