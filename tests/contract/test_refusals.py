"""What a refusal promises holds: what stands can be awaited, what was not done left nothing, what was full has room again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward.core.revision import Revision
from doorward.v1.authorizer_pb2 import (
    BatchCheckItem,
    BatchCheckRequest,
    CheckRequest,
    IntrospectTokenRequest,
    ListPermissionsRequest,
)
from doorward.v1.token_admin_pb2 import AwaitPropagationRequest
from tests.support import troubles
from tests.support.wire import an_account, another_of, ask, check, code_of, eventually, fresh_id, on_all, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.frail import Frail
    from tests.support.wire import Refusal

pytestmark = pytest.mark.usefixtures("recovered")


def test_a_change_that_was_not_awaited_stands_and_can_be_awaited(frail: Frail) -> None:
    with frail.a_silent_replica():
        request = frail.put_project()
        refusal = refused(frail.stubs.accounts.PutProject, request, frail.stubs.admin, timeout_s=2)
        revision = refusal.metadata["revision"]
        still_silent = refused(
            frail.stubs.tokens.AwaitPropagation,
            AwaitPropagationRequest(revision=revision),
            frail.stubs.admin,
            timeout_s=1,
        )

    awaited = ask(frail.stubs.tokens.AwaitPropagation, AwaitPropagationRequest(revision=revision), frail.stubs.admin)
    repeated = ask(frail.stubs.accounts.PutProject, request, frail.stubs.admin)

    assert (still_silent.reason, still_silent.metadata) == ("PROPAGATION_NOT_AWAITED", {"revision": revision})
    assert awaited.propagation.revision == revision
    assert Revision.parse(revision) <= Revision.parse(repeated.propagation.revision)


def test_a_replica_that_died_without_a_word_is_waited_for_once_and_then_forgotten(frail: Frail) -> None:
    with frail.a_silent_replica():
        frail.rows.fetch("UPDATE replicas SET hold_ms = 500 WHERE address = 'silent'")
        first = frail.account.put_project(fresh_id("p")).propagation
        eventually(lambda: not frail.rows.fetch("SELECT 1 FROM replicas WHERE address = 'silent'"))
        second = frail.account.put_project(fresh_id("p")).propagation

    assert (first.replicas_confirmed, first.replicas_expired) == (1, 1)
    assert (second.replicas_confirmed, second.replicas_expired) == (1, 0)


@pytest.mark.parametrize(
    "how", [troubles.changed_concurrently, troubles.deadline_too_short, troubles.database_unavailable]
)
def test_what_nothing_was_done_of_has_left_nothing(frail: Frail, how: Callable[[Frail], Refusal]) -> None:
    before = frail.rows.footprint()

    how(frail)

    assert frail.rows.footprint() == before


def test_without_a_lease_no_question_is_answered_and_administration_goes_on(frail: Frail) -> None:
    stubs, (project_id, *_) = frail.stubs, frail.account.project_ids
    issued = frail.account.issue(on_all("job_admin"))
    item = BatchCheckItem(permission="jobs:read", project_id=project_id)
    questions: list[tuple[Any, Any]] = [
        (stubs.authorizer.Check, CheckRequest(secret=issued.secret, permission="jobs:read", project_id=project_id)),
        (stubs.authorizer.BatchCheck, BatchCheckRequest(secret=issued.secret, items=[item])),
        (stubs.authorizer.BatchCheck, BatchCheckRequest(secret=issued.secret, items=[item] * 500)),
        (stubs.authorizer.ListPermissions, ListPermissionsRequest(secret=issued.secret)),
        (stubs.authorizer.IntrospectToken, IntrospectTokenRequest(secret=issued.secret)),
    ]
    for rpc, request in questions:
        ask(rpc, request, stubs.caller)

    with frail.rows.holding("LOCK TABLE replicas"):
        eventually(lambda: code_of(lambda: ask(*questions[0], stubs.caller)) == "UNAVAILABLE")
        refusals = [refused(rpc, request, stubs.caller) for rpc, request in questions]
        record = frail.account.token(issued.token.token_id)

    assert [refusal.reason for refusal in refusals] == ["NO_LEASE"] * len(questions)
    assert record == issued.token
    frail.account.revoke(issued.token.token_id)


def test_the_account_has_room_again_when_a_token_was_revoked(frail: Frail) -> None:
    account = an_account(frail.stubs, projects=0)
    first, _ = (account.issue(on_all("member")).token.token_id for _ in range(2))
    full = refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)
    tried = refused(
        frail.stubs.tokens.IssueToken, account.wanted(on_all("member"), validate_only=True), frail.stubs.admin
    )

    account.revoke(first)
    account.revoke(first)
    account.issue(on_all("member"))

    again = refused(frail.stubs.tokens.IssueToken, account.wanted(on_all("member")), frail.stubs.admin)
    assert full == tried == again
    assert full.metadata == {"account_id": account.account_id, "limit": "2"}
    assert len(account.token_ids()) == 3


def test_a_right_secret_without_a_digest_is_recognized_after_wrong_ones(frail: Frail) -> None:
    """bcrypt decides, and a wrong secret before it costs a wait, not the token."""
    issued = frail.account.issue(on_all("job_admin"))
    project_id = frail.account.project_ids[0]
    token_id = issued.token.token_id
    frail.rows.fetch("UPDATE token_secrets SET digest = NULL, pepper_id = NULL WHERE token_id = $1", token_id)
    assert not check(frail.stubs, another_of(issued.secret), "jobs:read", project_id=project_id).allowed

    def is_allowed() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return check(frail.stubs, issued.secret, "jobs:read", project_id=project_id).allowed
        return False

    eventually(is_allowed)
    assert not check(frail.stubs, another_of(issued.secret), "jobs:read", project_id=project_id).allowed
    account_tokens = frail.rows.fetch("SELECT digest IS NOT NULL FROM token_secrets WHERE token_id = $1", token_id)
    assert account_tokens == [(True,)]
