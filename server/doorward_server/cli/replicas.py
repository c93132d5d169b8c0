"""`doorward replicas`: the server processes that a change waits for, and which of them is late."""

from typing import TYPE_CHECKING, Final

import typer

from doorward.core.lease import length_ns
from doorward.v1 import system_admin_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Limit

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["add_to"]

COLUMNS: Final = ("REPLICA", "ADDRESS", "LEASE", "RENEWED", "APPLIED", "LAG", "WATCHERS", "STARTED")
# Renewals are a quarter of a hold apart: after half of one, one is missing.
LATE: Final = 0.5


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("replicas", short_help="List the server processes.")(replicas)


@calls_server
def replicas(server: Server, limit: Limit = 100) -> None:
    """List the server processes that a change waits for, and how far each has come.

    LEASE: good; late, when a renewal is missing; ended, when it answers no check any more. LAG counts the changes that it has
    not reported. One that died without a word stays until a change has waited for it once, for its hold.
    """
    request = system_admin_pb2.ListReplicasRequest()
    answer = server.call_paged(server.system.ListReplicas, request, "replicas", limit)
    rows = [
        (
            found.replica_id,
            output.shown(found.address),
            _lease(found),
            _renewed(found),
            found.applied_revision,
            str(found.lag),
            str(found.watchers),
            wording.time(found, "started_time"),
        )
        for found in answer.replicas
    ]
    shown = output.table(COLUMNS, rows)
    output.show(answer, f"The log ends at {answer.revision}", "", shown, as_json=server.as_json)


def _lease(found: system_admin_pb2.Replica) -> "Text":
    """What can be said of a replica's lease from outside; nothing, if the server does not tell how long ago it renewed."""
    if not found.HasField("since_renewal"):
        return output.styled("", "")
    since_ns, hold_ns = found.since_renewal.ToNanoseconds(), found.hold.ToNanoseconds()
    if since_ns >= length_ns(hold_ns // 1_000_000):
        return output.styled("ended", "red")
    return output.styled("late", "yellow") if since_ns > LATE * hold_ns else output.styled("good", "green")


def _renewed(found: system_admin_pb2.Replica) -> str:
    """How long ago, beside what a change waits for this replica at the most."""
    hold = wording.span(found.hold)
    if not found.HasField("since_renewal"):
        return f"{wording.time(found, 'renewed_time')} (hold {hold})"
    return f"{found.since_renewal.ToNanoseconds() / 1e9:.1f} s ago of {hold}"
