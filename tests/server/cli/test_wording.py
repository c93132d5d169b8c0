"""The contract's values in words."""

from __future__ import annotations

import pytest

from doorward.v1 import authorizer_pb2, token_admin_pb2, types_pb2
from doorward_server.cli import wording

GRANTS = [
    types_pb2.Grant(permission_set="job_admin", all_projects=True),
    types_pb2.Grant(permission_set="metadata_only", project_ids=["p1", "p2", "p3", "p4"], suspended=True),
]


def test_every_project_of_a_grant_is_named_and_suspension_marked() -> None:
    assert wording.grant_lines(GRANTS) == "job_admin:*\nmetadata_only:p1,p2,p3,p4 (suspended)"


def test_in_a_table_many_projects_are_counted_not_cut() -> None:
    assert wording.grants_in_short(GRANTS) == "job_admin:*  metadata_only:(4 projects) (suspended)"


@pytest.mark.parametrize("reason", [value for value in types_pb2.DenyReason.values() if value])
def test_every_deny_reason_is_explained(reason: int) -> None:
    name = types_pb2.DenyReason.Name(types_pb2.DenyReason.ValueType(reason)).removeprefix("DENY_REASON_")
    assert wording.denial(reason).startswith(f"{name}: ")


@pytest.mark.parametrize("part", [value for value in authorizer_pb2.GrantPart.values() if value])
def test_every_part_of_a_grant_is_explained(part: int) -> None:
    name = authorizer_pb2.GrantPart.Name(authorizer_pb2.GrantPart.ValueType(part)).removeprefix("GRANT_PART_")
    assert wording.grant_part(part).startswith(f"{name}: ")


def test_a_reason_or_state_of_a_newer_contract_is_shown_as_its_number() -> None:
    assert wording.denial(4711) == "4711"
    assert wording.grant_part(4711) == "4711"
    assert wording.token_state(4711).plain == "4711"


def test_a_time_is_utc_and_an_absent_one_is_what_that_means() -> None:
    token = types_pb2.ServiceToken()
    token.create_time.FromJsonString("2026-11-24T23:20:05.999999Z")
    assert wording.time(token, "create_time") == "2026-11-24 23:20:05Z"
    assert wording.time(token, "expire_time", "never") == "never"


def test_labels_are_sorted_and_cannot_move_the_cursor() -> None:
    assert wording.labels([("team", "data"), ("a", "\x1b")]) == "a=\\x1b\nteam=data"


def test_a_propagation_tells_who_confirmed_and_who_was_silent() -> None:
    reached = types_pb2.Propagation(revision="1.7", replicas_confirmed=2, replicas_expired=1, watchers_confirmed=3)
    reached.elapsed.FromMilliseconds(1500)
    assert wording.propagation(reached) == (
        "True everywhere: revision 1.7, confirmed by 2 replicas, 3 watchers, 1 replica silent until its lease had ended, "
        "after 1.5 s."
    )


def test_without_a_propagation_nothing_was_written() -> None:
    answer = token_admin_pb2.IssueTokenResponse()
    assert "nothing was written" in wording.reached(answer, answer.propagation)
