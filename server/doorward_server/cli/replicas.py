"""`doorward replicas`: the server processes that a change waits for."""

import typer

from doorward.v1 import system_admin_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Limit

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("replicas", short_help="List the server processes.")(replicas)


@calls_server
def replicas(server: Server, limit: Limit = 100) -> None:
    """List the server processes that a change waits for, and how far each has come.

    One that died without a word stays until a change has waited for it once.
    """
    request = system_admin_pb2.ListReplicasRequest()
    answer = server.call_paged(server.system.ListReplicas, request, "replicas", limit)
    rows = [
        (
            found.replica_id,
            output.shown(found.address),
            found.applied_revision,
            str(found.lag),
            str(found.watchers),
            wording.span(found.hold),
            wording.time(found, "renewed_time"),
            wording.time(found, "started_time"),
        )
        for found in answer.replicas
    ]
    columns = ("REPLICA", "ADDRESS", "APPLIED", "LAG", "WATCHERS", "HOLD", "RENEWED", "STARTED")
    shown = output.table(columns, rows)
    output.show(answer, f"The log ends at {answer.revision}", "", shown, as_json=server.as_json)
