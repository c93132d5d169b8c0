"""A decision told grant by grant, and the smallest grant that would turn a no into a yes (design sections 2 and 3).

The verdict is `matrix.decide`'s own, so the two cannot differ. What is added is the part of each grant, read off the
grant itself rather than off the masks that it was compiled into, and a proposal. Made for people who look for a cause:
slower than `decide`, and never part of a check. Used by ExplainCheck.

**The smallest grant** is the first, in this order, of all grants that would make the decision ALLOWED:
1. Its set is covered by the account's plan, and holds the permission.
2. Its set holds the fewest permissions, of both levels together, as ListPermissionSets lists them.
3. Its set's name comes first.
4. Its scope is the narrowest: an account-level permission needs all projects; a project-level one needs this project,
   beside those that the token's grant of the same set names already, for a token has each set once.
"""

from enum import IntEnum
from typing import NamedTuple

from doorward.core.catalog import Catalog, Level, Permission, PermissionSet
from doorward.core.entries import ACCOUNT_PLAN, TOKEN_ACCOUNT_ID, TOKEN_GRANTS
from doorward.core.matrix import AccountEntry, DenyReason, Grant, GrantEntry, TokenEntry, decide

__all__ = ["Explanation", "GrantExplanation", "GrantPart", "explain"]


class GrantPart(IntEnum):
    """What one grant had to do with a decision, in the numbers of the contract, whose 0 is UNSPECIFIED."""

    ALLOWS = 1
    SUSPENDED = 2
    NEEDS_ALL_PROJECTS = 3
    OTHER_PROJECTS = 4
    NOT_HELD = 5
    RESOURCE_NOT_IN_ACCOUNT = 6


class GrantExplanation(NamedTuple):
    """A grant of the token, whether the account's plan suspends it, and its part."""

    grant: Grant
    suspended: bool
    part: GrantPart


class Explanation(NamedTuple):
    """The verdict of `decide`, the part of each grant in the token's order, and the smallest grant that would help.

    `smallest_grant` is as it should become: put in the place of the token's grant of that set, or beside its grants. None
    if the check is allowed, or no grant would help.
    """

    reason: DenyReason
    grants: tuple[GrantExplanation, ...]
    smallest_grant: Grant | None


# What a grant can be the cure for; before any of these stands the token, its account or the resource itself.
_OBSTACLES = frozenset(
    {
        DenyReason.GRANT_SUSPENDED_BY_PLAN,
        DenyReason.ALL_PROJECTS_REQUIRED,
        DenyReason.PROJECT_NOT_GRANTED,
        DenyReason.PERMISSION_NOT_GRANTED,
    }
)


def explain(
    token: TokenEntry,
    account: AccountEntry,
    catalog: Catalog,
    permission: Permission,
    account_id: str | None,
    project_id: str | None,
    project_account_id: str | None,
    now_us: int,
) -> Explanation:
    """What `decide` answers to the same, and why.

    The token must be compiled under `catalog`, which the permission is of, and under its account's plan. Of a token that
    cannot be used the parts are told all the same: they take effect once it can.
    """
    reason = decide(token, account, permission, account_id, project_id, project_account_id, now_us)
    is_account_level = permission.level is Level.ACCOUNT
    wanted = None if is_account_level else project_id
    owner = account_id if is_account_level else project_account_id
    is_own = owner == token[TOKEN_ACCOUNT_ID] and (is_account_level or project_id is not None)
    plan = account[ACCOUNT_PLAN]
    grants = tuple(
        GrantExplanation(
            Grant(name, project_ids),
            not catalog.covers(plan, name),
            _part((name, project_ids), catalog, plan, permission, wanted)
            if is_own
            else GrantPart.RESOURCE_NOT_IN_ACCOUNT,
        )
        for name, project_ids in token[TOKEN_GRANTS]
    )
    smallest = _smallest(token[TOKEN_GRANTS], catalog, plan, permission, wanted) if reason in _OBSTACLES else None
    return Explanation(reason, grants, smallest)


def _part(grant: GrantEntry, catalog: Catalog, plan: str, permission: Permission, project_id: str | None) -> GrantPart:
    """Its part at the account (no project) or on this project, which are the token's own."""
    name, project_ids = grant
    permission_set = catalog.permission_sets.get(name)
    # A grant on no project at all gives nothing, whatever its set holds; none is ever stored.
    if permission_set is None or not _holds(permission_set, permission) or project_ids == ():
        return GrantPart.NOT_HELD
    if project_ids is not None and project_id not in project_ids:
        return GrantPart.NEEDS_ALL_PROJECTS if permission.level is Level.ACCOUNT else GrantPart.OTHER_PROJECTS
    return GrantPart.ALLOWS if catalog.covers(plan, name) else GrantPart.SUSPENDED


def _smallest(
    grants: tuple[GrantEntry, ...], catalog: Catalog, plan: str, permission: Permission, project_id: str | None
) -> Grant | None:
    candidates = [
        permission_set
        for permission_set in catalog.permission_sets.values()
        if catalog.covers(plan, permission_set.name) and _holds(permission_set, permission)
    ]
    if not candidates:
        return None
    name = min(candidates, key=lambda candidate: (_size(candidate), candidate.name)).name
    if project_id is None:
        return Grant(name, None)
    # The plan covers the set, so that a grant of it on all projects would have allowed the check already.
    named = next((project_ids for held, project_ids in grants if held == name), ())
    return Grant(name, tuple(sorted({*(named or ()), project_id})))


def _holds(permission_set: PermissionSet, permission: Permission) -> bool:
    mask = permission_set.account_mask if permission.level is Level.ACCOUNT else permission_set.project_mask
    return bool(mask & permission.bit)


def _size(permission_set: PermissionSet) -> int:
    return permission_set.account_mask.bit_count() + permission_set.project_mask.bit_count()
