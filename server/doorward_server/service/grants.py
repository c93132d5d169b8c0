"""Whether the grants of a request can be given: sets, plan, projects, and that each gives something (design section 3).

Shape was checked before (`api/convert.py`); here is what depends on the catalog and on the account.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from doorward_server.errors import FailedPrecondition, InvalidArgument, Violation
from doorward_server.model import Account, Grant

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from doorward.core.catalog import Catalog, PermissionSet

__all__ = ["GrantRules", "grant_violations", "named_projects", "settled_grants"]


class _Problem(NamedTuple):
    """One thing that is wrong. `uncovered`: the set that the plan does not cover, if that is what is wrong."""

    violation: Violation
    uncovered: str = ""


def named_projects(grants: Sequence[Grant]) -> set[str]:
    """Every project that some grant names."""
    return {project_id for grant in grants for project_id in grant.project_ids or ()}


@dataclass(frozen=True, slots=True)
class GrantRules:
    """What grants are judged by: the account with its plan, its projects among those that are named, and the catalog.

    `held`: what the token holds already. A grant that stays as it is was judged when it was given, and is kept even if
    the plan no longer covers it or the catalog no longer knows its set; changed in any way it is a new one. `field` is
    where the grants stand in the request.
    """

    account: Account
    catalog: Catalog
    own_projects: Collection[str]
    held: Collection[Grant] = ()
    field: str = "grants"

    def settled(self, grant: Grant) -> Grant:
        """The grant with its set by name instead of alias, and its projects sorted, as every read answers it."""
        project_ids = None if grant.project_ids is None else tuple(sorted(grant.project_ids))
        as_written = Grant(grant.permission_set, project_ids)
        found = self.catalog.find_permission_set(grant.permission_set)
        if found is None or as_written in self.held:
            return as_written
        return Grant(found.name, project_ids)


def settled_grants(
    grants: Sequence[Grant], rules: GrantRules, also_wrong: Sequence[Violation] = ()
) -> tuple[Grant, ...]:
    """The grants as every read answers them, sorted by their sets, if the account may have them.

    Raises:
        InvalidArgument: INVALID_FIELDS with every violation, and what the caller found `also_wrong`.
        FailedPrecondition: PERMISSION_SET_NOT_IN_PLAN, if that is all that is wrong.
    """
    _refuse(_problems(grants, rules), rules.account, also_wrong)
    return tuple(sorted(map(rules.settled, grants), key=lambda grant: grant.permission_set))


def grant_violations(grants: Sequence[Grant], rules: GrantRules) -> list[Violation]:
    """What `settled_grants` would refuse, for a request that is refused for its shape already."""
    return [problem.violation for problem in _problems(grants, rules)]


def _problems(grants: Sequence[Grant], rules: GrantRules) -> list[_Problem]:
    problems: list[_Problem] = []
    seen: dict[str, str] = {}
    for index, grant in enumerate(grants):
        place = f"{rules.field}[{index}]"
        settled = rules.settled(grant)
        if settled not in rules.held:
            problems += _problems_of_new(place, grant, rules)
        if settled.permission_set in seen:
            problems.append(_duplicate(place, settled.permission_set, seen[settled.permission_set]))
        seen.setdefault(settled.permission_set, place)
    return problems


def _problems_of_new(place: str, grant: Grant, rules: GrantRules) -> list[_Problem]:
    problems = _scope_problems(place, grant, rules)
    permission_set = rules.catalog.find_permission_set(grant.permission_set)
    if permission_set is None:
        return [*problems, _unknown_set(place, grant.permission_set, rules.catalog)]
    return [*problems, *_set_problems(place, grant, permission_set, rules)]


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


def _set_problems(place: str, grant: Grant, permission_set: PermissionSet, rules: GrantRules) -> list[_Problem]:
    name, plan = permission_set.name, rules.account.plan
    problems: list[_Problem] = []
    if not rules.catalog.covers(plan, name):
        found = rules.catalog.find_plan(plan)
        covered = ", ".join(sorted(found.permission_sets)) if found else "none"
        text = f"plan {plan!r} does not cover {name!r}; it covers: {covered}"
        problems.append(
            _Problem(Violation(f"{place}.permission_set", text, "PERMISSION_SET_NOT_IN_PLAN"), uncovered=name)
        )
    if grant.project_ids is not None and not permission_set.project_mask:
        text = f"{name!r} holds account-level permissions only, which named projects never give; set all_projects"
        problems.append(_Problem(Violation(place, text, "GRANT_WITHOUT_EFFECT")))
    elif not permission_set.project_mask and not permission_set.account_mask:
        problems.append(_Problem(Violation(place, f"{name!r} holds no permission", "GRANT_WITHOUT_EFFECT")))
    return problems


def _scope_problems(place: str, grant: Grant, rules: GrantRules) -> list[_Problem]:
    return [
        _Problem(
            Violation(
                f"{place}.project_ids[{number}]",
                f"account {rules.account.account_id!r} has no project {project_id!r}",
                "PROJECT_NOT_IN_ACCOUNT",
            )
        )
        for number, project_id in enumerate(grant.project_ids or ())
        if project_id not in rules.own_projects
    ]


def _unknown_set(place: str, name: str, catalog: Catalog) -> _Problem:
    known = ", ".join(sorted(catalog.permission_sets))
    text = f"there is no permission set {name!r} in the catalog; it has: {known}"
    return _Problem(Violation(f"{place}.permission_set", text, "PERMISSION_SET_UNKNOWN"))


def _duplicate(place: str, name: str, first: str) -> _Problem:
    text = f"{name!r} is granted in {first} already; name all its projects in one grant"
    return _Problem(Violation(f"{place}.permission_set", text, "FIELD_DUPLICATE"))
