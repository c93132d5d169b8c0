"""The frozen records that the server's layers hand to each other (design sections 1, 5 and 6).

No I/O, no protobuf, no SQL. `storage` makes them from rows, `service` decides with them, `api/convert.py` turns them into
messages. A secret is never in one: it travels as `doorward.core.secret.Secret`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from doorward.core.matrix import AccountState, Grant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from doorward.core.revision import Revision

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

__all__ = [
    "Account",
    "AccountState",
    "AuditEvent",
    "Caller",
    "CallerKind",
    "Change",
    "Grant",
    "Json",
    "Operator",
    "OperatorRole",
    "Page",
    "Project",
    "Propagation",
    "Refusal",
    "ReplicaRow",
    "StoredSecret",
    "Token",
    "TokenFilter",
    "TokenState",
]


class TokenState(enum.IntEnum):
    """What a token's record says of it; the numbers are the contract's."""

    ACTIVE = 1
    DISABLED = 2
    EXPIRED = 3
    REVOKED = 4


class OperatorRole(enum.IntEnum):
    """What an operator may do (design section 5); the numbers are the contract's."""

    ADMIN = 1
    AUDITOR = 2
    CALLER = 3


class CallerKind(enum.Enum):
    """The two kinds of credentials."""

    OPERATOR = "operator"
    TOKEN = "token"  # noqa: S105 - a kind, not a secret


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: built in `service/callers.py` alone, from a credential that was proved."""

    kind: CallerKind
    subject_id: str
    role: OperatorRole | None = None
    account_id: str | None = None
    # Of a token: which of its secrets was presented, where the database was asked.
    secret_version: int | None = None

    @property
    def actor(self) -> str:
        """The caller as the audit names it: `operator:<id>` or `token:<id>`."""
        return f"{self.kind.value}:{self.subject_id}"


@dataclass(frozen=True, slots=True)
class Account:
    """A customer."""

    account_id: str
    display_name: str
    plan: str
    state: AccountState
    create_time: datetime
    update_time: datetime
    revision: int
    live_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Project:
    """Belongs to one account for its whole life."""

    project_id: str
    account_id: str
    display_name: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Token:
    """A token's record, without anything that proves it. `ordinal` counts its account's tokens, 0 until it is written."""

    token_id: str
    account_id: str
    display_name: str
    description: str
    labels: Mapping[str, str]
    grants: tuple[Grant, ...]
    allow_self_rotation: bool
    disabled: bool
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None
    revoke_reason: str
    created_by: str
    ordinal: int
    revision: int
    last_used_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Which tokens of an account: those that match everything that is set. What is empty or None narrows nothing.

    `permission_set` is a name, no alias. `unused_since` and `expires_before` leave out what is revoked, as does
    `live_only`. `obtained_by`: of which this token ever received a secret; `include_descendants`: or those, and so on.
    """

    state: TokenState | None = None
    permission_set: str = ""
    project_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_by: str = ""
    unused_since: datetime | None = None
    expires_before: datetime | None = None
    display_name_prefix: str = ""
    live_only: bool = False
    obtained_by: str = ""
    include_descendants: bool = False


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What the database keeps of a secret: a bcrypt hash, and a digest under the pepper `pepper_id`."""

    version: int
    bcrypt_hash: str = field(repr=False)
    digest: bytes | None = field(repr=False)
    pepper_id: str | None
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Operator:
    """Who runs Doorward, or a service that asks it."""

    operator_id: str
    role: OperatorRole
    display_name: str
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a mutation touches: typed subjects (`token:<id>`, `account:<id>`, `project:<id>`, `operator:<id>`, `catalog:`)."""

    kind: str
    account_id: str | None
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what to what, written in the mutation's own transaction. `before` and `after` hold no secret.

    `tokens`: the ids of those that it is about besides its subject; the door fills that in from the change.
    """

    actor: str
    action: str
    subject: str
    account_id: str | None
    before: Mapping[str, Json] | None = None
    after: Mapping[str, Json] | None = None
    on_behalf_of: str = ""
    peer: str = ""
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was not done, and why: outside the chain. `reason` is an ErrorReason's name; ids are empty or None if unknown.

    `suppressed`: how many like it were left out before it by the rate limit.
    """

    actor: str
    action: str
    subject: str
    account_id: str | None
    reason: str
    peer: str
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class Propagation:
    """How the barrier ended (design section 7): who confirmed, whose lease ran out, and how long it took."""

    revision: Revision
    replicas_confirmed: int
    replicas_expired: int
    watchers_confirmed: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """A row of `replicas`. `renewed_time`, `watchers` and `address` are for display; no decision reads them."""

    replica_id: str
    epoch: int
    hold_ms: int
    applied_revision: int
    renewals: int
    watchers: int
    renewed_time: datetime
    started_time: datetime
    address: str


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows of a list: at most `size`, beginning behind the key `after` (None: at the start)."""

    size: int
    after: tuple[str, ...] | None = None
