"""`doorward audit replay`: does again, after a restore, what `doorward audit export --revocations` has written down.

Design section 7, Restore.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from google.protobuf import json_format
from google.protobuf.message import Message

from doorward.v1 import account_admin_pb2, system_admin_pb2, token_admin_pb2
from doorward_server import telemetry
from doorward_server.cli import output
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.failure import FAILED, fail
from doorward_server.cli.rpc_errors import CallFailure

__all__ = ["add_to"]

# Nothing else is ever called, whatever the file says.
REQUESTS: Final[dict[str, type[Message]]] = {
    "doorward.v1.TokenAdmin/RevokeToken": token_admin_pb2.RevokeTokenRequest,
    "doorward.v1.TokenAdmin/DisableToken": token_admin_pb2.DisableTokenRequest,
    "doorward.v1.AccountAdmin/SuspendAccount": account_admin_pb2.SuspendAccountRequest,
    "doorward.v1.AccountAdmin/DeleteAccount": account_admin_pb2.DeleteAccountRequest,
    "doorward.v1.AccountAdmin/DeleteProject": account_admin_pb2.DeleteProjectRequest,
    "doorward.v1.SystemAdmin/RevokeOperator": system_admin_pb2.RevokeOperatorRequest,
}
# It is so already, or what was made after the backup is unknown: what was to be taken away cannot be used.
NOTHING_TO_DO: Final = frozenset({"NOT_FOUND", "FAILED_PRECONDITION"})


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("replay", short_help="Do again what export --revocations wrote down.")(replay)


@calls_server
def replay(
    server: Server,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What export --revocations wrote; - is standard input.")
    ] = Path("-"),
) -> None:
    """Take away again what a database that was restored from a backup gives anew, call by call.

    Each call waits until it is true everywhere. A repeat does no harm; what the backup does not know is skipped. Lines that
    no call can repeat are printed at the end. Exit code 2, if a call failed: run it again.
    """
    counts: Counter[str] = Counter()
    by_hand: list[str] = []
    for number, line in _lines(file):
        if "by_hand" in line:
            by_hand.append(f"{line.get('subject')} ({line.get('action')}): {line['by_hand']}")
        for rpc, request in _calls(number, line):
            counts[_outcome(server, rpc, request)] += 1
    _tell(server, counts, by_hand)
    if counts["failed"]:
        raise typer.Exit(FAILED)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: cannot be read ({type(error).__name__}); name what audit export --revocations wrote")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            fail(f"line {number} of {file}: is no line of audit export --revocations; nothing behind it was done")
        yield number, parsed


def _calls(number: int, line: dict[str, Any]) -> list[tuple[str, Message]]:
    """What a line says to call."""
    found = []
    for call in line.get("replay", ()):
        try:
            request = REQUESTS[call["rpc"]]()
            json_format.ParseDict(call["request"], request)
        except (KeyError, TypeError, json_format.ParseError):
            fail(f"line {number}: says to call what is never replayed; nothing behind it was done")
        found.append((call["rpc"], request))
    return found


def _outcome(server: Server, rpc: str, request: Message) -> str:
    service, _, method = rpc.rpartition("/")
    stubs: dict[str, Any] = {
        "doorward.v1.TokenAdmin": server.tokens,
        "doorward.v1.AccountAdmin": server.accounts,
        "doorward.v1.SystemAdmin": server.system,
    }
    answer = server.attempt(getattr(stubs[service], method), request)
    if not isinstance(answer, CallFailure):
        return "done"
    if answer.code in NOTHING_TO_DO:
        return "skipped"
    asked = json_format.MessageToDict(request, preserving_proto_field_name=True)
    output.note(telemetry.redact(f"{method} {asked}: {answer.as_text()}"))
    return "failed"


def _tell(server: Server, counts: Counter[str], by_hand: list[str]) -> None:
    if server.as_json:
        told = {name: counts[name] for name in ("done", "skipped", "failed")}
        output.write(json.dumps({**told, "by_hand": by_hand}, indent=2) + "\n")
        return
    output.say(f"Done: {counts['done']}. Nothing to do: {counts['skipped']}. Failed: {counts['failed']}.")
    if by_hand:
        output.say("To see to by hand:", *(f"  {output.shown(line)}" for line in by_hand))
