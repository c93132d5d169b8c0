"""The decision beside the naive oracle, and the built-in catalog enumerated whole."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.core.catalog import Catalog, Level
from doorward.core.entries import TOKEN_COMPILED, TokenEntry
from doorward.core.matrix import (
    AccountEntry,
    AccountState,
    DenyReason,
    Grant,
    account_entry,
    compile_grants,
    compile_token,
    decide,
    effective_state,
    held_permissions,
    is_current,
    token_entry,
)
from doorward.v1 import types_pb2
from tests.support import oracle, strategies
from tests.support.oracle import NaiveGrant, NaiveToken, World
from tests.support.strategies import ACCOUNTS, NOW_US, PROJECTS

BUILTIN = Path(__file__).parents[3] / "server/doorward_server/catalog/permission_sets.toml"
BUILTIN_DOCUMENT: dict[str, Any] = tomllib.loads(BUILTIN.read_text("utf-8"))
BUILTIN_CATALOG = Catalog.build(BUILTIN_DOCUMENT, 1)
EXAMPLES = settings(deadline=None, max_examples=150)
MORE_EXAMPLES = settings(deadline=None, max_examples=500)


def entry_of(token: NaiveToken) -> TokenEntry:
    return token_entry(
        token.token_id,
        token.account_id,
        revoked=token.revoked,
        disabled=token.disabled,
        expire_us=token.expire_us,
        secrets=(),
        grants=[(grant.permission_set, grant.project_ids) for grant in token.grants],
    )


def account_of(world: World, account_id: str) -> AccountEntry:
    return account_entry(account_id, world.plan_of[account_id], AccountState[world.state_of[account_id]])


def a_token(*grants: Grant, revoked: bool = False, disabled: bool = False, expire_us: int | None = None) -> TokenEntry:
    return token_entry(
        "A" * 16, "acme", revoked=revoked, disabled=disabled, expire_us=expire_us, secrets=(), grants=grants
    )


def every_ask(world: World) -> list[tuple[str, str | None, str | None]]:
    """Every permission at every account or project, existing or not: (permission, account_id, project_id)."""
    at_accounts = [
        (permission, account_id, None)
        for permission in sorted(oracle.account_permissions(world.document))
        for account_id in (*ACCOUNTS, "nobody")
    ]
    at_projects = [
        (permission, None, project_id)
        for permission in sorted(oracle.project_permissions(world.document))
        for project_id in (*PROJECTS, "p_unknown")
    ]
    return [*at_accounts, *at_projects]


def answers(catalog: Catalog, world: World, token: NaiveToken, entry: TokenEntry) -> dict[Any, str]:
    found = {}
    for permission, account_id, project_id in every_ask(world):
        known = catalog.find_permission(permission)
        assert known is not None
        found[permission, account_id, project_id] = decide(
            entry,
            account_of(world, token.account_id),
            known,
            account_id=account_id,
            project_id=project_id,
            project_account_id=world.owner_of.get(project_id) if project_id is not None else None,
            now_us=NOW_US,
        ).name
    return found


def expectations(world: World, token: NaiveToken) -> dict[Any, str]:
    return {ask: oracle.expected(world, token, *ask, NOW_US) for ask in every_ask(world)}


@MORE_EXAMPLES
@given(strategies.worlds(), strategies.tokens())
def test_every_decision_is_the_one_the_oracle_expects(world: World, token: NaiveToken) -> None:
    catalog = Catalog.build(world.document, 1)

    entry = compile_token(entry_of(token), catalog, world.plan_of[token.account_id])

    assert answers(catalog, world, token, entry) == expectations(world, token)


@EXAMPLES
@given(strategies.worlds(), strategies.worlds(), strategies.tokens())
def test_a_token_recompiled_after_a_change_of_catalog_and_plan_decides_as_if_new(
    before: World, after: World, token: NaiveToken
) -> None:
    entry = compile_token(entry_of(token), Catalog.build(before.document, 1), before.plan_of[token.account_id])
    catalog = Catalog.build(after.document, 2)

    entry = compile_token(entry, catalog, after.plan_of[token.account_id])

    assert answers(catalog, after, token, entry) == expectations(after, token)


@EXAMPLES
@given(strategies.worlds(), strategies.tokens(), st.sampled_from(PROJECTS), st.sampled_from([None, *ACCOUNTS]))
def test_a_project_deleted_and_perhaps_put_anew_is_whose_it_is_now(
    world: World, token: NaiveToken, project_id: str, new_owner: str | None
) -> None:
    catalog = Catalog.build(world.document, 1)
    entry = compile_token(entry_of(token), catalog, world.plan_of[token.account_id])
    owner_of = {project: owner for project, owner in world.owner_of.items() if project != project_id}
    if new_owner is not None:
        owner_of[project_id] = new_owner
    changed = World(world.document, world.plan_of, world.state_of, owner_of)

    assert answers(catalog, changed, token, entry) == expectations(changed, token)


@EXAMPLES
@given(strategies.worlds(), strategies.tokens())
def test_held_permissions_are_exactly_what_checks_allow(world: World, token: NaiveToken) -> None:
    catalog = Catalog.build(world.document, 1)
    live = NaiveToken(token.token_id, token.account_id, False, False, None, token.grants)
    active = World(world.document, world.plan_of, dict.fromkeys(ACCOUNTS, "ACTIVE"), world.owner_of)
    entry = compile_token(entry_of(live), catalog, world.plan_of[live.account_id])
    allowed = answers(catalog, active, live, entry)

    places: list[tuple[str | None, str | None]] = [(live.account_id, None)]
    places += [(None, project) for project, owner in world.owner_of.items() if owner == live.account_id]
    for account_id, project_id in places:
        held = held_permissions(entry[TOKEN_COMPILED], catalog, project_id)
        passed = [ask[0] for ask, name in allowed.items() if ask[1:] == (account_id, project_id) and name == "ALLOWED"]
        assert list(held) == sorted(passed)


# ---- the built-in catalog, whole

BUILTIN_WORLD = World(
    BUILTIN_DOCUMENT,
    plan_of={"acme": "", "globex": "enterprise"},  # acme's is set by each case
    state_of={"acme": "ACTIVE", "globex": "ACTIVE"},
    owner_of={"p1": "acme", "p2": "acme", "q1": "globex"},
)
# scope of the grant, and the account and project that are asked about
SCOPES: dict[str, tuple[tuple[str, ...] | None, str, str]] = {
    "all projects": (None, "acme", "p1"),
    "named project": (("p1",), "acme", "p1"),
    "another project of the account": (("p1",), "acme", "p2"),
    "another account": (None, "globex", "q1"),
    "another account, its project named": (("q1",), "globex", "q1"),
}


def builtin_decision(permission_set: str, plan: str, scope: str, permission: str) -> tuple[str, str]:
    """What core decides, and what is expected of the text of the TOML file alone."""
    project_ids, asked_account, asked_project = SCOPES[scope]
    at_account = permission in oracle.account_permissions(BUILTIN_DOCUMENT)
    account_id, project_id = (asked_account, None) if at_account else (None, asked_project)
    world = World(BUILTIN_DOCUMENT, {"acme": plan}, BUILTIN_WORLD.state_of, BUILTIN_WORLD.owner_of)
    token = NaiveToken("A" * 16, "acme", False, False, None, (NaiveGrant(permission_set, project_ids),))
    known = BUILTIN_CATALOG.find_permission(permission)
    assert known is not None
    decided = decide(
        compile_token(entry_of(token), BUILTIN_CATALOG, plan),
        account_of(world, "acme"),
        known,
        account_id=account_id,
        project_id=project_id,
        project_account_id=world.owner_of[asked_project] if project_id is not None else None,
        now_us=NOW_US,
    )
    return decided.name, oracle.expected(world, token, permission, account_id, project_id, NOW_US)


@pytest.mark.parametrize("plan", ["team", "enterprise"])
@pytest.mark.parametrize("permission_set", sorted(BUILTIN_DOCUMENT["permission_sets"]))
def test_the_builtin_catalog_decides_as_its_text_says(permission_set: str, plan: str) -> None:
    cases = [(s, p) for s in SCOPES for p in sorted(oracle.every_permission(BUILTIN_DOCUMENT))]

    decided = {(s, p): builtin_decision(permission_set, plan, s, p)[0] for s, p in cases}

    assert decided == {(s, p): builtin_decision(permission_set, plan, s, p)[1] for s, p in cases}


def test_the_builtin_catalog_has_all_that_is_enumerated() -> None:
    assert set(BUILTIN_CATALOG.permissions) == oracle.every_permission(BUILTIN_DOCUMENT)
    assert len(BUILTIN_CATALOG.permissions) == 52
    assert len(BUILTIN_CATALOG.permission_sets) == 21
    assert set(BUILTIN_CATALOG.plans) == {"team", "enterprise"}


# Read off the file by a person, so that oracle and core cannot be wrong alike.
BY_HAND = [
    ("account_admin", "team", "all projects", "service_tokens:write", "ALLOWED"),
    ("account_admin", "team", "all projects", "audit_logs:read", "ALLOWED"),
    ("account_admin", "team", "named project", "billing:read", "ALL_PROJECTS_REQUIRED"),
    ("account_admin", "team", "another account", "billing:read", "RESOURCE_NOT_IN_ACCOUNT"),
    ("account_viewer", "enterprise", "all projects", "jobs:read", "ALLOWED"),
    ("account_viewer", "enterprise", "all projects", "jobs:write", "PERMISSION_NOT_GRANTED"),
    ("account_viewer", "team", "all projects", "jobs:read", "GRANT_SUSPENDED_BY_PLAN"),
    ("account_viewer", "team", "all projects", "jobs:write", "PERMISSION_NOT_GRANTED"),
    ("job_admin", "team", "named project", "jobs:write", "ALLOWED"),
    ("job_admin", "team", "named project", "jobs:read", "ALLOWED"),
    ("job_admin", "team", "another project of the account", "jobs:write", "PROJECT_NOT_GRANTED"),
    ("job_admin", "team", "named project", "connections:read", "ALL_PROJECTS_REQUIRED"),
    ("job_admin", "team", "another account, its project named", "jobs:write", "RESOURCE_NOT_IN_ACCOUNT"),
    ("job_runner", "team", "named project", "runs:write", "GRANT_SUSPENDED_BY_PLAN"),
    ("job_runner", "team", "another project of the account", "runs:write", "PERMISSION_NOT_GRANTED"),
    ("job_runner", "enterprise", "another project of the account", "runs:write", "PROJECT_NOT_GRANTED"),
    ("job_runner", "enterprise", "named project", "runs:read", "ALLOWED"),
    ("member", "team", "all projects", "project_creation:write", "ALLOWED"),
    ("member", "team", "all projects", "public_models:read", "PERMISSION_NOT_GRANTED"),
    ("billing_admin", "enterprise", "named project", "billing:write", "ALL_PROJECTS_REQUIRED"),
    ("billing_admin", "team", "named project", "billing:write", "PERMISSION_NOT_GRANTED"),
]


@pytest.mark.parametrize(("permission_set", "plan", "scope", "permission", "reason"), BY_HAND)
def test_what_a_person_reads_in_the_builtin_catalog(
    permission_set: str, plan: str, scope: str, permission: str, reason: str
) -> None:
    assert builtin_decision(permission_set, plan, scope, permission) == (reason, reason)


# ---- the order of the obstacles

ACTIVE = account_entry("acme", "team", AccountState.ACTIVE)


@pytest.mark.parametrize(
    ("revoked", "disabled", "expire_us", "state", "reason"),
    [
        (False, False, None, AccountState.ACTIVE, DenyReason.ALLOWED),
        (False, False, NOW_US + 1, AccountState.ACTIVE, DenyReason.ALLOWED),
        (False, False, NOW_US, AccountState.ACTIVE, DenyReason.TOKEN_EXPIRED),
        (False, False, NOW_US - 1, AccountState.ACTIVE, DenyReason.TOKEN_EXPIRED),
        (False, True, NOW_US + 1, AccountState.ACTIVE, DenyReason.TOKEN_DISABLED),
        (False, True, NOW_US, AccountState.ACTIVE, DenyReason.TOKEN_EXPIRED),
        (True, True, NOW_US, AccountState.SUSPENDED, DenyReason.TOKEN_REVOKED),
        (False, False, None, AccountState.SUSPENDED, DenyReason.ACCOUNT_SUSPENDED),
        (False, True, None, AccountState.SUSPENDED, DenyReason.TOKEN_DISABLED),
        (False, False, None, AccountState.DELETED, DenyReason.TOKEN_REVOKED),
        (False, True, NOW_US, AccountState.DELETED, DenyReason.TOKEN_REVOKED),
    ],
)
def test_the_state_of_token_and_account_is_the_first_obstacle(
    revoked: bool, disabled: bool, expire_us: int | None, state: AccountState, reason: DenyReason
) -> None:
    token = a_token(Grant("account_admin", None), revoked=revoked, disabled=disabled, expire_us=expire_us)
    account = account_entry("acme", "team", state)

    assert effective_state(token, account, NOW_US) is reason
    decided = decide(
        compile_token(token, BUILTIN_CATALOG, "team"),
        account,
        BUILTIN_CATALOG.permissions["jobs:write"],
        account_id=None,
        project_id="p1",
        project_account_id="acme",
        now_us=NOW_US,
    )
    assert decided is reason


def test_an_account_state_that_is_not_known_here_is_not_active() -> None:
    assert effective_state(a_token(), account_entry("acme", "team", 4), NOW_US) is DenyReason.ACCOUNT_SUSPENDED


def test_an_entry_that_was_never_compiled_gives_nothing() -> None:
    token = a_token(Grant("account_admin", None))

    for permission in BUILTIN_CATALOG.permissions.values():
        at_account = permission.level is Level.ACCOUNT
        reason = decide(
            token,
            ACTIVE,
            permission,
            account_id="acme" if at_account else None,
            project_id=None if at_account else "p1",
            project_account_id="acme",
            now_us=NOW_US,
        )
        assert reason is DenyReason.PERMISSION_NOT_GRANTED


@pytest.mark.parametrize("permission", ["jobs:read", "billing:read"])
def test_a_check_that_names_no_fitting_resource_is_never_allowed(permission: str) -> None:
    token = compile_token(a_token(Grant("account_admin", None)), BUILTIN_CATALOG, "team")
    known = BUILTIN_CATALOG.permissions[permission]

    reason = decide(token, ACTIVE, known, account_id=None, project_id=None, project_account_id="acme", now_us=NOW_US)

    assert reason is DenyReason.RESOURCE_NOT_IN_ACCOUNT


# ---- the contract


def test_reasons_and_states_have_the_numbers_of_the_contract() -> None:
    reasons = {f"DENY_REASON_{reason.name}": int(reason) for reason in DenyReason}
    reasons["DENY_REASON_UNSPECIFIED"] = reasons.pop("DENY_REASON_ALLOWED")

    assert reasons == dict(types_pb2.DenyReason.items())
    states = {f"ACCOUNT_STATE_{state.name}": int(state) for state in AccountState}
    assert {"ACCOUNT_STATE_UNSPECIFIED": 0, **states} == dict(types_pb2.AccountState.items())


# ---- compiling


def test_compiled_is_current_only_for_its_catalog_and_plan() -> None:
    compiled = compile_grants([Grant("job_admin", None)], BUILTIN_CATALOG, "team")

    assert is_current(compiled, BUILTIN_CATALOG, "team")
    assert not is_current(compiled, BUILTIN_CATALOG, "enterprise")
    assert not is_current(compiled, Catalog.build(BUILTIN_DOCUMENT, 2), "team")
    assert not is_current(a_token()[TOKEN_COMPILED], Catalog.build(BUILTIN_DOCUMENT, 0), "")


def test_compile_token_returns_a_current_entry_itself() -> None:
    token = compile_token(a_token(Grant("job_admin", None)), BUILTIN_CATALOG, "team")

    assert compile_token(token, BUILTIN_CATALOG, "team") is token
    assert compile_token(token, BUILTIN_CATALOG, "enterprise")[:TOKEN_COMPILED] == token[:TOKEN_COMPILED]


def test_tokens_with_the_same_grants_share_what_was_compiled() -> None:
    on_all = [compile_grants([Grant("job_admin", None)], BUILTIN_CATALOG, "team") for _ in range(2)]
    named = [compile_grants([Grant("job_admin", ("p1", "p2"))], BUILTIN_CATALOG, "team") for _ in range(2)]

    assert on_all[0] is on_all[1]
    assert named[0] == named[1]
    assert all(here is there for here, there in zip(named[0], named[1], strict=True) if here is not None)


def test_a_set_is_granted_by_its_name_and_not_by_an_alias() -> None:
    compiled = compile_grants([Grant("owner", None)], BUILTIN_CATALOG, "enterprise")

    assert held_permissions(compiled, BUILTIN_CATALOG, None) == ()
    assert held_permissions(compiled, BUILTIN_CATALOG, "p1") == ()
