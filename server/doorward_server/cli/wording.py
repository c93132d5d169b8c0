"""The contract's values in words: states, reasons, grants, times, how far a change has reached.

Short names leave out the enum's prefix, as the design, errors and logs do. Called by the commands that print for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import authorizer_pb2, types_pb2
from doorward_server.cli.output import shown, styled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.text import Text

__all__ = [
    "account_state",
    "denial",
    "grant_lines",
    "grant_part",
    "grants_in_short",
    "labels",
    "operator_role",
    "propagation",
    "reached",
    "span",
    "time",
    "token_state",
]

# In a table a grant names this many projects; `token show` names them all.
_PROJECTS_IN_SHORT: Final = 3
_STYLES: Final = {"ACTIVE": "green", "REVOKED": "red", "DELETED": "red", "EXPIRED": "yellow", "DISABLED": "yellow",
                  "SUSPENDED": "yellow"}  # fmt: skip

_DENIALS: Final = {
    "TOKEN_UNRECOGNIZED": "the secret is malformed, mistyped, unknown, wrong, or was rotated out",
    "TOKEN_REVOKED": "the token was revoked, or its account deleted",
    "TOKEN_EXPIRED": "the token's expiry has passed",
    "TOKEN_DISABLED": "the token is disabled",
    "ACCOUNT_SUSPENDED": "the token's account is suspended",
    "RESOURCE_NOT_IN_ACCOUNT": "the account or project is unknown, or another account's",
    "GRANT_SUSPENDED_BY_PLAN": "a grant would allow it, but the account's plan no longer covers its permission set",
    "ALL_PROJECTS_REQUIRED": "the permission is account-level and needs a grant on all projects",
    "PROJECT_NOT_GRANTED": "the token holds the permission on other projects of the account, not on this one",
    "PERMISSION_NOT_GRANTED": "no active grant of the token holds the permission",
}

_PARTS: Final = {
    "ALLOWS": "gives the permission here",
    "SUSPENDED": "would give it, but the account's plan does not cover its set",
    "NEEDS_ALL_PROJECTS": "its set holds the permission, which only a grant on all projects gives",
    "OTHER_PROJECTS": "its set holds the permission, but it is on other projects",
    "NOT_HELD": "its set does not hold the permission",
    "RESOURCE_NOT_IN_ACCOUNT": "no grant counts: the account or project is not the token's account's",
}


def _name(enum: EnumDescriptor, number: int, prefix: str) -> str:
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix)  # a newer server's contract may have more


def token_state(state: int) -> Text:
    """ACTIVE, DISABLED, EXPIRED or REVOKED."""
    name = _name(types_pb2.TokenState.DESCRIPTOR, state, "TOKEN_STATE_")
    return styled(name, _STYLES.get(name, ""))


def account_state(state: int) -> Text:
    """ACTIVE, SUSPENDED or DELETED."""
    name = _name(types_pb2.AccountState.DESCRIPTOR, state, "ACCOUNT_STATE_")
    return styled(name, _STYLES.get(name, ""))


def operator_role(role: int) -> str:
    """admin, auditor or caller, as `--role` takes it."""
    return _name(types_pb2.OperatorRole.DESCRIPTOR, role, "OPERATOR_ROLE_").lower()


def denial(reason: int) -> str:
    """A DenyReason and what it means."""
    name = _name(types_pb2.DenyReason.DESCRIPTOR, reason, "DENY_REASON_")
    return f"{name}: {_DENIALS[name]}" if name in _DENIALS else name


def grant_part(part: int) -> str:
    """A GrantPart and what it means."""
    name = _name(authorizer_pb2.GrantPart.DESCRIPTOR, part, "GRANT_PART_")
    return f"{name}: {_PARTS[name]}" if name in _PARTS else name


def time(message: Message, field: str, absent: str = "") -> str:
    """A time field: UTC, to the second, in a form that options take too; `absent` where it is not set."""
    if not message.HasField(field):
        return absent
    moment: Timestamp = getattr(message, field)
    return f"{moment.ToDatetime():%Y-%m-%d %H:%M:%S}Z"


def span(duration: Duration) -> str:
    """Milliseconds below a second, else seconds."""
    milliseconds = duration.ToNanoseconds() / 1e6
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:g} s"


def grant_lines(grants: Iterable[types_pb2.Grant]) -> str:
    """Every grant with every project, as `--grant` takes it; suspended ones marked."""
    return "\n".join(_grant(grant, None) for grant in grants)


def grants_in_short(grants: Iterable[types_pb2.Grant]) -> str:
    """All grants in one cell; of many projects only their number."""
    return "  ".join(_grant(grant, _PROJECTS_IN_SHORT) for grant in grants)


def _grant(grant: types_pb2.Grant, most: int | None) -> str:
    if grant.all_projects:
        scope = "*"
    elif most is not None and len(grant.project_ids) > most:
        scope = f"({len(grant.project_ids)} projects)"
    else:
        scope = ",".join(grant.project_ids)
    return shown(f"{grant.permission_set}:{scope}") + (" (suspended)" if grant.suspended else "")


def labels(found: Iterable[tuple[str, str]]) -> str:
    """A line for each label, as `--label` takes it."""
    return "\n".join(shown(f"{key}={value}") for key, value in sorted(found))


def reached(answer: Message, propagation_of_it: types_pb2.Propagation) -> str:
    """How far the change of this answer has reached; nothing was changed where it does not say."""
    if not answer.HasField("propagation"):
        return "Only checked: it could be done, and nothing was written."
    return propagation(propagation_of_it)


def propagation(confirmed: types_pb2.Propagation) -> str:
    """How far a change has reached, in a sentence."""
    parts = [f"confirmed by {_count(confirmed.replicas_confirmed, 'replica')}"]
    if confirmed.watchers_confirmed:
        parts.append(_count(confirmed.watchers_confirmed, "watcher"))
    if confirmed.replicas_expired:
        parts.append(f"{_count(confirmed.replicas_expired, 'replica')} silent until its lease had ended")
    return f"True everywhere: revision {confirmed.revision}, {', '.join(parts)}, after {span(confirmed.elapsed)}."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
