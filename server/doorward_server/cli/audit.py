"""`doorward audit list | verify | export`: who did what, whether that is what was written, and what to do again.

`list` asks a server; `verify` and `export` read the database, since what they are for is a server's or a database's end.
Design sections 5 and 7.
"""

import json
import re
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from google.protobuf import json_format, timestamp_pb2

from doorward.core.revision import Revision, RevisionMalformed
from doorward.v1 import token_admin_pb2 as pb
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.failure import quoted
from doorward_server.cli.settings_options import takes_settings
from doorward_server.cli.values import Limit, parse_time
from doorward_server.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Who did what: list, verify, export, replay.")

BROKEN: Final = 1
# Neither command needs a pepper key, and who looks after a database need not have any.
_NO_PEPPER: Final = {"pepper_file": Path("pepper.keys")}
_NOTED: Final = re.compile(r"([1-9][0-9]{0,18}):([0-9a-f]{64})")
_LONGEST_CELL: Final = 60


@app.command("list", short_help="List audit events, newest first.")
@calls_server
def list_(
    server: Server,
    account_id: Annotated[
        str, typer.Option("--account", metavar="ACCOUNT_ID", help="Only of this account; a token must name its own.")
    ] = "",
    token_id: Annotated[str, typer.Option("--token", metavar="TOKEN_ID", help="Only about this token.")] = "",
    actor: Annotated[
        str,
        typer.Option(metavar="operator:ID|token:ID", help="Only what this one did; anonymous: what nobody known did."),
    ] = "",
    action: Annotated[str, typer.Option(metavar="RPC", help="Only this, for example RevokeToken.")] = "",
    since: Annotated[
        timestamp_pb2.Timestamp | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Only at or after it (RFC 3339): 2026-11-01T00:00:00Z."),
    ] = None,
    until: Annotated[
        timestamp_pb2.Timestamp | None, typer.Option(parser=parse_time, metavar="TIME", help="Only before it.")
    ] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="Refused changes and failed credentials instead of what was done.")
    ] = False,
    limit: Limit = 100,
) -> None:
    """List audit events that match every option, newest first: who did what to what, and when."""
    kind = pb.AUDIT_EVENT_KIND_REFUSAL if refused else pb.AUDIT_EVENT_KIND_CHANGE
    request = pb.ListAuditEventsRequest(
        account_id=account_id,
        token_id=token_id,
        actor=actor,
        action=action,
        start_time=since,
        end_time=until,
        kind=kind,
    )
    answer = server.call_paged(server.tokens.ListAuditEvents, request, "audit_events", limit)
    columns: tuple[str, ...] = ("TIME", "ACTOR", "ACTION", "SUBJECT", "ACCOUNT")
    columns += ("REASON", "FROM", "LEFT OUT") if refused else ("REVISION", "BEFORE", "AFTER")
    rows = [(*_common(event), *(_refusal(event) if refused else _change(event))) for event in answer.audit_events]
    nothing = "No refusal matches." if refused else "No event matches."
    output.show_list(answer, columns, rows, nothing, as_json=server.as_json)


@app.command("verify", short_help="See whether the audit is what was written.")
@takes_settings("data_dir", "database_url", "database_pooler", "accept_failover_loss", filled_in=_NO_PEPPER)
def verify(
    settings: Settings,
    noted: Annotated[
        str,
        typer.Option(
            metavar="EVENT:CHAIN",
            help="What an earlier verify said to note. Without it whoever can write every table, and writes the whole audit "
            "anew, is not found.",
        ),
    ] = "",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """See whether every audit event is still what was written, in its order, and none is missing or too many.

    Works on the database that --database-url names, else on the data directory's own PostgreSQL; servers may run on. Exit
    code 1: it is not; the first event that shows it is named.
    """
    from doorward_server.cli.offline import verify_audit  # noqa: PLC0415 - a client command need not load it
    from doorward_server.service.audit_chain import ChainBroken, Noted  # noqa: PLC0415 - nor this

    match = _NOTED.fullmatch(noted)
    if noted and match is None:
        raise typer.BadParameter(f"{quoted(noted)} is not what verify says to note", param_hint="--noted")
    found = verify_audit(settings, None if match is None else Noted(int(match[1]), bytes.fromhex(match[2])))
    if isinstance(found, ChainBroken):
        if json_:
            broken = {"verified": False, "events": found.verified, "event_id": found.event_id, "problem": str(found)}
            output.write(json.dumps(broken, indent=2) + "\n")
        else:
            output.note(f"The audit is not what was written: {found}. The {found.verified} events before are right.")
        raise typer.Exit(BROKEN)
    note = f"{found.last_event_id}:{found.chain.hex()}"
    since = None if found.since is None else found.since.astimezone(UTC).isoformat(timespec="seconds")
    if json_:
        told: dict[str, Any] = {"verified": True, "events": found.events, "dropped": found.dropped, "since": since,
                                "note": note, "noted_was_dropped": found.noted_was_dropped}  # fmt: skip
        output.write(json.dumps(told, indent=2) + "\n")
        return
    output.say(
        f"The audit is what was written: {found.events} events" + (f", since {since}." if since else "."),
        *([f"Retention dropped {found.dropped} before them."] if found.dropped else []),
        *(["The event that was noted is among these, and could not be compared."] if found.noted_was_dropped else []),
        f"Note this where nobody who can write to the database can change it: {note}",
    )


@app.command("export", short_help="Write the audit as lines of JSON, or what to do again after a restore.")
@takes_settings("data_dir", "database_url", "database_pooler", "accept_failover_loss", filled_in=_NO_PEPPER)
def export(
    settings: Settings,
    since: Annotated[
        str,
        typer.Option(
            metavar="REVISION|TIME",
            help="Only behind this revision (1.4711), or at or after this time (2026-11-01T00:00:00Z).",
        ),
    ] = "",
    revocations: Annotated[
        bool, typer.Option("--revocations", help="Only what took something away, with the calls that do it again.")
    ] = False,
) -> None:
    """Write the audit to standard output, oldest first, one event a line.

    With --revocations: what a database that was restored from a backup of that revision or time does not know, and what
    must be done again, for doorward audit replay. Works on the database that --database-url names, else on the data
    directory's own PostgreSQL.
    """
    from doorward_server.cli.offline import export_audit  # noqa: PLC0415 - a client command need not load it
    from doorward_server.service.audit_export import Since  # noqa: PLC0415 - nor this

    start = Since()
    if since:
        try:
            start = Since(revision=Revision.parse(since))
        except RevisionMalformed:
            start = Since(time=parse_time(since).ToDatetime(tzinfo=UTC))
    export_audit(settings, start, revocations=revocations, write=output.write)


def _common(event: pb.AuditEvent) -> tuple[str, ...]:
    actor = f"{event.actor} for {event.on_behalf_of}" if event.on_behalf_of else event.actor
    return (
        wording.time(event, "event_time"),
        output.shown(actor),
        output.shown(event.action),
        output.shown(event.subject),
        output.shown(event.account_id),
    )


def _change(event: pb.AuditEvent) -> tuple[str, ...]:
    sides = (
        json.dumps(json_format.MessageToDict(getattr(event, side)), sort_keys=True) if event.HasField(side) else ""
        for side in ("before", "after")
    )
    return (event.revision, *(_short(side) for side in sides))


def _refusal(event: pb.AuditEvent) -> tuple[str, ...]:
    left_out = str(event.suppressed) if event.suppressed else ""
    return output.shown(event.refusal_reason), output.shown(event.peer), left_out


def _short(text: str) -> str:
    """For a table; --json has all of it."""
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…"
