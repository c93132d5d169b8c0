"""What a replica says to a watcher, as values (contract, WatchResponse). `api/watch_encoding.py` makes messages of them.

A key that a watcher can hold is named as changes name their subjects: `token:<id>`, `account:<id>`, `project:<id>`, and
`catalog:` for the catalog, which every watcher holds once it was sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from doorward.core.entries import TOKEN_ACCOUNT_ID, TOKEN_GRANTS, TOKEN_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from doorward.core.catalog import Catalog
    from doorward.core.entries import AccountEntry, TokenEntry
    from doorward_server.errors import Refused

__all__ = [
    "CATALOG",
    "Body",
    "CatalogSent",
    "Evict",
    "Failure",
    "Grant",
    "ProjectSnapshot",
    "Reset",
    "Start",
    "Taken",
    "TokenSnapshot",
    "UnrecognizedSnapshot",
    "keys_of_token",
]

CATALOG: Final = "catalog:"
# The kinds of keys; a change of any other known kind touches nothing that a watcher holds.
KINDS: Final = frozenset({"token", "account", "project", "catalog"})
OTHER_KINDS: Final = frozenset({"operator"})


class Start(NamedTuple):
    """The session is open."""

    session_id: str
    max_held_keys: int


class TokenSnapshot(NamedTuple):
    """A token with its account. `secret_version`: which of its secrets was presented."""

    id: int
    token: TokenEntry
    account: AccountEntry
    secret_version: int

    def __repr__(self) -> str:
        """Without the digests that stand in the entry."""
        return f"TokenSnapshot(id={self.id}, token_id={self.token[TOKEN_ID]!r})"


class UnrecognizedSnapshot(NamedTuple):
    """A secret that was not recognized; `token_id` is the one in it, empty if it was not well formed."""

    id: int
    token_id: str


class ProjectSnapshot(NamedTuple):
    """A project's account; None: there is no such project."""

    id: int
    project_id: str
    account_id: str | None


class Evict(NamedTuple):
    """What has changed of what is held. `everything`: whatever is held."""

    keys: tuple[str, ...]
    is_catalog: bool
    is_everything: bool


class CatalogSent(NamedTuple):
    """The catalog in force."""

    catalog: Catalog


class Grant(NamedTuple):
    """A sub-lease of `length_ns` from the watcher's t0 of that ask on; `latest_us`: the latest time of the database's clock."""

    ask: int
    length_ns: int
    latest_us: int


class Reset(NamedTuple):
    """The session is to be ended by the watcher, and why."""

    cause: Refused


class Failure(NamedTuple):
    """What was asked for could not be found out."""

    id: int
    refused: Refused


Body: TypeAlias = (
    Start | TokenSnapshot | UnrecognizedSnapshot | ProjectSnapshot | Evict | CatalogSent | Grant | Reset | Failure
)


class Taken(NamedTuple):
    """One message for the wire: its number in the session, and the position at which it was queued."""

    sequence: int
    number: int
    body: Body


def keys_of_token(token: TokenEntry) -> Iterable[str]:
    """What is held with a token's snapshot: itself, its account, and the projects that its grants name."""
    yield f"token:{token[TOKEN_ID]}"
    yield f"account:{token[TOKEN_ACCOUNT_ID]}"
    for _, project_ids in token[TOKEN_GRANTS]:
        for project_id in project_ids or ():
            yield f"project:{project_id}"
