"""Why a guard let a request not pass, as values: five kinds, a reason for programs, a sentence for people.

    UNAUTHENTICATED  401  the credential is good for nothing, wherever it is presented: another one is needed
    DENIED           403  the credential is good, but not for this
    UNCLEAR          400  nobody could say what it is about: no id, several, or none that can be one
    UNDECIDED        503  Doorward gave no answer; try again
    FAILED           500  the guard or its rule is at fault

`_http.py` and `_rpc.py` say them in their protocols. No sentence names anything that the caller did not send: nothing is told
about other accounts. Design sections 2 and 5; RFC 6750.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from doorward.decisions import DenyReason
from doorward.errors import Refused, Unanswered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from doorward.decisions import Decision
    from doorward.errors import DoorwardError

__all__ = [
    "FAILED",
    "NO_RULE",
    "PATH_UNCLEAR",
    "Kind",
    "NotAdmitted",
    "Refusal",
    "denied",
    "presented",
    "unclear",
    "undecided",
]


class Kind(Enum):
    """What sort of a no it is."""

    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    UNCLEAR = "unclear"
    UNDECIDED = "undecided"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no. `permission`: what was needed, where one was decided about. `retry_after_s`: only of UNDECIDED."""

    kind: Kind
    reason: str
    message: str
    permission: str = ""
    retry_after_s: float | None = None


class NotAdmitted(Exception):
    """Ends what a guard does for a request; the guard answers with the refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


# Where another token of the same account would help, and this one helps nowhere: 401. A disabled token is one of these,
# though it may be enabled again; a suspended account is not, for each of its tokens is refused alike.
_CREDENTIAL_IS_BAD: Final[Mapping[str, str]] = {
    DenyReason.TOKEN_UNRECOGNIZED: "The token is not recognized.",
    DenyReason.TOKEN_REVOKED: "The token was revoked.",
    DenyReason.TOKEN_EXPIRED: "The token has expired.",
    DenyReason.TOKEN_DISABLED: "The token is disabled.",
}
_DENIED: Final[Mapping[str, str]] = {
    DenyReason.ACCOUNT_SUSPENDED: "The token's account is suspended.",
    DenyReason.RESOURCE_NOT_IN_ACCOUNT: "The token's account has no such resource.",
    DenyReason.GRANT_SUSPENDED_BY_PLAN: "The account's plan does not cover the grant that would allow this.",
    DenyReason.ALL_PROJECTS_REQUIRED: "This takes a grant on all projects of the account.",
    DenyReason.PROJECT_NOT_GRANTED: "The token holds the permission on other projects only.",
    DenyReason.PERMISSION_NOT_GRANTED: "The token does not hold the permission.",
}
_PRESENTED: Final[Mapping[str, str]] = {
    "CREDENTIAL_MISSING": "Present a service account token, as authorization: Bearer <secret>.",
    "CREDENTIAL_REPEATED": "Present one token only, in one authorization header.",
    "CREDENTIAL_MALFORMED": "What was presented is no service account token.",
}

NO_RULE: Final = Refusal(Kind.DENIED, "NO_RULE", "No rule admits anybody here.")
PATH_UNCLEAR: Final = Refusal(Kind.UNCLEAR, "PATH_UNCLEAR", "The path can be read in more than one way.")
FAILED: Final = Refusal(Kind.FAILED, "GUARD_FAILED", "The request could not be checked.")

# An outage is seldom shorter, and a second's clients are no flood.
RETRY_AFTER_S: Final = 1.0
# What repeats cannot heal: somebody has to give the service another credential or another rule.
RETRY_AFTER_HELP_S: Final = 30.0


def presented(reason: str) -> Refusal:
    """Of what stands where a credential should."""
    return Refusal(Kind.UNAUTHENTICATED, reason, _PRESENTED[reason])


def unclear(id_name: str) -> Refusal:
    """Of a request that names no resource, or more than one."""
    return Refusal(
        Kind.UNCLEAR,
        "RESOURCE_UNCLEAR",
        f"The request must name exactly one {id_name}: 1 to 64 characters of A-Z, a-z, 0-9, _ and -.",
    )


def denied(decision: Decision, permission: str) -> Refusal:
    """Of a decision that does not allow it. A reason that this version does not know is a denial like any other."""
    reason = str(decision.reason or DenyReason.UNKNOWN)
    if reason in _CREDENTIAL_IS_BAD:
        return Refusal(Kind.UNAUTHENTICATED, reason, _CREDENTIAL_IS_BAD[reason])
    return Refusal(Kind.DENIED, reason, _DENIED.get(reason, "The token may not do this."), permission)


def undecided(error: DoorwardError) -> Refusal:
    """Of a check that was not answered, whatever the cause."""
    after_s = RETRY_AFTER_HELP_S if isinstance(error, Refused) else RETRY_AFTER_S
    if isinstance(error, Unanswered) and error.retry_after_s:
        after_s = error.retry_after_s
    return Refusal(Kind.UNDECIDED, "NOT_DECIDED", "Whether this is allowed cannot be decided now.", "", after_s)
