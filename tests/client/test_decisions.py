"""What is asked and answered: a decision is true only if it allows, and every reason of the contract has a name."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2, status_pb2

from doorward import errors
from doorward._checks import (
    FULLY,
    batch_part,
    batch_request,
    batches_of,
    check_request,
    consistency_of,
    decision_of,
    decisions_of,
    demand_of,
)
from doorward.core import matrix
from doorward.core.revision import Revision, RevisionMalformed
from doorward.core.secret import SecretKind, generate, new_id
from doorward.decisions import Ask, DecidedBy, Decision, DenyReason
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2

ALLOWED = Decision(True, None, "t", "a", "1.1")
DENIED = Decision(False, DenyReason.TOKEN_REVOKED, "t", "a", "1.1")


def test_a_decision_is_true_only_if_it_allows() -> None:
    assert ALLOWED
    assert not DENIED
    assert not Decision(False, None, "", "", "1.1", errors.ClientClosed())


def test_every_reason_of_the_contract_has_a_name() -> None:
    contract = {name.removeprefix("DENY_REASON_") for name in types_pb2.DenyReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert {reason.value for reason in DenyReason} == contract | {"UNKNOWN"}
    assert {reason.name for reason in matrix.DenyReason} - {"ALLOWED"} == contract


@pytest.mark.parametrize("number", [number for number in types_pb2.DenyReason.values() if number])
def test_a_denial_is_read_with_its_reason(number: types_pb2.DenyReason.ValueType) -> None:
    decision = decision_of(pb.CheckResponse(reason=number, token_id="t", account_id="a", revision="1.7"))
    assert decision.reason is not None
    assert f"DENY_REASON_{decision.reason}" == types_pb2.DenyReason.Name(number)
    assert decision == (False, decision.reason, "t", "a", "1.7", None, DecidedBy.SERVER)


def test_a_reason_of_a_newer_server_is_still_a_no() -> None:
    answer = pb.CheckResponse.FromString(b"\x10\xe7\x07")  # reason = 999
    assert decision_of(answer) == (False, DenyReason.UNKNOWN, "", "", "", None, DecidedBy.SERVER)


def test_an_empty_answer_is_a_no() -> None:
    assert not decision_of(pb.CheckResponse())
    (decision,) = decisions_of(pb.BatchCheckResponse(results=[pb.BatchCheckResult()]), 1)
    assert not decision


def test_the_results_of_a_batch_are_read_in_order_an_error_among_them() -> None:
    answer = pb.BatchCheckResponse(
        results=[
            pb.BatchCheckResult(allowed=True, token_id="t", account_id="a"),
            pb.BatchCheckResult(error=status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no such permission")),
            pb.BatchCheckResult(reason=types_pb2.DENY_REASON_TOKEN_EXPIRED, token_id="t", account_id="a"),
        ],
        revision="1.9",
    )
    allowed, wrong, denied = decisions_of(answer, 3)
    assert allowed == (True, None, "t", "a", "1.9", None, DecidedBy.SERVER)
    assert isinstance(wrong.error, errors.InvalidRequest)
    assert (wrong.allowed, wrong.reason) == (False, None)
    assert denied == (False, DenyReason.TOKEN_EXPIRED, "t", "a", "1.9", None, DecidedBy.SERVER)


@pytest.mark.parametrize("answered", [0, 1, 3])
def test_more_or_fewer_results_than_items_are_nobodys(answered: int) -> None:
    answer = pb.BatchCheckResponse(results=[pb.BatchCheckResult(allowed=True)] * answered)
    with pytest.raises(errors.InternalFault):
        decisions_of(answer, 2)


@pytest.mark.parametrize("resource", [{}, {"project_id": "p", "account_id": "a"}])
def test_a_check_is_about_exactly_one_resource(resource: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="exactly one of project_id"):
        Ask("jobs:read", **resource)
    both = (resource.get("project_id"), resource.get("account_id"))
    for make in (
        lambda: check_request("s", "jobs:read", *both, None),
        lambda: batch_part("s", "jobs:read", *both),
    ):
        with pytest.raises(ValueError, match="exactly one of project_id"):
            make()


def test_an_empty_resource_is_sent_and_left_to_the_server() -> None:
    assert check_request("s", "jobs:read", "", None, None).WhichOneof("resource") == "project_id"
    assert check_request("s", "jobs:read", None, "", None).WhichOneof("resource") == "account_id"


def test_an_ask_does_not_show_its_secret() -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    assert secret not in repr(Ask("jobs:read", project_id="p", secret=secret))


def test_parts_are_one_request_in_their_order() -> None:
    parts = [batch_part(f"s{number}", "jobs:read", f"p{number}", None) for number in range(300)]
    request = pb.BatchCheckRequest.FromString(batch_request(parts, None))
    assert [(item.secret, item.project_id) for item in request.items] == [(f"s{n}", f"p{n}") for n in range(300)]
    assert not request.HasField("consistency")


def test_a_demand_on_freshness_is_kept_in_every_form() -> None:
    for demand, expected in (
        ("1.4711", types_pb2.Consistency(at_least_as_fresh="1.4711")),
        ("", types_pb2.Consistency(at_least_as_fresh="")),  # wrong, and not to be taken for none
        (FULLY, types_pb2.Consistency(fully_consistent=True)),
    ):
        assert check_request("s", "jobs:read", "p", None, demand).consistency == expected
        together = pb.BatchCheckRequest.FromString(batch_request([batch_part("s", "jobs:read", "p", None)], demand))
        assert together.consistency == expected
        (many,) = batches_of("s", [Ask("jobs:read", project_id="p")], demand)
        assert many.consistency == expected


def test_no_revision_is_taken_for_full_consistency() -> None:
    with pytest.raises(RevisionMalformed):
        Revision.parse(FULLY)
    assert demand_of(None, True) == FULLY
    assert demand_of("1.1", False) == "1.1"
    assert demand_of(None, False) is None
    assert consistency_of(None) is None


def test_two_demands_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        demand_of("1.1", True)


def test_many_asks_are_as_many_calls_as_the_contract_needs() -> None:
    asks = [Ask("jobs:read", project_id=f"p{number}") for number in range(2001)]
    calls = list(batches_of("s", asks, None))
    assert [len(call.items) for call in calls] == [1000, 1000, 1]
    assert [item.project_id for call in calls for item in call.items] == [ask.project_id for ask in asks]
    assert list(batches_of("s", [], None)) == []


def test_an_ask_may_name_another_secret() -> None:
    (call,) = batches_of("s", [Ask("jobs:read", project_id="p", secret="other"), Ask("x:read", account_id="a")], None)
    assert (call.secret, [item.secret for item in call.items]) == ("s", ["other", ""])
