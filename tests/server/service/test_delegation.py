"""Nobody hands out more than they hold: the rule beside a naive oracle, and over every pair of permission sets."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.core.catalog import Catalog
from doorward.core.matrix import compile_grants
from doorward_server.catalog.load import builtin_text
from doorward_server.errors import PermissionDenied
from doorward_server.model import Caller, CallerKind, Grant, OperatorRole, Token
from doorward_server.service.delegation import Authority, Held, may_see, require_permission
from tests.support import minting, oracle, strategies
from tests.support.database import a_token
from tests.support.minting import facts_of, is_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.support.minting import Fact
    from tests.support.oracle import NaiveGrant, World

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SOON, LATER = NOW + timedelta(days=1), NOW + timedelta(days=2)
METHOD = "/doorward.v1.TokenAdmin/IssueToken"
MINTER = Caller(CallerKind.TOKEN, "M" * 16, account_id="acme", secret_version=1)
ADMIN = Caller(CallerKind.OPERATOR, "O" * 16, role=OperatorRole.ADMIN)

DOCUMENTS: dict[str, dict[str, Any]] = {"built-in": tomllib.loads(builtin_text()), "minting": minting.DOCUMENT}
CATALOGS = {name: Catalog.build(document, 1) for name, document in DOCUMENTS.items()}
MINTING = CATALOGS["minting"]
# Whatever scope either has: all projects, one that both name, one that only the other names.
SCOPES = (None, ("p1",), ("p1", "p2"), ("p3",))


def of_minter(
    *grants: Grant,
    catalog: Catalog = MINTING,
    plan: str = "large",
    expire_time: datetime | None = None,
    allow_self_rotation: bool = False,
) -> Authority:
    held = Held(compile_grants(grants, catalog, plan), expire_time, allow_self_rotation)
    return Authority(MINTER, catalog, held)


def with_grants(*grants: Grant, expire_time: datetime | None = None, allow_self_rotation: bool = False) -> Token:
    made = a_token("T" * 16, "acme", NOW)
    fields = {name: getattr(made, name) for name in made.__slots__}
    return Token(**{**fields, "grants": grants, "expire_time": expire_time, "allow_self_rotation": allow_self_rotation})


def excess(authority: Authority, token: Token) -> str | None:
    """What the refusal names; None: it may be handed out."""
    try:
        authority.require_within(token)
    except PermissionDenied as caught:
        refused = caught
    else:
        return None
    assert refused.reason == "EXCEEDS_CALLER"
    assert refused.message.endswith(f"lacks: {refused.metadata['excess']}")
    return refused.metadata["excess"]


def named(grants: Iterable[NaiveGrant]) -> tuple[Grant, ...]:
    return tuple(Grant(grant.permission_set, grant.project_ids) for grant in grants)


def covered(document: Mapping[str, Any], plan: str) -> set[str]:
    return oracle.covered_sets(document, plan)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[World, tuple[Grant, ...], tuple[Grant, ...]]:
    """A catalog with plans, what a caller was granted, and what it would hand out: often a part of the former."""
    world, held = draw(strategies.worlds()), named(draw(strategies.grants()))
    part = tuple(grant for grant in held if draw(st.booleans()))
    return world, held, draw(st.one_of(st.just(part), strategies.grants().map(named), st.just(held)))


@given(pairs())
@settings(deadline=None, max_examples=300)
def test_what_may_be_handed_out_is_what_the_naive_oracle_says(
    pair: tuple[World, tuple[Grant, ...], tuple[Grant, ...]],
) -> None:
    world, held, wanted = pair
    catalog, plan = Catalog.build(world.document, 1), world.plan_of["acme"]
    active = facts_of(world.document, held, covered(world.document, plan))
    unknown = [grant for grant in wanted if grant.permission_set not in world.document["permission_sets"]]
    expected = not unknown and is_within(facts_of(world.document, wanted), active)

    told = excess(of_minter(*held, catalog=catalog, plan=plan), with_grants(*wanted))

    assert (told is None) is expected


@pytest.mark.parametrize("which", CATALOGS)
def test_every_pair_of_permission_sets_at_every_pair_of_scopes(which: str) -> None:
    document, catalog = DOCUMENTS[which], CATALOGS[which]
    plan = next(name for name in document["plans"] if covered(document, name) == set(document["permission_sets"]))
    grants = [Grant(name, scope) for name in catalog.permission_sets for scope in SCOPES]
    facts: dict[Grant, frozenset[Fact]] = {grant: facts_of(document, [grant]) for grant in grants}
    outcomes = set()

    for holding in grants:
        authority = of_minter(holding, catalog=catalog, plan=plan)
        for wanted in grants:
            allowed = excess(authority, with_grants(wanted)) is None
            assert allowed is is_within(facts[wanted], facts[holding]), (holding, wanted)
            outcomes.add(allowed)

    assert outcomes == {True, False}


@pytest.mark.parametrize("which", CATALOGS)
def test_which_sets_can_mint_and_what(which: str) -> None:
    """What an administrator would want to read off the catalog: who mints, and which sets each may hand out."""
    document, catalog = DOCUMENTS[which], CATALOGS[which]
    plan = list(document["plans"])[1]
    minters = [
        name for name in catalog.permission_sets
        if "service_tokens:write" in oracle.permissions_in_set(document, name)
    ]  # fmt: skip
    mints = {
        minter: {
            name for name in catalog.permission_sets
            if excess(of_minter(Grant(minter, None), catalog=catalog, plan=plan), with_grants(Grant(name, None))) is None
        }
        for minter in minters
    }  # fmt: skip

    if which == "built-in":
        assert mints == {"account_admin": set(catalog.permission_sets)}
    else:
        assert mints == {
            "everything": set(catalog.permission_sets),
            "minter": {"minter", "token_viewer"},
            "jobs_minter": {"minter", "token_viewer", "jobs_minter", "jobs_viewer"},
            "runs_minter": {"minter", "token_viewer", "runs_minter", "metadata_only"},
            "billing_minter": {"minter", "token_viewer", "billing_minter", "billing_viewer"},
        }


def test_two_grants_together_hold_what_neither_does_alone() -> None:
    jobs, runs = Grant("jobs_viewer", ("p1",)), Grant("runs_minter", None)
    wanted = with_grants(Grant("runner", ("p1",)))

    assert excess(of_minter(jobs, Grant("jobs_admin", ("p1",))), wanted) is None
    assert excess(of_minter(jobs, runs), wanted) == "runs:write on project p1"


def test_every_project_there_is_by_name_is_not_all_projects() -> None:
    """A project that is made tomorrow would be reached by the one and not by the other."""
    authority = of_minter(Grant("jobs_minter", ("p1", "p2")))

    assert excess(authority, with_grants(Grant("jobs_viewer", ("p2", "p1")))) is None
    assert excess(authority, with_grants(Grant("jobs_viewer", None))) == "jobs:read on all projects"


def test_what_the_callers_plan_suspends_it_does_not_hold() -> None:
    holding, wanted = Grant("jobs_minter", None), with_grants(Grant("jobs_viewer", None))

    assert excess(of_minter(holding, plan="small"), wanted) is None
    assert excess(of_minter(holding, plan="bare"), wanted) == "jobs:read on all projects"
    assert excess(of_minter(holding, plan="vanished"), wanted) == "jobs:read on all projects"


def test_a_suspended_grant_of_the_other_token_counts_in_full() -> None:
    """Tomorrow's plan may cover it, and then nobody is asked again."""
    wanted = with_grants(Grant("metadata_only", None), Grant("billing_viewer", None))
    holding = (Grant("metadata_only", None), Grant("billing_minter", None))

    assert not MINTING.covers("bare", "billing_viewer")
    assert excess(of_minter(*holding, plan="bare"), wanted) == "billing:read at the account"
    assert excess(of_minter(*holding, plan="large"), wanted) is None


def test_a_set_that_the_catalog_does_not_know_exceeds_everybody_even_who_holds_it() -> None:
    gone = Grant("forgotten", None)

    told = excess(of_minter(gone, Grant("everything", None)), with_grants(gone))

    assert told == "permission set forgotten, which the catalog does not know"


def test_what_a_grant_on_named_projects_never_gives_is_neither_held_nor_handed_out() -> None:
    of_account_on_projects = Grant("billing_admin", ("p1",))

    assert excess(of_minter(Grant("jobs_viewer", ("p1",))), with_grants(of_account_on_projects)) is None
    told = excess(of_minter(of_account_on_projects), with_grants(Grant("billing_viewer", None)))
    assert told == "billing:read at the account"


@pytest.mark.parametrize(
    ("own", "wanted", "refused"),
    [
        (None, None, False),
        (None, LATER, False),
        (SOON, SOON, False),
        (LATER, SOON, False),
        (SOON, SOON + timedelta(microseconds=1), True),
        (SOON, LATER, True),
        (SOON, None, True),
    ],
)
def test_nobody_hands_out_a_longer_life_than_its_own(
    own: datetime | None, wanted: datetime | None, refused: bool
) -> None:
    grant = Grant("minter", None)

    told = excess(of_minter(grant, expire_time=own), with_grants(grant, expire_time=wanted))

    assert told == ("a life beyond 2026-11-02T00:00:00+00:00" if refused else None)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_self_rotation_is_handed_out_only_by_who_has_it(own: bool, wanted: bool) -> None:
    grant = Grant("minter", None)

    told = excess(of_minter(grant, allow_self_rotation=own), with_grants(grant, allow_self_rotation=wanted))

    assert told == ("allow_self_rotation" if wanted and not own else None)


def test_the_callers_own_secret_is_rotated_only_if_it_may_rotate_itself() -> None:
    """Else RotateToken with its own id would do what RotateSelf refuses."""
    own = Token(**{**{name: getattr(with_grants(), name) for name in Token.__slots__}, "token_id": MINTER.subject_id})

    of_minter(Grant("minter", None)).require_may_rotate(with_grants())
    of_minter(Grant("minter", None), allow_self_rotation=True).require_may_rotate(own)
    Authority(ADMIN, MINTING).require_may_rotate(own)
    with pytest.raises(PermissionDenied) as refused:
        of_minter(Grant("minter", None)).require_may_rotate(own)

    assert (refused.value.reason, refused.value.metadata) == ("EXCEEDS_CALLER", {"excess": "allow_self_rotation"})


def test_rotating_hands_out_what_the_token_holds() -> None:
    with pytest.raises(PermissionDenied) as refused:
        of_minter(Grant("minter", None)).require_may_rotate(with_grants(Grant("jobs_viewer", ("p1",))))

    assert refused.value.metadata == {"excess": "jobs:read on project p1"}


def test_an_excess_is_named_whole_if_it_is_short() -> None:
    wanted = with_grants(Grant("jobs_admin", ("p1",)), Grant("runner", ("p1", "p2")), allow_self_rotation=True)

    told = excess(of_minter(Grant("jobs_viewer", None), expire_time=NOW), wanted)

    assert told == (
        "a life beyond 2026-11-01T00:00:00+00:00; allow_self_rotation; "
        "jobs:write on project p1; runs:read on project p1; runs:write on project p1 and 2 more"
    )


def test_a_boundless_excess_is_counted_and_stays_short() -> None:
    """A request may name a thousand projects in each of a hundred grants."""
    projects = tuple(f"p{number}" for number in range(1000))

    told = excess(
        of_minter(Grant("minter", None)), with_grants(*(Grant(name, projects) for name in ("runner", "jobs_admin")))
    )

    assert told is not None
    assert told.endswith(" and 3995 more")
    assert told.count(";") == 4


def test_an_operator_hands_out_everything() -> None:
    Authority(ADMIN, MINTING).require_within(
        with_grants(Grant("everything", None), Grant("forgotten", None), allow_self_rotation=True)
    )


@pytest.mark.parametrize("permission", ["service_tokens:read", "service_tokens:write"])
@pytest.mark.parametrize("name", MINTING.permission_sets)
@pytest.mark.parametrize("scope", [None, ("p1",)])
def test_who_may_call_is_who_holds_the_permission_at_the_account(
    permission: str, name: str, scope: tuple[str, ...] | None
) -> None:
    compiled = compile_grants([Grant(name, scope)], MINTING, "large")
    holds = scope is None and permission in oracle.permissions_in_set(minting.DOCUMENT, name)

    if holds:
        require_permission(MINTER, compiled, MINTING, METHOD, permission)
    else:
        with pytest.raises(PermissionDenied) as refused:
            require_permission(MINTER, compiled, MINTING, METHOD, permission)
        assert (refused.value.reason, refused.value.metadata) == ("CALLER_NOT_PERMITTED", {"method": METHOD})


def test_a_catalog_without_the_permission_lets_no_token_in() -> None:
    document = {
        **minting.DOCUMENT,
        "account_resources": {"billing": minting.DOCUMENT["account_resources"]["billing"]},
        # First in its table, so that its bits are those of `billing` at the account.
        "project_resources": {
            "service_tokens": minting.DOCUMENT["account_resources"]["service_tokens"],
            **minting.DOCUMENT["project_resources"],
        },
        "permission_sets": {"everything": minting.DOCUMENT["permission_sets"]["everything"]},
        "plans": {"large": minting.DOCUMENT["plans"]["large"]},
    }
    of_projects = Catalog.build(document, 1)
    compiled = compile_grants([Grant("everything", None)], of_projects, "large")

    for permission in ("service_tokens:write", "no_such:write"):
        with pytest.raises(PermissionDenied):
            require_permission(MINTER, compiled, of_projects, METHOD, permission)


def test_only_its_own_account_exists_for_a_token() -> None:
    assert may_see(MINTER, "acme")
    assert not may_see(MINTER, "globex")
    assert may_see(ADMIN, "globex")
