"""The rules of a decision, once: compile a token's grants under a catalog and a plan, and decide a check.

`decide` is a pure function of what is handed in: no I/O, no clock, no lock, less than a microsecond. Its answer is one
`DenyReason`, the first obstacle in the order of the design, or ALLOWED. Nothing that is missing makes a yes: an entry
that was never compiled gives nothing, an unknown state is not active, an unknown project is nobody's.

The caller has recognized the secret, has validated the request, and has seen with `is_current` (or `compile_token`)
that the entry is compiled under the very catalog that the `Permission` was found in and under the account's plan; for
a permission is a bit, and a bit means something in one catalog only. Used by the server and by watchers alike
(design section 2).
"""

from bisect import bisect_left
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from doorward.core.catalog import Catalog, Level, Permission, PermissionSet
from doorward.core.entries import (
    ACCOUNT_STATE,
    COMPILED_ACCOUNT_MASK,
    COMPILED_ALL_PROJECTS_MASK,
    COMPILED_ANY_PROJECT_MASK,
    COMPILED_CATALOG_VERSION,
    COMPILED_MASKS,
    COMPILED_NAMED_ACCOUNT_MASK,
    COMPILED_PLAN,
    COMPILED_PROJECT_IDS,
    COMPILED_SUSPENDED,
    SUSPENDED_ACCOUNT_MASK,
    SUSPENDED_ALL_PROJECTS_MASK,
    SUSPENDED_MASKS,
    SUSPENDED_PROJECT_IDS,
    TOKEN_COMPILED,
    TOKEN_EXPIRE_US,
    TOKEN_GRANTS,
    TOKEN_IS_DISABLED,
    TOKEN_IS_REVOKED,
    AccountEntry,
    AccountState,
    Compiled,
    Grant,
    GrantEntry,
    SuspendedGains,
    TokenEntry,
    account_entry,
    shared,
    token_entry,
)

__all__ = [
    "AccountEntry",
    "AccountState",
    "Compiled",
    "DenyReason",
    "Grant",
    "GrantEntry",
    "TokenEntry",
    "account_entry",
    "compile_grants",
    "compile_token",
    "decide",
    "effective_state",
    "held_on",
    "held_permissions",
    "is_current",
    "token_entry",
]


class DenyReason(IntEnum):
    """The answer to a check, in the numbers of the contract, whose 0 is UNSPECIFIED."""

    ALLOWED = 0
    TOKEN_UNRECOGNIZED = 1
    TOKEN_REVOKED = 2
    TOKEN_EXPIRED = 3
    TOKEN_DISABLED = 4
    ACCOUNT_SUSPENDED = 5
    RESOURCE_NOT_IN_ACCOUNT = 6
    GRANT_SUSPENDED_BY_PLAN = 7
    ALL_PROJECTS_REQUIRED = 8
    PROJECT_NOT_GRANTED = 9
    PERMISSION_NOT_GRANTED = 10


# Module names, because a member looked up on its enum costs as much as the rest of a line.
_ALLOWED: Final = DenyReason.ALLOWED
_NOT_IN_ACCOUNT: Final = DenyReason.RESOURCE_NOT_IN_ACCOUNT
_ACCOUNT_LEVEL: Final = Level.ACCOUNT
_ACTIVE: Final = int(AccountState.ACTIVE)
_DELETED: Final = int(AccountState.DELETED)


def decide(
    token: TokenEntry,
    account: AccountEntry,
    permission: Permission,
    account_id: str | None,
    project_id: str | None,
    project_account_id: str | None,
    now_us: int,
) -> DenyReason:
    """Steps 2 to 5 of design section 2 for a recognized token: ALLOWED or the first obstacle.

    Exactly one of account_id and project_id is given, the one that fits the permission's level; project_account_id is
    the account that the project belongs to, None for an unknown project. `account` is the token's own.
    """
    _, own_account_id, revoked, disabled, expire_us, _, _, compiled = token
    # The usual case without a call: `effective_state` is asked, and believed, only where it may find something.
    if revoked or disabled or account[ACCOUNT_STATE] != _ACTIVE or (expire_us is not None and now_us >= expire_us):
        state = effective_state(token, account, now_us)
        if state is not _ALLOWED:
            return state
    bit = permission.bit
    if permission.level is _ACCOUNT_LEVEL:
        if account_id != own_account_id:
            return _NOT_IN_ACCOUNT
        if bit & compiled[COMPILED_ACCOUNT_MASK]:
            return _ALLOWED
        return _account_obstacle(compiled, bit)
    if project_id is None or project_account_id != own_account_id:
        return _NOT_IN_ACCOUNT
    if bit & compiled[COMPILED_ALL_PROJECTS_MASK]:
        return _ALLOWED
    if bit & _mask_on(project_id, compiled[COMPILED_PROJECT_IDS], compiled[COMPILED_MASKS]):
        return _ALLOWED
    return _project_obstacle(compiled, bit, project_id)


def effective_state(token: TokenEntry, account: AccountEntry, now_us: int) -> DenyReason:
    """Step 2 of design section 2: what stops the token whatever it asks, or ALLOWED. A token ends at its expiry."""
    if token[TOKEN_IS_REVOKED] or account[ACCOUNT_STATE] == _DELETED:
        return DenyReason.TOKEN_REVOKED
    expire_us = token[TOKEN_EXPIRE_US]
    if expire_us is not None and now_us >= expire_us:
        return DenyReason.TOKEN_EXPIRED
    if token[TOKEN_IS_DISABLED]:
        return DenyReason.TOKEN_DISABLED
    if account[ACCOUNT_STATE] != _ACTIVE:
        return DenyReason.ACCOUNT_SUSPENDED
    return _ALLOWED


def is_current(compiled: Compiled, catalog: Catalog, plan: str) -> bool:
    """Whether it was compiled under this catalog and this plan."""
    return compiled[COMPILED_CATALOG_VERSION] == catalog.version and compiled[COMPILED_PLAN] == plan


def compile_token(token: TokenEntry, catalog: Catalog, plan: str) -> TokenEntry:
    """The same entry if it is current, else one that is; the caller puts that in the place of the former."""
    if is_current(token[TOKEN_COMPILED], catalog, plan):
        return token
    return (*token[:TOKEN_COMPILED], compile_grants(token[TOKEN_GRANTS], catalog, plan))


def compile_grants(grants: Iterable[GrantEntry], catalog: Catalog, plan: str) -> Compiled:
    """The masks of the grants that are active under this catalog and plan, and of those the plan suspends.

    A set is looked up by its name, not by an alias: aliases are resolved when a grant is given. One that the catalog no
    longer knows gives nothing and suspends nothing.
    """
    active, suspended = _Gains(), _Gains()
    for name, project_ids in grants:
        permission_set = catalog.permission_sets.get(name)
        if permission_set is not None:
            gains = active if catalog.covers(plan, name) else suspended
            gains.add(permission_set, project_ids)
    project_ids, masks = active.named_projects()
    compiled: Compiled = (
        catalog.version,
        shared(plan),
        shared(active.account_mask),
        shared(active.all_projects_mask),
        project_ids,
        masks,
        shared(active.named_account_mask),
        shared(active.any_project_mask),
        suspended.would_give(),
    )
    return compiled if project_ids or compiled[COMPILED_SUSPENDED] else shared(compiled)


def held_permissions(compiled: Compiled, catalog: Catalog, project_id: str | None) -> tuple[str, ...]:
    """The names, sorted, of what a check would allow: at the account (None), or at this project of the account."""
    if project_id is None:
        return catalog.permission_names(Level.ACCOUNT, compiled[COMPILED_ACCOUNT_MASK])
    named_mask = _mask_on(project_id, compiled[COMPILED_PROJECT_IDS], compiled[COMPILED_MASKS])
    return catalog.permission_names(Level.PROJECT, compiled[COMPILED_ALL_PROJECTS_MASK] | named_mask)


def held_on(compiled: Compiled, project_id: str | None) -> tuple[int, int]:
    """The account-level mask, and the project-level one on every project (None) or on this one."""
    named_mask = (
        0 if project_id is None else _mask_on(project_id, compiled[COMPILED_PROJECT_IDS], compiled[COMPILED_MASKS])
    )
    return compiled[COMPILED_ACCOUNT_MASK], compiled[COMPILED_ALL_PROJECTS_MASK] | named_mask


def _mask_on(project_id: str, project_ids: tuple[str, ...], masks: tuple[int, ...]) -> int:
    index = bisect_left(project_ids, project_id)
    return masks[index] if index < len(project_ids) and project_ids[index] == project_id else 0


def _account_obstacle(compiled: Compiled, bit: int) -> DenyReason:
    suspended = compiled[COMPILED_SUSPENDED]
    if suspended is not None and bit & suspended[SUSPENDED_ACCOUNT_MASK]:
        return DenyReason.GRANT_SUSPENDED_BY_PLAN
    if bit & compiled[COMPILED_NAMED_ACCOUNT_MASK]:
        return DenyReason.ALL_PROJECTS_REQUIRED
    return DenyReason.PERMISSION_NOT_GRANTED


def _project_obstacle(compiled: Compiled, bit: int, project_id: str) -> DenyReason:
    suspended = compiled[COMPILED_SUSPENDED]
    if suspended is not None:
        named_mask = _mask_on(project_id, suspended[SUSPENDED_PROJECT_IDS], suspended[SUSPENDED_MASKS])
        if bit & (suspended[SUSPENDED_ALL_PROJECTS_MASK] | named_mask):
            return DenyReason.GRANT_SUSPENDED_BY_PLAN
    if bit & compiled[COMPILED_ANY_PROJECT_MASK]:
        return DenyReason.PROJECT_NOT_GRANTED
    return DenyReason.PERMISSION_NOT_GRANTED


class _Gains:
    """What some grants give together."""

    __slots__ = ("_named", "account_mask", "all_projects_mask", "any_project_mask", "named_account_mask")

    def __init__(self) -> None:
        self.account_mask = 0
        self.all_projects_mask = 0
        self.named_account_mask = 0
        self.any_project_mask = 0
        self._named: dict[str, int] = {}

    def add(self, permission_set: PermissionSet, project_ids: tuple[str, ...] | None) -> None:
        if project_ids is None:
            self.account_mask |= permission_set.account_mask
            self.all_projects_mask |= permission_set.project_mask
        elif project_ids:
            self.named_account_mask |= permission_set.account_mask
            self.any_project_mask |= permission_set.project_mask
            for project_id in project_ids:
                self._named[project_id] = self._named.get(project_id, 0) | permission_set.project_mask

    def named_projects(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        project_ids = tuple(sorted(self._named))
        return shared(project_ids), shared(tuple(shared(self._named[project_id]) for project_id in project_ids))

    def would_give(self) -> SuspendedGains | None:
        if not (self.account_mask or self.all_projects_mask or self.any_project_mask):
            return None
        return (shared(self.account_mask), shared(self.all_projects_mask), *self.named_projects())
