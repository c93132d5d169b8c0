"""The explanation beside `decide` and the naive oracle: each grant's part, and the smallest grant that would help."""

from typing import Any

import pytest
from hypothesis import given, settings

from doorward.core.catalog import Catalog
from doorward.core.explain import Explanation, GrantPart, explain
from doorward.core.matrix import Grant, compile_token, decide
from doorward.v1 import authorizer_pb2
from tests.client.core.test_matrix import BUILTIN_CATALOG, BUILTIN_DOCUMENT, account_of, entry_of, every_ask
from tests.support import oracle, strategies
from tests.support.oracle import NaiveGrant, NaiveToken, World
from tests.support.strategies import NOW_US

EXAMPLES = settings(deadline=None, max_examples=200)
Ask = tuple[str, str | None, str | None]

# The obstacles that a grant of the token, or the lack of one, can be; in the order in which a check names them.
FIRST_OBSTACLE = {
    GrantPart.RESOURCE_NOT_IN_ACCOUNT: "RESOURCE_NOT_IN_ACCOUNT",
    GrantPart.ALLOWS: "ALLOWED",
    GrantPart.SUSPENDED: "GRANT_SUSPENDED_BY_PLAN",
    GrantPart.NEEDS_ALL_PROJECTS: "ALL_PROJECTS_REQUIRED",
    GrantPart.OTHER_PROJECTS: "PROJECT_NOT_GRANTED",
    GrantPart.NOT_HELD: "PERMISSION_NOT_GRANTED",
}
OF_TOKEN_OR_ACCOUNT = {"TOKEN_REVOKED", "TOKEN_EXPIRED", "TOKEN_DISABLED", "ACCOUNT_SUSPENDED"}


def explained(catalog: Catalog, world: World, token: NaiveToken, ask: Ask) -> Explanation:
    account = account_of(world, token.account_id)
    permission, account_id, project_id = ask
    return explain(
        compile_token(entry_of(token), catalog, account[1]),
        account,
        catalog,
        catalog.permissions[permission],
        account_id,
        project_id,
        None if project_id is None else world.owner_of.get(project_id),
        NOW_US,
    )


def naive_part(world: World, token: NaiveToken, grant: NaiveGrant, ask: Ask) -> str:
    """The contract's comment on each part, read off sentence by sentence."""
    permission, account_id, project_id = ask
    asked_account = account_id if project_id is None else world.owner_of.get(project_id)
    if asked_account != token.account_id:
        return "RESOURCE_NOT_IN_ACCOUNT"
    known = grant.permission_set in world.document["permission_sets"]
    if not known or permission not in oracle.permissions_in_set(world.document, grant.permission_set):
        return "NOT_HELD"
    if grant.project_ids == ():
        return "NOT_HELD"
    if not oracle.gives(world, grant, permission, project_id):
        return "NEEDS_ALL_PROJECTS" if project_id is None else "OTHER_PROJECTS"
    covered = oracle.covered_sets(world.document, world.plan_of[token.account_id])
    return "ALLOWS" if grant.permission_set in covered else "SUSPENDED"


def with_grant(token: NaiveToken, grant: NaiveGrant) -> NaiveToken:
    """The token as it would be with this grant, each set once."""
    others = tuple(held for held in token.grants if held.permission_set != grant.permission_set)
    return NaiveToken(
        token.token_id, token.account_id, token.revoked, token.disabled, token.expire_us, (*others, grant)
    )


def helpful_grants(world: World, token: NaiveToken, ask: Ask) -> list[NaiveGrant]:
    """Of each set every grant that the plan covers, that takes nothing from the token, and that would turn the no into a yes.

    In the order of size: permissions of the set, its name, and then of the scope, where all projects are more than any.
    """
    document, project_id = world.document, ask[2]
    found = []
    for name in oracle.covered_sets(document, world.plan_of[token.account_id]):
        held = next((grant for grant in token.grants if grant.permission_set == name), None)
        before: tuple[str, ...] = () if held is None else held.project_ids or ()
        scopes: list[tuple[str, ...] | None] = [None]
        if held is None or held.project_ids is not None:
            scopes += [before, (*before, "p_unknown"), *(() if project_id is None else ((*before, project_id),))]
            scopes += [] if project_id is None else [(*before, project_id, "p_more")]
        for scope in scopes:
            grant = NaiveGrant(name, scope)
            if oracle.expected(world, with_grant(token, grant), *ask, NOW_US) == "ALLOWED":
                found.append(grant)

    def size(grant: NaiveGrant) -> tuple[int, str, float]:
        scope = float("inf") if grant.project_ids is None else len(grant.project_ids)
        return len(oracle.permissions_in_set(document, grant.permission_set)), grant.permission_set, scope

    return sorted(found, key=size)


@EXAMPLES
@given(strategies.worlds(), strategies.tokens())
def test_the_verdict_is_that_of_the_check(world: World, token: NaiveToken) -> None:
    catalog = Catalog.build(world.document, 1)
    account = account_of(world, token.account_id)
    entry = compile_token(entry_of(token), catalog, account[1])

    for ask in every_ask(world):
        owner = None if ask[2] is None else world.owner_of.get(ask[2])
        reason = explained(catalog, world, token, ask).reason

        assert reason is decide(entry, account, catalog.permissions[ask[0]], ask[1], ask[2], owner, NOW_US)
        assert reason.name == oracle.expected(world, token, *ask, NOW_US)


@EXAMPLES
@given(strategies.worlds(), strategies.tokens())
def test_each_grant_has_the_part_that_the_contract_describes(world: World, token: NaiveToken) -> None:
    catalog = Catalog.build(world.document, 1)
    covered = oracle.covered_sets(world.document, world.plan_of[token.account_id])

    for ask in every_ask(world):
        told = explained(catalog, world, token, ask).grants

        assert [tuple(one.grant) for one in told] == [(one.permission_set, one.project_ids) for one in token.grants]
        assert [one.part.name for one in told] == [naive_part(world, token, grant, ask) for grant in token.grants]
        assert [one.suspended for one in told] == [grant.permission_set not in covered for grant in token.grants]


@EXAMPLES
@given(strategies.worlds(), strategies.tokens())
def test_the_parts_account_for_the_verdict(world: World, token: NaiveToken) -> None:
    """The first obstacle among the parts is the reason; what a suspended grant holds elsewhere is none."""
    catalog = Catalog.build(world.document, 1)

    for ask in every_ask(world):
        explanation = explained(catalog, world, token, ask)
        if explanation.reason.name in OF_TOKEN_OR_ACCOUNT:
            continue
        elsewhere = {GrantPart.NEEDS_ALL_PROJECTS, GrantPart.OTHER_PROJECTS}
        parts = {one.part for one in explanation.grants if not (one.suspended and one.part in elsewhere)}
        told = next((name for part, name in FIRST_OBSTACLE.items() if part in parts), "PERMISSION_NOT_GRANTED")

        assert told == explanation.reason.name


@EXAMPLES
@given(strategies.worlds(), strategies.tokens())
def test_the_smallest_grant_turns_the_no_into_a_yes_and_no_smaller_one_does(world: World, token: NaiveToken) -> None:
    catalog = Catalog.build(world.document, 1)

    for ask in every_ask(world):
        explanation = explained(catalog, world, token, ask)
        smallest = explanation.smallest_grant
        if explanation.reason.name == "ALLOWED":
            assert smallest is None
            continue
        helpful = helpful_grants(world, token, ask)
        if smallest is None:
            assert helpful == []
            continue
        # The scope of the one is sorted; the other's has the new project behind.
        assert smallest.permission_set == helpful[0].permission_set
        assert set(smallest.project_ids or ["*"]) == set(helpful[0].project_ids or ["*"])
        given_it = with_grant(token, NaiveGrant(*smallest))
        assert oracle.expected(world, given_it, *ask, NOW_US) == "ALLOWED"


# ---- the built-in catalog, read by a person


def builtin(plan: str, permission: str, project_id: str | None, *grants: NaiveGrant, **state: Any) -> Explanation:
    world = World(
        BUILTIN_DOCUMENT,
        {"acme": plan},
        {"acme": state.pop("account", "ACTIVE")},
        {"analytics": "acme", "finance": "acme", "foreign": "globex"},
    )
    token = NaiveToken(
        "A" * 16,
        "acme",
        state.pop("revoked", False),
        state.pop("disabled", False),
        state.pop("expire_us", None),
        grants,
    )
    return explained(BUILTIN_CATALOG, world, token, (permission, "acme" if project_id is None else None, project_id))


def test_the_contracts_example_is_answered_as_it_says() -> None:
    told = builtin("enterprise", "jobs:write", "finance", NaiveGrant("job_admin", ("analytics",)))

    assert told.reason.name == "PROJECT_NOT_GRANTED"
    assert told.grants == ((Grant("job_admin", ("analytics",)), False, GrantPart.OTHER_PROJECTS),)
    assert told.smallest_grant == Grant("job_admin", ("analytics", "finance"))


@pytest.mark.parametrize(
    ("plan", "permission", "project_id", "smallest"),
    [
        ("enterprise", "runs:write", "finance", Grant("job_runner", ("finance",))),
        ("team", "runs:write", "finance", Grant("job_admin", ("finance",))),
        ("enterprise", "metadata:read", "finance", Grant("metadata_only", ("finance",))),
        ("enterprise", "billing:read", None, Grant("billing_admin", None)),
        ("team", "billing:read", None, Grant("account_admin", None)),
        ("vanished", "jobs:read", "finance", None),
    ],
)
def test_the_set_is_the_smallest_that_the_plan_covers(
    plan: str, permission: str, project_id: str | None, smallest: Grant | None
) -> None:
    assert builtin(plan, permission, project_id, NaiveGrant("read_only", ("analytics",))).smallest_grant == smallest


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"revoked": True}, "TOKEN_REVOKED"),
        ({"disabled": True}, "TOKEN_DISABLED"),
        ({"expire_us": NOW_US}, "TOKEN_EXPIRED"),
        ({"account": "SUSPENDED"}, "ACCOUNT_SUSPENDED"),
        ({"account": "DELETED"}, "TOKEN_REVOKED"),
    ],
)
def test_of_a_token_that_cannot_be_used_the_parts_are_told_and_no_grant_would_help(
    state: dict[str, Any], reason: str
) -> None:
    told = builtin("enterprise", "jobs:write", "finance", NaiveGrant("job_admin", None), **state)

    assert told.reason.name == reason
    assert [one.part for one in told.grants] == [GrantPart.ALLOWS]
    assert told.smallest_grant is None


def test_no_grant_helps_with_another_accounts_project() -> None:
    told = builtin("enterprise", "jobs:write", "foreign", NaiveGrant("job_admin", None), NaiveGrant("read_only", None))

    assert told.reason.name == "RESOURCE_NOT_IN_ACCOUNT"
    assert {one.part for one in told.grants} == {GrantPart.RESOURCE_NOT_IN_ACCOUNT}
    assert told.smallest_grant is None


def test_a_suspended_grant_is_told_as_such_and_another_set_is_proposed() -> None:
    told = builtin("team", "runs:write", "finance", NaiveGrant("job_runner", ("finance",)))

    assert told.reason.name == "GRANT_SUSPENDED_BY_PLAN"
    assert told.grants == ((Grant("job_runner", ("finance",)), True, GrantPart.SUSPENDED),)
    assert told.smallest_grant == Grant("job_admin", ("finance",))


def test_an_account_level_permission_needs_all_projects() -> None:
    told = builtin("enterprise", "billing:write", None, NaiveGrant("billing_admin", ("finance",)))

    assert [one.part for one in told.grants] == [GrantPart.NEEDS_ALL_PROJECTS]
    assert told.smallest_grant == Grant("billing_admin", None)


def test_of_equal_sets_the_first_by_name_is_proposed_wherever_it_stands_in_the_file() -> None:
    sets = {name: {"title": name, "read": ["jobs"]} for name in ("zealous", "able", "mild")}
    document = {
        **BUILTIN_DOCUMENT,
        "permission_sets": sets,
        "plans": {"all": {"title": "All", "permission_sets": ["*"]}},
    }
    world = World(document, {"acme": "all"}, {"acme": "ACTIVE"}, {"finance": "acme"})
    token = NaiveToken("A" * 16, "acme", False, False, None, ())

    told = explained(Catalog.build(document, 1), world, token, ("jobs:read", None, "finance"))

    assert told.smallest_grant == Grant("able", ("finance",))


def test_parts_have_the_numbers_of_the_contract() -> None:
    parts = {f"GRANT_PART_{part.name}": int(part) for part in GrantPart}

    assert {"GRANT_PART_UNSPECIFIED": 0, **parts} == dict(authorizer_pb2.GrantPart.items())
