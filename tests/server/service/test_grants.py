"""Which grants can be given, and which one that a token has already may stay as it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from doorward.core.catalog import Catalog
from doorward_server.errors import FailedPrecondition, InvalidArgument, Violation
from doorward_server.model import Account, AccountState, Grant
from doorward_server.service.grants import GrantRules, grant_violations, settled_grants

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CATALOG = Catalog.build(
    {
        "schema": 1,
        "version": "test",
        "account_resources": {"billing": {"title": "Billing", "actions": ["read", "write"]}},
        "project_resources": {"jobs": {"title": "Jobs", "actions": ["read", "write"]}},
        "permission_sets": {
            "jobs": {"title": "Jobs", "write": ["jobs"], "aliases": ["workers"]},
            "costly": {"title": "Costly", "read": ["jobs"], "aliases": ["dear"]},
            "bills": {"title": "Bills", "read": ["billing"]},
        },
        "plans": {"team": {"title": "Team", "permission_sets": ["jobs", "bills"]}},
    },
    1,
)
ACCOUNT = Account("acme", "Acme", "team", AccountState.ACTIVE, NOW, NOW, 1)
FORGOTTEN = Grant("forgotten", ("gone", "p1"))


def rules(*held: Grant, **fields: Any) -> GrantRules:
    return GrantRules(ACCOUNT, CATALOG, {"p1", "p2"}, held=held, **fields)


def wrong(*grants: Grant, held: tuple[Grant, ...] = ()) -> list[tuple[str, str]]:
    return [(violation.field, violation.reason) for violation in grant_violations(grants, rules(*held))]


def test_sets_go_by_name_and_everything_is_sorted() -> None:
    settled = settled_grants([Grant("workers", ("p2", "p1")), Grant("bills", None)], rules())

    assert settled == (Grant("bills", None), Grant("jobs", ("p1", "p2")))


@pytest.mark.parametrize(
    ("grant", "expected"),
    [
        (Grant("costly", None), [("grants[0].permission_set", "PERMISSION_SET_NOT_IN_PLAN")]),
        (Grant("nothing", None), [("grants[0].permission_set", "PERMISSION_SET_UNKNOWN")]),
        (Grant("bills", ("p1",)), [("grants[0]", "GRANT_WITHOUT_EFFECT")]),
        (Grant("jobs", ("p1", "p3")), [("grants[0].project_ids[1]", "PROJECT_NOT_IN_ACCOUNT")]),
    ],
)
def test_a_new_grant_is_judged(grant: Grant, expected: list[tuple[str, str]]) -> None:
    assert wrong(grant) == expected
    # Another grant of the same set gives no right to this one.
    assert wrong(grant, held=(Grant(grant.permission_set, ("p2",)),)) == expected


@pytest.mark.parametrize("grant", [Grant("costly", ("p1", "p2")), Grant("dear", ("p2", "p1")), FORGOTTEN])
def test_a_grant_that_stays_as_it_is_is_kept_whatever_became_of_its_set(grant: Grant) -> None:
    held = (Grant("costly", ("p1", "p2")), FORGOTTEN)

    (settled,) = settled_grants([grant], rules(*held))

    assert settled in held


@pytest.mark.parametrize(
    "grant",
    [Grant("costly", ("p1",)), Grant("costly", None), Grant("forgotten", ("gone",)), Grant("forgotten", None)],
)
def test_a_grant_that_is_changed_in_any_way_is_judged_anew(grant: Grant) -> None:
    held = (Grant("costly", ("p1", "p2")), FORGOTTEN)

    assert {reason for _, reason in wrong(grant, held=held)} & {"PERMISSION_SET_NOT_IN_PLAN", "PERMISSION_SET_UNKNOWN"}


def test_a_kept_set_cannot_be_given_twice() -> None:
    held = (Grant("costly", ("p1", "p2")),)

    assert wrong(Grant("costly", ("p2", "p1")), Grant("dear", ("p1", "p2")), held=held) == [
        ("grants[1].permission_set", "FIELD_DUPLICATE")
    ]


def test_a_set_of_which_an_alias_was_made_stays_the_set_that_is_held() -> None:
    """A catalog may turn the name of a set that it drops into an alias of another: reading and writing back changes nothing."""
    held = (Grant("workers", None),)

    assert settled_grants([Grant("workers", None)], rules(*held)) == held


def test_only_a_plan_that_does_not_cover_is_a_precondition_and_all_is_told_beside_it() -> None:
    also_wrong = [Violation("token.expire_time", "is past", "FIELD_OUT_OF_RANGE")]

    with pytest.raises(FailedPrecondition) as alone:
        settled_grants([Grant("costly", None)], rules(field="token.grants"))
    with pytest.raises(InvalidArgument) as together:
        settled_grants([Grant("costly", None)], rules(field="token.grants"), also_wrong)

    assert alone.value.reason == "PERMISSION_SET_NOT_IN_PLAN"
    assert alone.value.metadata == {"account_id": "acme", "plan": "team", "permission_set": "costly"}
    assert [violation.field for violation in together.value.violations] == [
        "token.grants[0].permission_set",
        "token.expire_time",
    ]
