"""Whether the grants of a request can be given: sets, plan, projects, and that each gives something (design section 3).

Shape was checked before (`api/convert.py`); here is what depends on the catalog and on the account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from doorward_server.errors import FailedPrecondition, InvalidArgument, Violation
from doorward_server.model import Account, Grant

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from doorward.core.catalog import Catalog, PermissionSet

__all__ = ["grant_violations", "named_projects", "settled_grants"]


class _Problem(NamedTuple):
    """One thing that is wrong. `uncovered`: the set that the plan does not cover, if that is what is wrong."""

    violation: Violation
    uncovered: str = ""


def named_projects(grants: Sequence[Grant]) -> set[str]:
    """Every project that some grant names."""
    return {project_id for grant in grants for project_id in grant.project_ids or ()}


def settled_grants(
    grants: Sequence[Grant],
    account: Account,
    catalog: Catalog,
    own_projects: Collection[str],
    also_wrong: Sequence[Violation] = (),
) -> tuple[Grant, ...]:
    """The grants with their sets by name instead of alias, sorted as every read answers them, if the account may have them.

    Raises:
        InvalidArgument: INVALID_FIELDS with every violation, and what the caller found `also_wrong`.
        FailedPrecondition: PERMISSION_SET_NOT_IN_PLAN, if that is all that is wrong.
    """
    _refuse(_problems(grants, account, catalog, own_projects), account, also_wrong)
    settled: list[Grant] = []
    for grant in grants:
        permission_set = catalog.find_permission_set(grant.permission_set)
        if permission_set is not None:
            project_ids = None if grant.project_ids is None else tuple(sorted(grant.project_ids))
            settled.append(Grant(permission_set.name, project_ids))
    return tuple(sorted(settled, key=lambda grant: grant.permission_set))


def grant_violations(
    grants: Sequence[Grant], account: Account, catalog: Catalog, own_projects: Collection[str]
) -> list[Violation]:
    """What `settled_grants` would refuse, for a request that is refused for its shape already."""
    return [problem.violation for problem in _problems(grants, account, catalog, own_projects)]


def _problems(
    grants: Sequence[Grant], account: Account, catalog: Catalog, own_projects: Collection[str]
) -> list[_Problem]:
    problems: list[_Problem] = []
    seen: dict[str, int] = {}
    for index, grant in enumerate(grants):
        permission_set = catalog.find_permission_set(grant.permission_set)
        problems += _scope_problems(index, grant, account, own_projects)
        if permission_set is None:
            problems.append(_unknown_set(index, grant.permission_set, catalog))
            continue
        problems += _set_problems(index, grant, permission_set, account, catalog)
        if permission_set.name in seen:
            problems.append(_duplicate(index, permission_set.name, seen[permission_set.name]))
        seen.setdefault(permission_set.name, index)
    return problems


def _refuse(problems: Sequence[_Problem], account: Account, also_wrong: Sequence[Violation]) -> None:
    violations = (*(problem.violation for problem in problems), *also_wrong)
    if not violations:
        return
    if not also_wrong and all(problem.uncovered for problem in problems):
        raise FailedPrecondition(
            "PERMISSION_SET_NOT_IN_PLAN",
            f"{violations[0].field}: {violations[0].description}",
            violations=violations,
            metadata={
                "account_id": account.account_id,
                "plan": account.plan,
                "permission_set": problems[0].uncovered,
            },
        )
    raise InvalidArgument.of(violations)


def _set_problems(
    index: int, grant: Grant, permission_set: PermissionSet, account: Account, catalog: Catalog
) -> list[_Problem]:
    field = f"grants[{index}].permission_set"
    problems: list[_Problem] = []
    if not catalog.covers(account.plan, permission_set.name):
        plan = catalog.find_plan(account.plan)
        covered = ", ".join(sorted(plan.permission_sets)) if plan else "none"
        text = f"plan {account.plan!r} does not cover {permission_set.name!r}; it covers: {covered}"
        violation = Violation(field, text, "PERMISSION_SET_NOT_IN_PLAN")
        problems.append(_Problem(violation, uncovered=permission_set.name))
    gives_nothing = not permission_set.project_mask if grant.project_ids is not None else False
    if gives_nothing:
        text = f"{permission_set.name!r} holds account-level permissions only, which named projects never give; set all_projects"
        problems.append(_Problem(Violation(f"grants[{index}]", text, "GRANT_WITHOUT_EFFECT")))
    elif not permission_set.project_mask and not permission_set.account_mask:
        text = f"{permission_set.name!r} holds no permission"
        problems.append(_Problem(Violation(f"grants[{index}]", text, "GRANT_WITHOUT_EFFECT")))
    return problems


def _scope_problems(index: int, grant: Grant, account: Account, own_projects: Collection[str]) -> list[_Problem]:
    return [
        _Problem(
            Violation(
                f"grants[{index}].project_ids[{place}]",
                f"account {account.account_id!r} has no project {project_id!r}",
                "PROJECT_NOT_IN_ACCOUNT",
            )
        )
        for place, project_id in enumerate(grant.project_ids or ())
        if project_id not in own_projects
    ]


def _unknown_set(index: int, name: str, catalog: Catalog) -> _Problem:
    known = ", ".join(sorted(catalog.permission_sets))
    text = f"there is no permission set {name!r} in the catalog; it has: {known}"
    return _Problem(Violation(f"grants[{index}].permission_set", text, "PERMISSION_SET_UNKNOWN"))


def _duplicate(index: int, name: str, first: int) -> _Problem:
    text = f"{name!r} is granted in grants[{first}] already; name all its projects in one grant"
    return _Problem(Violation(f"grants[{index}].permission_set", text, "FIELD_DUPLICATE"))
