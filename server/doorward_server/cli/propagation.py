"""`doorward await-propagation REVISION`: goes on waiting for a change whose own command could not."""

from typing import Annotated

import typer

from doorward.v1 import token_admin_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("await-propagation", short_help="Wait until a change is true everywhere.")(await_propagation)


@calls_server
def await_propagation(
    server: Server,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="Of the change, as 1.4711.")],
) -> None:
    """Wait until a change is true everywhere, as the command that made it would have."""
    request = token_admin_pb2.AwaitPropagationRequest(revision=revision)
    answer = server.call(server.tokens.AwaitPropagation, request)
    output.show(answer, wording.propagation(answer.propagation), as_json=server.as_json)
