"""Nobody hands out more than they hold, nor for longer than they live (design section 5).

An `Authority` is what a caller holds at one moment: read under the locks of the transaction that it is for, never from a
cache. Operators hold everything. A service token acts in its own account, and whatever it issues, updates, enables or
rotates must be within its own *active* grants, its own expiry and its own `allow_self_rotation`, before and after;
suspended grants of the other token count in full, since a change of plan brings them back. Used by every use case that
changes a token, and by `callers.py`, which makes authorities.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from doorward.core.catalog import Level
from doorward.core.matrix import held_on
from doorward_server.errors import NotFound, PermissionDenied
from doorward_server.model import CallerKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from doorward.core.catalog import Catalog
    from doorward.core.matrix import Compiled
    from doorward_server.model import Caller, Grant, Token

__all__ = ["Authority", "Held", "may_see", "not_permitted", "require_permission", "token_not_found"]

# Parts of an excess that one message names; the rest is counted.
MOST_NAMED: Final = 5


def may_see(caller: Caller, account_id: str) -> bool:
    """Whether anything of this account exists for the caller: to a token, only its own account's does."""
    return caller.kind is CallerKind.OPERATOR or caller.account_id == account_id


def token_not_found(token_id: str) -> NotFound:
    """One sentence for every token that does not exist or that the caller may not see."""
    return NotFound("TOKEN_NOT_FOUND", f"there is no token {token_id!r}", metadata={"token_id": token_id})


def not_permitted(caller: Caller, method: str, permission: str | None = None) -> PermissionDenied:
    """The caller is known, and may not call this RPC; the same whatever it asked for."""
    why = "" if permission is None else f" without {permission}"
    refused = PermissionDenied(
        "CALLER_NOT_PERMITTED", f"{caller.actor} may not call {method}{why}", metadata={"method": method}
    )
    refused.asked_by = (caller.actor, caller.account_id)
    return refused


def require_permission(caller: Caller, compiled: Compiled, catalog: Catalog, method: str, permission: str) -> None:
    """Sees that a token holds, at its account, what the access table asks for. A catalog that lacks it lets nobody in.

    Raises:
        PermissionDenied: CALLER_NOT_PERMITTED.
    """
    found = catalog.find_permission(permission)
    if found is None or found.level is not Level.ACCOUNT or not found.bit & held_on(compiled, None)[0]:
        raise not_permitted(caller, method, permission)


@dataclass(frozen=True, slots=True)
class Held:
    """What a service token holds: its active grants, its end, and whether it may rotate itself."""

    compiled: Compiled
    expire_time: datetime | None
    allow_self_rotation: bool


@dataclass(frozen=True, slots=True)
class Authority:
    """What a caller may hand out under this catalog. `held` None: an operator, who may hand out everything."""

    caller: Caller
    catalog: Catalog
    held: Held | None = None

    def require_within(self, token: Token) -> None:
        """Sees that `token`, as it is or as it would be, is within what the caller holds.

        Raises:
            PermissionDenied: EXCEEDS_CALLER, which names the excess.
        """
        if self.held is None:
            return
        of_life = _excess_of_life(self.held, token)
        of_grants = _excess_of_grants(self.held.compiled, token.grants, self.catalog)
        self._refuse(itertools.chain(of_life, of_grants))

    def require_may_rotate(self, token: Token) -> None:
        """The same of a token whose new secret the caller would receive. Itself a token rotates only if it may.

        Else `allow_self_rotation` could be got round by RotateToken with the caller's own id.

        Raises:
            PermissionDenied: EXCEEDS_CALLER.
        """
        self.require_within(token)
        if self.held is not None and token.token_id == self.caller.subject_id and not self.held.allow_self_rotation:
            self._refuse([_Excess("allow_self_rotation")])

    def _refuse(self, excesses: Iterable[_Excess]) -> None:
        """Raises, if there is any."""
        named, unnamed = _told(excesses, self.catalog)
        if not named:
            return
        excess = "; ".join(named) + (f" and {unnamed} more" if unnamed else "")
        raise PermissionDenied(
            "EXCEEDS_CALLER",
            f"nobody hands out more than they hold, nor for longer than they live; {self.caller.actor} lacks: {excess}",
            metadata={"excess": excess},
        )


class _Excess(NamedTuple):
    """What a caller lacks: permissions, as bits of a level, at some `place`; without a level, what `place` says."""

    place: str
    level: Level | None = None
    mask: int = 0


def _excess_of_life(held: Held, token: Token) -> Iterator[_Excess]:
    if held.expire_time is not None and (token.expire_time is None or token.expire_time > held.expire_time):
        yield _Excess(f"a life beyond {held.expire_time.isoformat()}")
    if token.allow_self_rotation and not held.allow_self_rotation:
        yield _Excess("allow_self_rotation")


def _excess_of_grants(compiled: Compiled, grants: tuple[Grant, ...], catalog: Catalog) -> Iterator[_Excess]:
    """Each place once, however many grants reach it. No plan is asked: tomorrow's may cover what today's suspends."""
    account_mask = every_project_mask = 0
    named: dict[str, int] = {}
    for name, project_ids in grants:
        permission_set = catalog.permission_sets.get(name)
        if permission_set is None:
            # Nobody can tell what it would give if it came back.
            yield _Excess(f"permission set {name}, which the catalog does not know")
        elif project_ids is None:
            account_mask |= permission_set.account_mask
            every_project_mask |= permission_set.project_mask
        else:
            # What the set holds of the account, a grant on named projects never gives.
            for project_id in project_ids:
                named[project_id] = named.get(project_id, 0) | permission_set.project_mask
    of_account, on_every_project = held_on(compiled, None)
    if lacking := account_mask & ~of_account:
        yield _Excess("at the account", Level.ACCOUNT, lacking)
    if lacking := every_project_mask & ~on_every_project:
        yield _Excess("on all projects", Level.PROJECT, lacking)
    for project_id, mask in named.items():
        if lacking := mask & ~held_on(compiled, project_id)[1]:
            yield _Excess(f"on project {project_id}", Level.PROJECT, lacking)


def _told(excesses: Iterable[_Excess], catalog: Catalog) -> tuple[list[str], int]:
    """The first few in words, and how many more there are: one request can exceed its caller in 100,000 ways."""
    words: list[str] = []
    count = 0
    for place, level, mask in excesses:
        count += 1 if level is None else mask.bit_count()
        if len(words) < MOST_NAMED:
            names = [] if level is None else catalog.permission_names(level, mask)
            words += [f"{name} {place}" for name in names] or [place]
    return words[:MOST_NAMED], max(0, count - MOST_NAMED)
