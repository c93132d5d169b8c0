"""The built-in catalog enumerated whole, as callers meet it: every set, permission, scope and plan, by every RPC that tells.

What is expected is read off the catalog's text by the naive oracle. Each set's tokens are issued once, under the plan that
covers everything; a change of plan then suspends what it does not cover.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from doorward.v1 import types_pb2
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest, BatchCheckResponse, ListPermissionsRequest
from tests.support import oracle
from tests.support.oracle import NaiveGrant, NaiveToken, World
from tests.support.wire import OwnAccount, an_account, ask, check, on, on_all, refused, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.server import Stubs

DOCUMENT: dict[str, Any] = tomllib.loads(
    resources.files("doorward_server.catalog").joinpath("permission_sets.toml").read_text(encoding="utf-8")
)
SETS = sorted(DOCUMENT["permission_sets"])
UNARY_SETS = ("job_admin", "account_viewer", "read_only")


class Ask(NamedTuple):
    """A permission on an account or on a project."""

    permission: str
    account_id: str | None
    project_id: str | None

    @property
    def resource(self) -> dict[str, str]:
        """The one that is set, as a request takes it."""
        return {"project_id": self.project_id} if self.project_id else {"account_id": self.account_id or ""}


@dataclass(frozen=True)
class Issued:
    """A token with one grant, as the server has it and as the oracle does."""

    secret: str
    naive: NaiveToken


@dataclass(frozen=True)
class Everything:
    """Two accounts, and of every set a token on all projects and one on the first account's first project."""

    account: OwnAccount
    other: OwnAccount
    issued: tuple[Issued, ...]

    def world(self, plan: str) -> World:
        both = (self.account, self.other)
        return World(
            DOCUMENT,
            plan_of={self.account.account_id: plan, self.other.account_id: "enterprise"},
            state_of={each.account_id: "ACTIVE" for each in both},
            owner_of={project_id: each.account_id for each in both for project_id in each.project_ids},
        )

    def asks(self) -> list[Ask]:
        """Every permission on the own account or projects and on another account's."""
        at_accounts = [
            Ask(permission, account_id, None)
            for permission in sorted(oracle.account_permissions(DOCUMENT))
            for account_id in (self.account.account_id, self.other.account_id)
        ]
        at_projects = [
            Ask(permission, None, project_id)
            for permission in sorted(oracle.project_permissions(DOCUMENT))
            for project_id in (*self.account.project_ids, *self.other.project_ids)
        ]
        return [*at_accounts, *at_projects]


@pytest.fixture(scope="module")
def everything(stubs: Stubs) -> Everything:
    """Issues them all."""
    account, other = an_account(stubs, projects=2), an_account(stubs, projects=1)
    issued = []
    for name in SETS:
        scopes: list[tuple[str, ...] | None] = [None]
        if oracle.permissions_in_set(DOCUMENT, name) & oracle.project_permissions(DOCUMENT):
            scopes.append(account.project_ids[:1])
        for project_ids in scopes:
            answer = account.issue(on_all(name) if project_ids is None else on(name, *project_ids))
            grants = (NaiveGrant(name, project_ids),)
            naive = NaiveToken(answer.token.token_id, account.account_id, False, False, None, grants)
            issued.append(Issued(answer.secret, naive))
    return Everything(account, other, tuple(issued))


@pytest.fixture(scope="module", params=["enterprise", "team"])
def plan(request: pytest.FixtureRequest, everything: Everything) -> str:
    """The plan that the tokens' account is on now."""
    everything.account.set_plan(request.param)
    return str(request.param)


def batches(stubs: Stubs, wanted: Sequence[tuple[str, Ask]]) -> Iterator[BatchCheckResponse]:
    for start in range(0, len(wanted), 1000):
        items = [
            BatchCheckItem(secret=secret, permission=asked.permission, **asked.resource)
            for secret, asked in wanted[start : start + 1000]
        ]
        yield ask(stubs.authorizer.BatchCheck, BatchCheckRequest(items=items), stubs.caller)


def expectations(everything: Everything, plan: str, issued: Sequence[Issued]) -> dict[tuple[str, Ask], str]:
    world = everything.world(plan)
    return {
        (each.secret, asked): oracle.expected(world, each.naive, *asked, 0)
        for each in issued
        for asked in everything.asks()
    }


def test_everything_that_is_in_the_catalog_is_asked(everything: Everything) -> None:
    permissions = {asked.permission for asked in everything.asks()}
    granted = {grant for each in everything.issued for grant in each.naive.grants}

    assert permissions == oracle.every_permission(DOCUMENT)
    assert {grant.permission_set for grant in granted} == set(SETS)
    # All but the three sets without any project-level permission also on a named project.
    assert len(granted) == len(everything.issued) == 2 * len(SETS) - 3


def test_every_batched_check_is_answered_as_the_text_of_the_catalog_says(
    stubs: Stubs, everything: Everything, plan: str
) -> None:
    expected = expectations(everything, plan, everything.issued)

    results = [result for batch in batches(stubs, list(expected)) for result in batch.results]

    token_ids = {each.secret: each.naive.token_id for each in everything.issued}
    assert dict(zip(expected, map(verdict, results), strict=True)) == expected
    assert [result.token_id for result in results] == [token_ids[secret] for secret, _ in expected]
    assert {result.account_id for result in results} == {everything.account.account_id}


def test_every_verdict_that_a_catalog_can_give_occurs(everything: Everything) -> None:
    found = {
        expected
        for plan in ("enterprise", "team")
        for expected in expectations(everything, plan, everything.issued).values()
    }

    assert found == {
        "ALLOWED",
        "RESOURCE_NOT_IN_ACCOUNT",
        "GRANT_SUSPENDED_BY_PLAN",
        "ALL_PROJECTS_REQUIRED",
        "PROJECT_NOT_GRANTED",
        "PERMISSION_NOT_GRANTED",
    }


@pytest.mark.parametrize("permission_set", UNARY_SETS)
def test_every_single_check_of_a_set_is_answered_as_the_text_of_the_catalog_says(
    stubs: Stubs, everything: Everything, plan: str, permission_set: str
) -> None:
    of_the_set = [each for each in everything.issued if each.naive.grants[0].permission_set == permission_set]
    expected = expectations(everything, plan, of_the_set)

    found = {
        (secret, asked): verdict(
            check(stubs, secret, asked.permission, account_id=asked.account_id, project_id=asked.project_id)
        )
        for secret, asked in expected
    }

    assert len(of_the_set) == 2
    assert found == expected


def test_listed_permissions_are_exactly_those_that_checks_allow(
    stubs: Stubs, everything: Everything, plan: str
) -> None:
    expected, found = {}, {}
    for each in everything.issued:
        allowed = expectations(everything, plan, [each])
        for project_id in (None, *everything.account.project_ids):
            place = (None, project_id) if project_id else (everything.account.account_id, None)
            expected[each.secret, project_id] = sorted(
                asked.permission for (_, asked), says in allowed.items() if asked[1:] == place and says == "ALLOWED"
            )
            answer = ask(
                stubs.authorizer.ListPermissions,
                ListPermissionsRequest(secret=each.secret, project_id=project_id)
                if project_id
                else ListPermissionsRequest(secret=each.secret),
                stubs.caller,
            )
            found[each.secret, project_id] = list(answer.permissions)
            assert (answer.usable, answer.reason) == (True, types_pb2.DENY_REASON_UNSPECIFIED)

    assert found == expected


def test_no_permission_is_listed_on_another_accounts_project(stubs: Stubs, everything: Everything, plan: str) -> None:
    (elsewhere,) = everything.other.project_ids

    answers = [
        ask(
            stubs.authorizer.ListPermissions,
            ListPermissionsRequest(secret=each.secret, project_id=elsewhere),
            stubs.caller,
        )
        for each in everything.issued
    ]

    assert {(answer.usable, answer.reason, tuple(answer.permissions)) for answer in answers} == {
        (False, types_pb2.DENY_REASON_RESOURCE_NOT_IN_ACCOUNT, ())
    }


def test_a_set_without_project_level_permissions_is_refused_on_named_projects(
    stubs: Stubs, everything: Everything
) -> None:
    everything.account.set_plan("enterprise")
    without = [
        name for name in SETS if not oracle.permissions_in_set(DOCUMENT, name) & oracle.project_permissions(DOCUMENT)
    ]

    refusals = {
        name: refused(
            stubs.tokens.IssueToken,
            everything.account.wanted(on(name, everything.account.project_ids[0])),
            stubs.admin,
        ).bad_fields
        for name in without
    }

    assert sorted(refusals) == ["billing_admin", "manage_marketplace_apps", "webhooks_only"]
    assert set(map(tuple, refusals.values())) == {(("grants[0]", "GRANT_WITHOUT_EFFECT"),)}


@pytest.mark.parametrize("name", SETS)
def test_a_set_can_be_granted_only_where_the_plan_covers_it(stubs: Stubs, everything: Everything, name: str) -> None:
    everything.account.set_plan("team")
    wanted = everything.account.wanted(on_all(name), validate_only=True)

    if name in oracle.covered_sets(DOCUMENT, "team"):
        assert ask(stubs.tokens.IssueToken, wanted, stubs.admin).token.grants[0].permission_set == name
        return
    refusal = refused(stubs.tokens.IssueToken, wanted, stubs.admin)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "PERMISSION_SET_NOT_IN_PLAN")
    assert refusal.metadata == {
        "account_id": everything.account.account_id,
        "plan": "team",
        "permission_set": name,
    }
    assert refusal.bad_fields == [("grants[0].permission_set", "PERMISSION_SET_NOT_IN_PLAN")]
