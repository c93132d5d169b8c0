"""What is written in an option, as the value that goes into a request: grants, durations, times, labels.

Parsers for typer: each raises `typer.BadParameter`, so that a mistake is told before anything is sent, with the option
named and what would be right. What only the server can judge (names, limits) is left to it. Design section 9.
"""

import re
import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final, NamedTuple

import typer
from google.protobuf import duration_pb2, timestamp_pb2

from doorward.v1 import types_pb2
from doorward_server.cli.failure import quoted

__all__ = [
    "Label",
    "Limit",
    "OfAccount",
    "RepeatedId",
    "ValidateOnly",
    "labels_of",
    "parse_duration",
    "parse_grant",
    "parse_label",
    "parse_time",
    "request_id_of",
]


class Label(NamedTuple):
    """One label, as it is written in an option."""

    key: str
    value: str


OfAccount = Annotated[str, typer.Option("--account", metavar="ACCOUNT_ID", help="The account, for example acme.")]
Limit = Annotated[int, typer.Option(metavar="NUMBER", min=0, help="List at most this many; 0: all of them.")]
ValidateOnly = Annotated[
    bool, typer.Option("--validate-only", help="Only check that it could be done; nothing is written.")
]
RepeatedId = Annotated[
    str,
    typer.Option(
        "--request-id",
        metavar="UUID",
        help="Of a command whose answer was lost: repeated with the same id within 10 minutes it gets the same secret. "
        "Without it the command takes a random one.",
    ),
]

_SECONDS_OF: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(?:[0-9]{1,12}[smhdw])+")
_DURATION_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_LONGEST_S: Final = 315_576_000_000  # what a protobuf Duration can say: 10,000 years


def parse_grant(text: str) -> types_pb2.Grant:
    """`job_admin:*` is the set on all projects, `metadata_only:proj_a,proj_b` on these two."""
    permission_set, separator, scope = text.partition(":")
    if not permission_set or not separator or not scope:
        raise typer.BadParameter(
            f"{quoted(text)} is no grant; write SET:* for all projects or SET:PROJECT,PROJECT for some, "
            "for example 'job_admin:*' or metadata_only:proj_a,proj_b"
        )
    if scope == "*":
        return types_pb2.Grant(permission_set=permission_set, all_projects=True)
    project_ids = scope.split(",")
    if "*" in project_ids:
        raise typer.BadParameter(f"{quoted(text)} names projects and all of them; write SET:* or SET:PROJECT,PROJECT")
    if "" in project_ids:
        raise typer.BadParameter(f"{quoted(text)} has an empty project id; write SET:PROJECT,PROJECT")
    return types_pb2.Grant(permission_set=permission_set, project_ids=project_ids)


def parse_duration(text: str) -> duration_pb2.Duration:
    """`90d`, `12h`, `30m`, `1d12h`: weeks, days (24 hours), hours, minutes and seconds."""
    if not _DURATION.fullmatch(text):
        raise typer.BadParameter(
            f"{quoted(text)} is no duration; write a number with s, m, h, d or w, for example 90d, 12h, 30m or 1d12h"
        )
    seconds = sum(int(number) * _SECONDS_OF[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds > _LONGEST_S:
        raise typer.BadParameter(f"{quoted(text)} is longer than 10,000 years; leave it out for a token without end")
    return duration_pb2.Duration(seconds=seconds)


def parse_time(text: str) -> timestamp_pb2.Timestamp:
    """A time of RFC 3339, with its zone: `2027-01-01T00:00:00Z`."""
    problem = f"{quoted(text)} is no time; write it as RFC 3339 with its zone, for example 2027-01-01T00:00:00Z"
    moment = timestamp_pb2.Timestamp()
    try:
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is not None:
            moment.FromDatetime(parsed)
    except (ValueError, OverflowError):
        raise typer.BadParameter(problem) from None
    if parsed.tzinfo is None:
        raise typer.BadParameter(problem)
    return moment


def parse_label(text: str) -> Label:
    """`team=data`; the value may be empty and may hold further `=`."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise typer.BadParameter(f"{quoted(text)} is no label; write KEY=VALUE, for example team=data")
    return Label(key, value)


def labels_of(labels: Iterable[Label]) -> dict[str, str]:
    """All labels of one token.

    Raises:
        typer.BadParameter: a key is given twice.
    """
    found: dict[str, str] = {}
    for key, value in labels:
        if key in found:
            raise typer.BadParameter(
                f"the label {quoted(key)} is given twice; a token has each key once", param_hint="--label"
            )
        found[key] = value
    return found


def request_id_of(given: str, *, validate_only: bool) -> str:
    """The id that a command's request goes by: the one that was given, else a new one; none where nothing is done."""
    return given or ("" if validate_only else str(uuid.uuid4()))
