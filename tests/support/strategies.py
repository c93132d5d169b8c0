"""Hypothesis strategies for what a decision depends on: catalogs, plans, accounts, projects, tokens and their grants.

Names come from small pools, so that grants meet the projects, sets and plans that exist, and also those that do not: a
set that the catalog forgot, an alias, a plan that went, a project that was deleted or is another account's.
"""

from typing import Any

from hypothesis import strategies as st

from tests.support.oracle import NaiveGrant, NaiveToken, World

ACCOUNTS = ("acme", "globex")
PROJECTS = ("p1", "p2", "p3", "p4", "p5")
PLANS = ("team", "enterprise")
NOW_US = 1_800_000_000_000_000

_ACTIONS = st.sampled_from([["read"], ["write"], ["read", "write"]])
_SET_NAMES = ("s0", "s1", "s2", "s3", "s4")


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid catalog's document, as a TOML parser would return it."""
    account = draw(_resources("a", least=0))
    project = draw(_resources("r", least=0 if account else 1))
    resources = {**account, **project}
    sets = {}
    for name in _SET_NAMES[: draw(st.sampled_from([5, 4, 3, 2, 1]))]:
        sets[name] = draw(_permission_set(name, resources))
    return {
        "schema": 1,
        "version": draw(st.sampled_from(["1", "2026.11.1"])),
        "account_resources": account,
        "project_resources": project,
        "permission_sets": sets,
        "plans": {plan: draw(_plan(plan, list(sets))) for plan in PLANS},
    }


@st.composite
def _resources(draw: st.DrawFn, prefix: str, least: int) -> dict[str, Any]:
    count = draw(st.sampled_from([number for number in (4, 3, 2, 1, 0) if number >= least]))
    return {f"{prefix}{n}": {"title": f"Resource {prefix}{n}", "actions": draw(_ACTIONS)} for n in range(count)}


@st.composite
def _permission_set(draw: st.DrawFn, name: str, resources: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"title": f"Set {name}"}
    for action in ("read", "write"):
        possible = [resource for resource, about in resources.items() if action in about["actions"]]
        listed = [resource for resource in possible if draw(st.booleans())]
        everything: bool = draw(st.sampled_from([False, False, False, True]))
        if possible and everything:
            listed = ["*"]
        if listed:
            described[action] = listed
    if not described.keys() & {"read", "write"}:
        described[next(iter(resources.values()))["actions"][0]] = [next(iter(resources))]
    if draw(st.booleans()):
        described["aliases"] = [f"alias_of_{name}"]
    return described


@st.composite
def _plan(draw: st.DrawFn, name: str, sets: list[str]) -> dict[str, Any]:
    covered = [permission_set for permission_set in sets if draw(st.booleans())]
    with_titles, everything = draw(st.tuples(st.booleans(), st.booleans()))
    titled = dict.fromkeys(covered[:1] if with_titles else [], "As this plan calls it")
    return {
        "title": name.title(),
        "permission_sets": ["*"] if everything else covered,
        "set_titles": titled,
    }


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A catalog with two accounts, on any plan and in any state, and projects that each may belong to one or to none."""
    owners = {project: draw(st.sampled_from([*ACCOUNTS, ACCOUNTS[0], None])) for project in PROJECTS}
    return World(
        document=draw(documents()),
        plan_of={account: draw(st.sampled_from([*PLANS * 4, "vanished"])) for account in ACCOUNTS},
        state_of={account: draw(account_states()) for account in ACCOUNTS},
        owner_of={project: owner for project, owner in owners.items() if owner is not None},
    )


def account_states() -> st.SearchStrategy[str]:
    """Mostly active ones, so that most decisions get as far as the grants."""
    return st.sampled_from([*["ACTIVE"] * 12, "SUSPENDED", "DELETED"])


def grants() -> st.SearchStrategy[tuple[NaiveGrant, ...]]:
    """Up to five grants, each set once: known sets, a forgotten one, an alias; all projects, some, or none at all."""
    projects = st.sampled_from((*PROJECTS, "p_unknown"))
    some = st.lists(projects, unique=True, min_size=1, max_size=4).map(tuple)
    scopes = st.one_of(some, some, some, st.none(), st.none(), st.just(()))
    names = st.sampled_from((*_SET_NAMES * 4, "forgotten", "alias_of_s0"))
    one = st.builds(NaiveGrant, names, scopes)
    return st.lists(one, min_size=1, max_size=5, unique_by=lambda grant: grant.permission_set).map(tuple)


def tokens() -> st.SearchStrategy[NaiveToken]:
    """Tokens of either account; expiry never, or just before, at or just after NOW_US."""
    rarely = st.sampled_from([*[False] * 12, True])
    expiry = st.sampled_from([*[None, NOW_US + 1] * 6, NOW_US - 1, NOW_US])
    return st.builds(NaiveToken, st.just("A" * 16), st.sampled_from(ACCOUNTS), rarely, rarely, expiry, grants())
