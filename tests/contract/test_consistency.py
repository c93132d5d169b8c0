"""How fresh an answer must be, for each RPC that takes a `consistency` (design section 3, Consistency)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from doorward.core.revision import Revision
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest, IntrospectTokenRequest, ListPermissionsRequest
from doorward.v1.types_pb2 import Consistency
from tests.support.wire import OwnAccount, ask, check, fresh_id, on, on_all, refusal_of, refused, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Stubs

RPCS = ("Check", "BatchCheck", "ListPermissions", "IntrospectToken")


@pytest.fixture(params=RPCS)
def asking(request: pytest.FixtureRequest, stubs: Stubs) -> Callable[[str, str, Consistency], Any]:
    """One RPC as a function of secret, project and consistency."""

    def ask_it(secret: str, project_id: str, consistency: Consistency) -> Any:
        if request.param == "Check":
            return check(stubs, secret, "jobs:read", project_id=project_id, consistency=consistency)
        if request.param == "BatchCheck":
            items = [BatchCheckItem(permission="jobs:read", project_id=project_id)]
            batch = BatchCheckRequest(secret=secret, items=items, consistency=consistency)
            return ask(stubs.authorizer.BatchCheck, batch, stubs.caller)
        if request.param == "ListPermissions":
            listing = ListPermissionsRequest(secret=secret, project_id=project_id, consistency=consistency)
            return ask(stubs.authorizer.ListPermissions, listing, stubs.caller)
        return ask(
            stubs.authorizer.IntrospectToken,
            IntrospectTokenRequest(secret=secret, consistency=consistency),
            stubs.caller,
        )

    return ask_it


def the_refusal(asking: Callable[[str, str, Consistency], Any], secret: str, consistency: Consistency) -> Any:
    with pytest.raises(Exception, match="StatusCode") as caught:
        asking(secret, "p1", consistency)
    return refusal_of(caught.value)


def test_an_answer_at_least_as_fresh_as_a_change_contains_it(
    account: OwnAccount, asking: Callable[[str, str, Consistency], Any]
) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id))
    revision = account.revoke(issued.token.token_id).propagation.revision

    answer = asking(issued.secret, project_id, Consistency(at_least_as_fresh=revision))

    assert Revision.parse(revision) <= Revision.parse(answer.revision)


def test_a_fully_consistent_answer_contains_every_change_before_it(
    account: OwnAccount, asking: Callable[[str, str, Consistency], Any]
) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id))
    revision = account.put_project(fresh_id("p")).propagation.revision

    answer = asking(issued.secret, project_id, Consistency(fully_consistent=True))

    assert Revision.parse(revision) <= Revision.parse(answer.revision)


def test_every_consistency_gives_the_same_verdicts(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued = account.issue(on("job_admin", project_id))
    ways = [
        None,
        Consistency(),
        Consistency(minimize_latency=True),
        Consistency(fully_consistent=True),
        Consistency(at_least_as_fresh=issued.propagation.revision),
        Consistency(at_least_as_fresh="1.0"),
    ]

    def verdicts() -> list[str]:
        return [
            verdict(check(stubs, issued.secret, "jobs:read", project_id=project_id, consistency=way)) for way in ways
        ]

    before = verdicts()
    account.revoke(issued.token.token_id)
    assert (before, verdicts()) == (["ALLOWED"] * 6, ["TOKEN_REVOKED"] * 6)


def test_a_revision_that_no_change_has_yet_is_refused(
    account: OwnAccount, asking: Callable[[str, str, Consistency], Any]
) -> None:
    end = Revision.parse(account.put_project(fresh_id("p")).propagation.revision)
    beyond = f"{end.epoch}.{end.number + 1}"

    refusal = the_refusal(asking, "any secret", Consistency(at_least_as_fresh=beyond))

    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "REVISION_BEYOND_END")
    assert refusal.metadata == {"revision": beyond, "end": str(end)}


def test_a_revision_of_another_epoch_is_refused(asking: Callable[[str, str, Consistency], Any]) -> None:
    refusal = the_refusal(asking, "any secret", Consistency(at_least_as_fresh="7.1"))

    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "REVISION_OF_ANOTHER_EPOCH")
    assert refusal.metadata == {"revision": "7.1", "epoch": "1"}


@pytest.mark.parametrize(
    ("consistency", "field", "reason"),
    [
        (Consistency(at_least_as_fresh=""), "consistency.at_least_as_fresh", "FIELD_REQUIRED"),
        (Consistency(at_least_as_fresh="soon"), "consistency.at_least_as_fresh", "FIELD_MALFORMED"),
        (Consistency(at_least_as_fresh=f"1.{2**63}"), "consistency.at_least_as_fresh", "FIELD_MALFORMED"),
        (Consistency(minimize_latency=False), "consistency.minimize_latency", "FIELD_MALFORMED"),
        (Consistency(fully_consistent=False), "consistency.fully_consistent", "FIELD_MALFORMED"),
    ],
)
def test_a_demand_for_nothing_is_refused(
    asking: Callable[[str, str, Consistency], Any], consistency: Consistency, field: str, reason: str
) -> None:
    refusal = the_refusal(asking, "any secret", consistency)

    assert (refusal.code, refusal.reason, refusal.bad_fields) == (
        "INVALID_ARGUMENT",
        "INVALID_FIELDS",
        [(field, reason)],
    )


def test_a_wrong_consistency_is_told_together_with_the_other_bad_fields(stubs: Stubs) -> None:
    wrong = Consistency(at_least_as_fresh="soon")
    batch = BatchCheckRequest(secret="x" * 129, consistency=wrong)
    listing = ListPermissionsRequest(project_id="a b", consistency=wrong)

    with pytest.raises(Exception, match="StatusCode") as caught:
        check(stubs, "", "jobs:read", account_id="a b", consistency=wrong)
    found = [
        refusal_of(caught.value).bad_fields,
        refused(stubs.authorizer.BatchCheck, batch, stubs.caller).bad_fields,
        refused(stubs.authorizer.ListPermissions, listing, stubs.caller).bad_fields,
        refused(stubs.authorizer.IntrospectToken, IntrospectTokenRequest(consistency=wrong), stubs.caller).bad_fields,
    ]

    bad = ("consistency.at_least_as_fresh", "FIELD_MALFORMED")
    assert found == [
        [
            ("account_id", "FIELD_MALFORMED"),
            ("account_id", "PERMISSION_LEVEL_MISMATCH"),
            bad,
            ("secret", "FIELD_REQUIRED"),
        ],
        [bad, ("items", "FIELD_REQUIRED"), ("secret", "FIELD_TOO_LONG")],
        [bad, ("project_id", "FIELD_MALFORMED"), ("secret", "FIELD_REQUIRED")],
        [bad, ("secret", "FIELD_REQUIRED")],
    ]


def test_many_fully_consistent_calls_at_once_are_all_answered(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    secret = account.issue(on_all("job_admin")).secret
    items = [BatchCheckItem(permission="jobs:read", project_id=project_id)]
    request = BatchCheckRequest(secret=secret, items=items, consistency=Consistency(fully_consistent=True))

    calls = [stubs.authorizer.BatchCheck.future(request, metadata=stubs.caller, timeout=30) for _ in range(32)]

    assert [call.result().results[0].allowed for call in calls] == [True] * 32
