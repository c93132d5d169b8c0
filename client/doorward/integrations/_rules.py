"""What a guard is told: which permission a method needs, and where in a request the id stands that it is needed on.

A rule is `Needs` or `OPEN`; a method without one is refused. Where an id stands is said in the words of the transport: a
field of the message or a key of the metadata (`_rpc.py`), a parameter of the path or a header (`_http.py`). Design section 8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from doorward.integrations._refusals import NotAdmitted, unclear

__all__ = ["OPEN", "Needs", "Open", "Rule", "id_in"]

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)

# As the catalog writes it, and the contract its ids.
_PERMISSION: Final = re.compile(r"[a-z][a-z0-9_]*:[a-z][a-z0-9_]*")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Open(Enum):
    """What needs no credential. Named in the table like everything else, so that nothing is open by being forgotten."""

    OPEN = "open"


OPEN: Final[Literal[Open.OPEN]] = Open.OPEN


@dataclass(frozen=True, slots=True)
class Needs(Generic[P_co]):
    """A permission, and where in the request the id stands of what it is needed on.

    Exactly one of `project_id`, for a project-level permission, and `account_id`, for an account-level one.

    Raises:
        ValueError: no permission, or not exactly one place.
    """

    permission: str
    project_id: P_co | None = None
    account_id: P_co | None = None

    def __post_init__(self) -> None:
        if _PERMISSION.fullmatch(self.permission) is None:
            raise ValueError(f"{self.permission!r} is no permission; write resource:action, for example jobs:write")
        if (self.project_id is None) is (self.account_id is None):
            raise ValueError(
                f"{self.permission}: say where the id stands, by exactly one of project_id (for a project-level "
                "permission) and account_id (for an account-level one)"
            )

    @property
    def id_name(self) -> str:
        """What the id is called: project_id or account_id."""
        return "account_id" if self.project_id is None else "project_id"

    @property
    def place(self) -> P_co:
        """Where the id stands."""
        place = self.account_id if self.project_id is None else self.project_id
        assert place is not None  # noqa: S101 - exactly one was given
        return place


Rule: TypeAlias = Needs[P] | Literal[Open.OPEN]


def id_in(values: tuple[object, ...], id_name: str) -> str:
    """The one id that a request names. Two are none, even if they are the same: a handler might read the other one.

    Raises:
        NotAdmitted: none, several, or one that can be no id, so that Doorward could not be asked.
    """
    if len(values) != 1 or not isinstance(values[0], str) or _ID.fullmatch(values[0]) is None:
        raise NotAdmitted(unclear(id_name))
    return values[0]
