"""What is asked and what is answered, in both dialects: `Ask`, and `Decision`, which is true only if it allows.

Plain values; both dialects export them. Design section 8; the reasons in their order, design section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from doorward.errors import DoorwardError

__all__ = ["Ask", "DecidedBy", "Decision", "DenyReason", "placed", "require_one_resource"]


class DenyReason(StrEnum):
    """Why not: the first obstacle, by the contract's name without its prefix."""

    TOKEN_UNRECOGNIZED = "TOKEN_UNRECOGNIZED"  # noqa: S105 - a reason's name
    TOKEN_REVOKED = "TOKEN_REVOKED"  # noqa: S105
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105
    TOKEN_DISABLED = "TOKEN_DISABLED"  # noqa: S105
    ACCOUNT_SUSPENDED = "ACCOUNT_SUSPENDED"
    RESOURCE_NOT_IN_ACCOUNT = "RESOURCE_NOT_IN_ACCOUNT"
    GRANT_SUSPENDED_BY_PLAN = "GRANT_SUSPENDED_BY_PLAN"
    ALL_PROJECTS_REQUIRED = "ALL_PROJECTS_REQUIRED"
    PROJECT_NOT_GRANTED = "PROJECT_NOT_GRANTED"
    PERMISSION_NOT_GRANTED = "PERMISSION_NOT_GRANTED"
    # Of a newer server: this version of the client does not know the reason.
    UNKNOWN = "UNKNOWN"


class DecidedBy(StrEnum):
    """Who decided a check."""

    SERVER = "SERVER"
    # This process, from memory, while it held a sub-lease: a `LocalAuthorizer`.
    HERE = "HERE"


class Decision(NamedTuple):
    """The answer to one check. `if decision:` is `if decision.allowed:`, and nothing else makes it true.

    `reason`: None only if it is allowed, or beside an `error`. `token_id` and `account_id`: empty unless the secret was
    recognized. `revision`: the position in the change log that the decision contains, for `at_least_as_fresh`. `error`:
    only of `check_many`, why this one could not be decided; `check` raises it. `decided_by`: the promise is the same.
    """

    allowed: bool
    reason: DenyReason | None
    token_id: str
    account_id: str
    revision: str
    error: DoorwardError | None = None
    decided_by: DecidedBy = DecidedBy.SERVER

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True)
class Ask:
    """One check of `check_many`: a permission, and on what. Exactly one of `project_id` and `account_id`.

    `secret`: whose, where it is not the call's. Raises ValueError unless one resource is given.
    """

    permission: str
    project_id: str | None = None
    account_id: str | None = None
    secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_one_resource(self.project_id, self.account_id)


class _Placed(Protocol):
    project_id: str
    account_id: str


P = TypeVar("P", bound=_Placed)

_WHICH: Final = (
    "exactly one of project_id (a project-level permission) and account_id (an account-level one) must be given"
)


def require_one_resource(project_id: str | None, account_id: str | None) -> None:
    """Refuses what protobuf would let pass: of two resources it keeps the later one and forgets the other.

    Raises:
        ValueError: both are given, or none.
    """
    if (project_id is None) is (account_id is None):
        raise ValueError(_WHICH)


def placed(request: P, project_id: str | None, account_id: str | None) -> P:
    """The request, which is about this resource from now on.

    Raises:
        ValueError: not exactly one is given.
    """
    require_one_resource(project_id, account_id)
    if project_id is not None:
        request.project_id = project_id
    if account_id is not None:
        request.account_id = account_id
    return request
