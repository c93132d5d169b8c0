"""What every guard does alike: reads the credential, and says no to everything that is not a yes. One table for both dialects."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward.core.secret import SecretKind, find_secret
from doorward.decisions import Decision, DenyReason
from doorward.errors import (
    ClientClosed,
    DeadlineExceeded,
    DoorwardError,
    Exhausted,
    InternalFault,
    InvalidRequest,
    NotPermitted,
    Status,
    Unauthenticated,
    Unavailable,
)
from doorward.integrations._guard import ADMITTED, AioGuard, Gate, Question, ThreadsGuard, find_identity, secret_in
from doorward.integrations._guard import identity as current_identity
from doorward.integrations._refusals import Kind, NotAdmitted, Refusal
from tests.support.deciders import YES, Decider, a_secret, decided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIALECTS = ("aio", "threads")


def a_question() -> Question:
    secret = find_secret(a_secret(), SecretKind.TOKEN)
    assert secret is not None
    return Question(secret, "jobs:read", "p1", None)


def refusal(act: Callable[[], object]) -> Refusal:
    with pytest.raises(NotAdmitted) as caught:
        act()
    return caught.value.refusal


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# ---- the credential

SECRET = a_secret()


@pytest.mark.parametrize(
    "value",
    [f"Bearer {SECRET}", f"bearer {SECRET}".encode(), f"TOKEN  {SECRET}", f" \tBearer {SECRET}\t ", f"Token {SECRET}"],
    ids=lambda _: "it",
)
def test_both_schemes_are_taken_in_any_case(value: str | bytes) -> None:
    assert secret_in([value]).reveal() == SECRET


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "CREDENTIAL_MISSING"),
        ([""], "CREDENTIAL_MISSING"),
        ([b"  "], "CREDENTIAL_MISSING"),
        ([f"Bearer {SECRET}", ""], "CREDENTIAL_REPEATED"),
        (["", ""], "CREDENTIAL_REPEATED"),
        ([f"Bearer\t{SECRET}"], "CREDENTIAL_MALFORMED"),
        ([f"Bearer{SECRET}"], "CREDENTIAL_MALFORMED"),
        ([f"Bearer: {SECRET}"], "CREDENTIAL_MALFORMED"),
        ([f"Bearer {SECRET},"], "CREDENTIAL_MALFORMED"),
        ([f'Bearer "{SECRET}"'], "CREDENTIAL_MALFORMED"),
        ([f"Bearer {SECRET}\nx"], "CREDENTIAL_MALFORMED"),
        # The Kelvin sign is a k to a comparison that ignores case.
        ([f"To\u212aen {SECRET}"], "CREDENTIAL_MALFORMED"),
        ([f"Bearer {SECRET}".encode("utf-16")], "CREDENTIAL_MALFORMED"),
        ([b"Bearer \xff" + SECRET.encode()], "CREDENTIAL_MALFORMED"),
        ([f"Bearer {' ' * 100_000}{SECRET}"], "CREDENTIAL_MALFORMED"),
        ([f"Bearer {SECRET[:-1]}"], "CREDENTIAL_MALFORMED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "it",
)
def test_anything_else_is_no_credential(values: list[str | bytes], reason: str) -> None:
    found = refusal(lambda: secret_in(values))
    assert (found.kind, found.reason) == (Kind.UNAUTHENTICATED, reason)
    assert SECRET not in repr(found)


# ---- the decision


def test_what_is_asked_is_what_stands_in_the_request(dialect: str) -> None:
    decider, question = Decider(), a_question()
    admission = decided(dialect, decider, question)
    assert decider.asked == [(question.secret.reveal(), "jobs:read", "p1", None, 2.0)]
    assert (admission.identity.token_id, admission.identity.account_id) == ("token-1", "acme")
    assert question.secret.reveal() not in repr(admission)


@pytest.mark.parametrize(
    ("left_s", "wanted"), [(None, 2.0), (0.5, 0.5), (60.0, 2.0), (float("inf"), 2.0), (-1.0, -1.0)]
)
def test_a_check_takes_no_longer_than_its_request(dialect: str, left_s: float | None, wanted: float) -> None:
    decider = Decider()
    decided(dialect, decider, a_question(), left_s)
    assert decider.asked[0].timeout == wanted


KINDS = {
    DenyReason.TOKEN_UNRECOGNIZED: Kind.UNAUTHENTICATED,
    DenyReason.TOKEN_REVOKED: Kind.UNAUTHENTICATED,
    DenyReason.TOKEN_EXPIRED: Kind.UNAUTHENTICATED,
    DenyReason.TOKEN_DISABLED: Kind.UNAUTHENTICATED,
    DenyReason.ACCOUNT_SUSPENDED: Kind.DENIED,
    DenyReason.RESOURCE_NOT_IN_ACCOUNT: Kind.DENIED,
    DenyReason.GRANT_SUSPENDED_BY_PLAN: Kind.DENIED,
    DenyReason.ALL_PROJECTS_REQUIRED: Kind.DENIED,
    DenyReason.PROJECT_NOT_GRANTED: Kind.DENIED,
    DenyReason.PERMISSION_NOT_GRANTED: Kind.DENIED,
    DenyReason.UNKNOWN: Kind.DENIED,
}


def test_it_is_settled_for_every_reason_whether_another_token_would_help() -> None:
    assert set(KINDS) == set(DenyReason)


@pytest.mark.parametrize("reason", DenyReason)
def test_a_denial_is_of_the_kind_of_its_reason(dialect: str, reason: DenyReason) -> None:
    decider = Decider(Decision(False, reason, "token-1", "acme", "1.7"))
    found = refusal(lambda: decided(dialect, decider, a_question()))
    assert (found.kind, found.reason) == (KINDS[reason], reason.value)
    assert found.permission == ("jobs:read" if found.kind is Kind.DENIED else "")
    # Whose token it is stands in no answer.
    assert "acme" not in repr(found)
    assert "token-1" not in repr(found)


@pytest.mark.parametrize(
    "answer",
    [
        Decision(False, None, "", "", ""),
        Decision("yes", None, "token-1", "acme", "1.7"),  # type: ignore[arg-type]
        Decision(1, None, "token-1", "acme", "1.7"),  # type: ignore[arg-type]
        Decision(None, None, "token-1", "acme", "1.7"),  # type: ignore[arg-type]
    ],
)
def test_nothing_but_true_is_a_yes(dialect: str, answer: Decision) -> None:
    assert refusal(lambda: decided(dialect, Decider(answer), a_question())).kind is Kind.DENIED


def _status(code: str, retry_after_s: float | None = None) -> Status:
    return Status(grpc.StatusCode[code], "what happened", retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("error", "retry_after_s"),
    [
        (Unavailable(_status("UNAVAILABLE")), 1.0),
        (Unavailable(_status("UNAVAILABLE", 0.25)), 0.25),
        (DeadlineExceeded(_status("DEADLINE_EXCEEDED")), 1.0),
        (Exhausted(_status("RESOURCE_EXHAUSTED", 3.0)), 3.0),
        (InternalFault(_status("INTERNAL")), 1.0),
        (ClientClosed(), 1.0),
        (Unauthenticated(_status("UNAUTHENTICATED")), 30.0),
        (NotPermitted(_status("PERMISSION_DENIED")), 30.0),
        (InvalidRequest(_status("INVALID_ARGUMENT")), 30.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_answer_is_a_no_that_says_when_to_come_back(
    dialect: str, error: DoorwardError, retry_after_s: float
) -> None:
    found = refusal(lambda: decided(dialect, Decider(error), a_question()))
    assert (found.kind, found.reason, found.retry_after_s) == (Kind.UNDECIDED, "NOT_DECIDED", retry_after_s)
    assert "what happened" not in found.message


def test_an_answer_that_is_an_error_is_a_no(dialect: str) -> None:
    answer = Decision(False, None, "", "", "", Unavailable(_status("UNAVAILABLE")))
    assert refusal(lambda: decided(dialect, Decider(answer), a_question())).kind is Kind.UNDECIDED


@pytest.mark.parametrize("error", [RuntimeError("another loop"), ValueError("x"), AssertionError("y"), LookupError()])
def test_an_error_that_nobody_thought_of_is_a_no(
    dialect: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    question = a_question()
    found = refusal(lambda: decided(dialect, Decider(error), question))
    assert (found.kind, found.reason) == (Kind.FAILED, "GUARD_FAILED")
    assert str(error) not in found.message or not str(error)
    assert "could not check" in caplog.text
    assert question.secret.reveal() not in caplog.text


def test_whoever_is_cancelled_is_cancelled(dialect: str) -> None:
    with pytest.raises(asyncio.CancelledError):
        decided(dialect, Decider(asyncio.CancelledError()), a_question())


# ---- the log


def test_an_outage_is_a_line_and_not_a_flood(caplog: pytest.LogCaptureFixture) -> None:
    gate: Gate[Decision] = Gate(Decider().threads, 1.0)
    for error in [Unavailable(_status("UNAVAILABLE")), NotPermitted(_status("PERMISSION_DENIED"))] * 50:
        with pytest.raises(NotAdmitted), gate.closed_on_error():
            raise error
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


# ---- who was let in


@pytest.fixture
def admitted() -> Iterator[Question]:
    question = a_question()
    before = ADMITTED.set(decided("threads", Decider(), question))
    yield question
    ADMITTED.reset(before)


def test_nobody_is_known_where_nobody_was_checked() -> None:
    assert find_identity() is None
    with pytest.raises(LookupError):
        current_identity()


def test_whoever_was_let_in_is_known(admitted: Question) -> None:
    assert current_identity() is find_identity()
    assert current_identity().token_id == "token-1"
    assert admitted.permission == "jobs:read"


class Threads(ThreadsGuard):
    def __init__(self, decider: Decider) -> None:
        self._gate = Gate(decider.threads, 1.0)


class Aio(AioGuard):
    def __init__(self, decider: Decider) -> None:
        gate: Gate[Any] = Gate(decider.aio, 1.0)
        self._gate = gate


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (YES, True),
        (Decision(False, DenyReason.TOKEN_REVOKED, "token-1", "acme", "1.8"), False),
        (Unavailable(_status("UNAVAILABLE")), False),
        (RuntimeError(), False),
    ],
)
async def test_the_same_question_can_be_asked_again(
    admitted: Question, answer: Decision | BaseException, wanted: bool
) -> None:
    deciders = Decider(answer), Decider(answer)
    assert Threads(deciders[0]).still_allowed() is wanted
    assert await Aio(deciders[1]).still_allowed() is wanted
    assert [decider.asked[0].secret for decider in deciders] == [admitted.secret.reveal()] * 2


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_check_has_a_time_to_end(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Gate(Decider().threads, timeout)
