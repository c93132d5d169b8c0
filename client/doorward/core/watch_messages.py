"""What a watcher and its replica tell each other, as plain values with the names of the contract's `Watch`.

The shells turn protobuf into these and back; the contract's comments say what each one means. `*_ns` are spans in
nanoseconds, `*_us` the database's time in microseconds since the Unix epoch, positions the texts of revisions. Only the
text of a secret is kept out of sight: it travels as a `Secret` (design section 7, "Watchers").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from doorward.core.entries import AccountEntry, GrantEntry
from doorward.core.secret import Secret


class KeyKind(StrEnum):
    """What a key is the id of."""

    TOKEN = "token"  # noqa: S105 a kind, not a secret
    ACCOUNT = "account"
    PROJECT = "project"


class WatchKey(NamedTuple):
    """What a watcher can hold, and be told of when it changes. A token's id also stands for unrecognized texts with it."""

    kind: KeyKind
    id: str


# ---- from the watcher


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens the session, with nothing kept of a former one."""

    agent: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for a sub-lease; the clock was read before."""

    ask: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Every message up to this position has been taken and applied."""

    position: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Asks for the token of a secret."""

    id: int
    secret: Secret


@dataclass(frozen=True, slots=True)
class ResolveProject:
    """Asks for the account of a project."""

    id: int
    project_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """These keys are not held any more, as of the message with this sequence: 1 to 1,000 of them."""

    keys: tuple[WatchKey, ...]
    sequence: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last message: everything has been given up."""

    session_id: str


ToReplica: TypeAlias = Hello | Ask | Ack | Resolve | ResolveProject | Forget | Goodbye

# ---- from the replica


@dataclass(frozen=True, slots=True)
class Start:
    """The session is open."""

    session_id: str
    hold_ns: int
    ask_interval_ns: int
    ack_within_ns: int
    max_held_keys: int


@dataclass(frozen=True, slots=True)
class TokenSnapshot:
    """The token of a recognized secret, with its account. `secrets`: version and the end of its overlap, of each live one."""

    id: int
    token_id: str
    account: AccountEntry
    secret_version: int
    secrets: tuple[tuple[int, int | None], ...]
    revoked: bool
    disabled: bool
    expire_us: int | None
    grants: tuple[GrantEntry, ...]


@dataclass(frozen=True, slots=True)
class Unrecognized:
    """The secret was not recognized. `token_id`: the id in it, empty if it was not well formed."""

    id: int
    token_id: str


@dataclass(frozen=True, slots=True)
class ProjectSnapshot:
    """The project's account, None if there is no such project."""

    id: int
    project_id: str
    account_id: str | None


@dataclass(frozen=True, slots=True)
class Evict:
    """What has changed and is to be dropped."""

    keys: tuple[WatchKey, ...] = ()
    catalog: bool = False
    everything: bool = False


@dataclass(frozen=True, slots=True)
class CatalogSent:
    """The catalog: actions by resource, (read, write) by permission set, permission sets by plan."""

    version: int
    label: str
    schema: int
    account_resources: Mapping[str, Sequence[str]]
    project_resources: Mapping[str, Sequence[str]]
    permission_sets: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    plans: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """A sub-lease of this length, from the reading before this ask on; `latest_us` is for expiry."""

    ask: int
    length_ns: int
    latest_us: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The watcher is to end the session."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What was asked for could not be found out; nothing may be remembered of it."""

    id: int


Body: TypeAlias = (
    Start | TokenSnapshot | Unrecognized | ProjectSnapshot | Evict | CatalogSent | LeaseGrant | Reset | Failure
)


@dataclass(frozen=True, slots=True)
class FromReplica:
    """One message of the stream: its number in the session, and the position at which it was queued."""

    sequence: int
    position: str
    body: Body
