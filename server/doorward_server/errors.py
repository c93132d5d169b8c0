"""What the server refuses, and why: one exception for each status code, one reason each (design section 3, Errors).

Born here and in the layers that raise them, translated once in `api/errors.py`. `reason` is the name of a value of the
contract's `ErrorReason` without its prefix. Messages and metadata never hold a secret or a driver's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "Aborted",
    "AlreadyExists",
    "DeadlineExceeded",
    "Exhausted",
    "FailedPrecondition",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Refused",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "shutting_down",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field: where it stands (`grants[0].project_ids[2]`), what would be right, and why it is wrong."""

    field: str
    description: str
    reason: str


class Refused(Exception):
    """The request cannot be done. Subclasses name the status code.

    `violations` are for the caller's eyes, all of them at once; `metadata` has the keys that the contract documents for
    `reason`; `retry_after_s` (seconds) goes out as RetryInfo.
    """

    code: ClassVar[str]
    retry_after_s: float | None = None
    # For the record of refusals, never for the caller: who was proved to ask, and of which account that is; and the subject.
    asked_by: tuple[str, str | None] | None = None
    about: str = ""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: tuple[Violation, ...] = (),
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = violations
        self.metadata = metadata or {}


class InvalidArgument(Refused):
    """Wrong whatever the state of the system."""

    code = "INVALID_ARGUMENT"

    @classmethod
    def of(cls, violations: tuple[Violation, ...]) -> InvalidArgument:
        """All bad fields of one request; the message names the first."""
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        return cls("INVALID_FIELDS", f"{first.field}: {first.description}{more}", violations=violations)


class Unauthenticated(Refused):
    """No credential, or one that proves nobody."""

    code = "UNAUTHENTICATED"


class PermissionDenied(Refused):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"


class NotFound(Refused):
    """No such thing, or none that this caller may see."""

    code = "NOT_FOUND"


class AlreadyExists(Refused):
    """The id belongs to something else."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(Refused):
    """Right in itself, but not in the present state."""

    code = "FAILED_PRECONDITION"


class Aborted(Refused):
    """Something changed in between: read again and repeat."""

    code = "ABORTED"


class Exhausted(Refused):
    """A bound was reached."""

    code = "RESOURCE_EXHAUSTED"
    retry_after_s = 1.0


class DeadlineExceeded(Refused):
    """The caller's time ended first."""

    code = "DEADLINE_EXCEEDED"


class Unimplemented(Refused):
    """Not offered by this version, or not at all."""

    code = "UNIMPLEMENTED"


class Unavailable(Refused):
    """Cannot be decided or done now; the same call may succeed later."""

    code = "UNAVAILABLE"
    retry_after_s = 0.5


def shutting_down() -> Unavailable:
    """This server goes, and others stay."""
    return Unavailable("SHUTTING_DOWN", "this server is shutting down; another one will answer")
