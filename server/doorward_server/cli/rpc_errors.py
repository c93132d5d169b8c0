"""What a failed call said, in words: code, reason, every bad field, and what to do (design section 3, Errors).

From the client's exceptions. `connection.py` calls it for every call that failed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from doorward.errors import DoorwardError

__all__ = ["CallFailure", "failure_from"]

# By reason; the braces are keys of the error's metadata.
ADVICE: Final[dict[str, str]] = {
    "CREDENTIAL_MISSING": "Name a file that holds a credential with --token-file, or set DOORWARD_TOKEN.",
    "CREDENTIAL_MALFORMED": "Name a file that holds a whole credential with --token-file.",
    "CREDENTIAL_UNRECOGNIZED": (
        "The credential belongs to no operator of this deployment, or was revoked. Is this the right server, and the "
        "right --data-dir or --token-file?"
    ),
    "CALLER_NOT_PERMITTED": "Use a credential whose role may do this, with --token-file.",
    "ACCOUNT_NOT_FOUND": "See the ids with: doorward account list",
    "TOKEN_NOT_FOUND": "See the ids with: doorward token list --account ACCOUNT_ID",
    "PERMISSION_SET_NOT_IN_PLAN": "See what the plan covers with: doorward token permission-sets --account {account_id}",
    "ETAG_MISMATCH": "Read it again, and repeat if that is still what you want.",
    "CHANGED_CONCURRENTLY": "Nothing was done. Repeat the command.",
    "TOO_MANY_LIVE_TOKENS": "Revoke tokens that nobody needs, or raise --max-live-tokens of the server.",
    "HASHING_BUSY": "Nothing was done. Repeat the command in a moment.",
    "TOO_MANY_REQUESTS": "Nothing was done. Repeat the command in a moment.",
    "NO_LEASE": "Ask again in a moment, or another replica with --address; the server's log says why it has no lease.",
    "DATABASE_UNAVAILABLE": "Nothing was done. Repeat the command when the server's database is back.",
    "COMMIT_UNKNOWN": "The change may or may not have happened: look first, then repeat the command if it has not.",
    "PROPAGATION_UNKNOWN": "The change stands. Wait until it is true everywhere with: doorward await-propagation {revision}",
    "PROPAGATION_NOT_AWAITED": "The change stands. Go on waiting with: doorward await-propagation {revision}",
    "REVISION_NOT_REACHED": "Ask again with a longer --timeout.",
    "SHUTTING_DOWN": "Nothing was done. Repeat the command in a moment, or at another replica with --address.",
    "DEADLINE_TOO_SHORT": "Nothing was done. Repeat the command with a longer --timeout.",
    "COMMIT_NOT_AWAITED": "The change may still happen: look first, then repeat the command with a longer --timeout if not.",
    "NOT_IMPLEMENTED": "This version of the server does not offer it yet.",
    "METHOD_UNKNOWN": "Use a doorward command of the server's own version.",
    "INTERNAL": "A change may or may not have happened: look first. Report it with the request id {request_id}.",
}
# Of statuses that no server of ours made: by code.
ADVICE_WITHOUT_REASON: Final[dict[str, str]] = {
    "UNAVAILABLE": (
        "Nobody answers at {address}. Start the server with: doorward serve; or say where it is with --address or "
        "DOORWARD_ADDRESS."
    ),
    "DEADLINE_EXCEEDED": (
        "There was no answer within --timeout. A change may or may not have happened: look first, then repeat the command "
        "with a longer one."
    ),
    "UNIMPLEMENTED": "What answers at {address} is no Doorward server, or one of another version.",
}


# With these nobody can tell whether a secret was made that its caller has not seen.
_MAYBE_DONE: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED", "UNKNOWN"})


class _Known(dict[str, str]):
    """Metadata for a sentence; what is missing stays a placeholder."""

    def __missing__(self, key: str) -> str:
        return key.upper()


@dataclass(frozen=True, slots=True)
class CallFailure:
    """A failed call: the code by name, the message, and of our own statuses reason, metadata and every bad field.

    `violations`: field, description and reason of each. `request_id`: what a repeat is known by, if the request had one.
    """

    code: str
    message: str
    address: str
    reason: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    violations: tuple[tuple[str, str, str], ...] = ()
    request_id: str = ""

    @property
    def advice(self) -> str:
        """What to do; empty where the message says it all."""
        known = _Known(self.metadata, address=self.address)
        template = ADVICE.get(self.reason, "") if self.reason else ADVICE_WITHOUT_REASON.get(self.code, "")
        return template.format_map(known)

    def as_text(self) -> str:
        """For people: several lines."""
        reason = f" ({self.reason})" if self.reason else ""
        # With bad fields the message is the first of them again.
        summary = "these fields are wrong:" if self.violations else self.message or "no more is known"
        lines = [f"{self.code}{reason}: {summary}"]
        for field, description, why in self.violations:
            lines.append(f"  {field}: {description}{f' ({why})' if why else ''}")
        if self.advice:
            lines.append(self.advice)
        if self.request_id and self.code in _MAYBE_DONE:
            lines.append(
                f"Whether it was done or not: repeat the command within 10 minutes with --request-id {self.request_id}, and "
                "it is done once and you get the secret."
            )
        return "\n".join(lines)

    def as_json(self) -> str:
        """For programs: one JSON object."""
        fields = ("field", "description", "reason")
        error: dict[str, object] = {
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
            "metadata": dict(self.metadata),
            "violations": [dict(zip(fields, violation, strict=True)) for violation in self.violations],
        }
        if self.request_id:
            error["request_id"] = self.request_id
        return json.dumps({"error": error}, indent=2)


def failure_from(error: DoorwardError, address: str, request_id: str = "") -> CallFailure:
    """What a failed call says. `request_id`: the one that its request had."""
    return CallFailure(
        error.code.name,
        error.status.message,
        address,
        error.reason,
        tuple(sorted(error.metadata.items())),
        tuple((bad.field, bad.description, bad.reason) for bad in error.violations),
        request_id,
    )
