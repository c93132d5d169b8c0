"""What a failed call is raised as: by code and reason, with everything that the status says, and no secret in it."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from doorward import errors
from doorward.core.secret import SecretKind, generate, new_id
from doorward.errors import Status, status_in, status_of
from tests.repository.sources import ROOT

if TYPE_CHECKING:
    from google.protobuf.message import Message

CONTRACT = (ROOT / "protos" / "doorward" / "v1" / "error_reason.proto").read_text(encoding="utf-8")
# Of a whole call: the code that the contract documents for it.
REASONS = {
    reason: code
    for code, reason in re.findall(r"// ([A-Z_]+)\. [^;]*?\n  ERROR_REASON_([A-Z_]+) = \d{1,3};", CONTRACT)
    if code in grpc.StatusCode.__members__
}
OWN_CLASS = {
    "COMMIT_UNKNOWN": errors.CommitUnknown,
    "COMMIT_NOT_AWAITED": errors.CommitNotAwaited,
    "PROPAGATION_UNKNOWN": errors.PropagationUnknown,
    "PROPAGATION_NOT_AWAITED": errors.PropagationNotAwaited,
}
BY_CODE: dict[str, type[errors.DoorwardError]] = {
    "UNAVAILABLE": errors.Unavailable,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "RESOURCE_EXHAUSTED": errors.Exhausted,
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.NotPermitted,
    "NOT_FOUND": errors.NotFound,
    "ALREADY_EXISTS": errors.AlreadyExists,
    "FAILED_PRECONDITION": errors.PreconditionFailed,
    "ABORTED": errors.Conflict,
    "UNIMPLEMENTED": errors.NotOffered,
    "INTERNAL": errors.InternalFault,
    "UNKNOWN": errors.InternalFault,
    "DATA_LOSS": errors.InternalFault,
}


@dataclass
class FailedCall:
    """What both dialects raise, as far as it is looked at."""

    status: grpc.StatusCode
    message: str | None
    trailers: tuple[tuple[str, str | bytes], ...] | None

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str | None:
        return self.message

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...] | None:
        return self.trailers


def info(reason: str = "NO_LEASE", domain: str = "doorward", **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)


def a_status(code: str, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def a_call(code: str, message: str, *details: Message) -> FailedCall:
    """A failed call as a Doorward server ends it."""
    packed = a_status(code, message, *details).SerializeToString()
    return FailedCall(grpc.StatusCode[code], message, (("grpc-status-details-bin", packed),))


def raised(code: str, message: str, *details: Message) -> errors.DoorwardError:
    return status_of(a_call(code, message, *details)).error()


def test_the_contract_was_read() -> None:
    assert len(REASONS) > 30
    assert REASONS["NO_LEASE"] == "UNAVAILABLE"
    assert REASONS["COMMIT_NOT_AWAITED"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_of_the_contract_has_its_class(reason: str) -> None:
    error = raised(REASONS[reason], "no", info(reason))
    assert type(error) is OWN_CLASS.get(reason, BY_CODE[REASONS[reason]])
    assert error.reason == reason
    assert error.code is grpc.StatusCode[REASONS[reason]]


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_has_a_class_also_without_a_word_of_ours(code: str) -> None:
    error = status_of(FailedCall(grpc.StatusCode[code], None, None)).error()
    assert type(error) is BY_CODE.get(code, errors.InternalFault)
    assert (error.reason, error.metadata, error.violations, error.retry_after_s) == ("", {}, (), None)
    assert code in str(error)


def test_whatever_is_raised_is_a_doorward_error_and_says_what_to_do_with_it() -> None:
    for error in (raised("UNAVAILABLE", "x"), raised("DEADLINE_EXCEEDED", "x"), raised("RESOURCE_EXHAUSTED", "x")):
        assert isinstance(error, errors.Unanswered)
    for error in (raised("INVALID_ARGUMENT", "x"), raised("UNAUTHENTICATED", "x"), raised("NOT_FOUND", "x")):
        assert isinstance(error, errors.Refused)


def test_a_change_that_stands_names_its_revision() -> None:
    for code, reason in (("UNAVAILABLE", "PROPAGATION_UNKNOWN"), ("DEADLINE_EXCEEDED", "PROPAGATION_NOT_AWAITED")):
        error = raised(code, "not awaited", info(reason, revision="1.4711"))
        assert isinstance(error, errors.ChangeStands)
        assert isinstance(error, BY_CODE[code])
        assert error.revision == "1.4711"


def test_a_change_of_which_nobody_knows_is_told_apart() -> None:
    for code, reason in (("UNAVAILABLE", "COMMIT_UNKNOWN"), ("DEADLINE_EXCEEDED", "COMMIT_NOT_AWAITED")):
        error = raised(code, "who knows", info(reason))
        assert isinstance(error, errors.ChangeUnknown)
        assert isinstance(error, BY_CODE[code])
        assert not isinstance(error, errors.ChangeStands)


def test_everything_that_the_status_says_can_be_read() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation
    bad = error_details_pb2.BadRequest(
        field_violations=[
            violation(field="grants", description="is required", reason="FIELD_REQUIRED"),
            violation(field="ttl", description="must be more than 0", reason="FIELD_OUT_OF_RANGE"),
        ]
    )
    error = raised("INVALID_ARGUMENT", "grants is required", info("INVALID_FIELDS"), bad)
    assert [(one.field, one.description, one.reason) for one in error.violations] == [
        ("grants", "is required", "FIELD_REQUIRED"),
        ("ttl", "must be more than 0", "FIELD_OUT_OF_RANGE"),
    ]
    assert str(error) == "INVALID_ARGUMENT (INVALID_FIELDS): grants: is required; ttl: must be more than 0"


def test_when_to_try_again_is_told() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=250_000_000))
    error = raised("UNAVAILABLE", "no lease", info(), retry)
    assert error.retry_after_s == 0.25


def test_another_ones_reason_is_not_taken_for_ours() -> None:
    error = raised("UNAVAILABLE", "x", info("COMMIT_UNKNOWN", domain="example.com"))
    assert type(error) is errors.Unavailable
    assert error.reason == ""


@given(st.binary())
def test_details_that_are_none_do_no_harm(details: bytes) -> None:
    call = FailedCall(grpc.StatusCode.UNAVAILABLE, "x", (("grpc-status-details-bin", details),))
    assert isinstance(status_of(call).error(), errors.DoorwardError)


@given(st.binary())
def test_a_detail_that_cannot_be_read_does_no_harm(value: bytes) -> None:
    for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
        status = a_status("UNAVAILABLE", "x")
        status.details.append(any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=value))
        assert isinstance(status_in(status).error(), errors.DoorwardError)


def test_the_status_of_an_item_is_read_like_that_of_a_call() -> None:
    status = a_status("RESOURCE_EXHAUSTED", "busy", info("HASHING_BUSY"))
    assert status_in(status) == status_of(a_call("RESOURCE_EXHAUSTED", "busy", info("HASHING_BUSY")))


def test_an_unknown_number_for_a_code_is_a_fault() -> None:
    assert type(status_in(status_pb2.Status(code=99, message="x")).error()) is errors.InternalFault


@pytest.mark.parametrize("kind", SecretKind)
def test_no_secret_is_in_any_text_of_it(kind: SecretKind) -> None:
    secret = generate(kind, new_id()).reveal()
    bad = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="x", description=f"{secret} is wrong")]
    )
    for error in (
        raised("INTERNAL", f"cannot use Bearer {secret}", info("INTERNAL", what=secret)),
        raised("INVALID_ARGUMENT", f"{secret[:40]} is too short", info("INVALID_FIELDS"), bad),
    ):
        for text in (str(error), repr(error), repr(error.status), str(error.args)):
            assert secret[:25] not in text
            assert secret[-25:] not in text


def test_each_caller_gets_an_exception_of_its_own() -> None:
    status = Status(grpc.StatusCode.UNAVAILABLE, "x")
    assert status.error() is not status.error()


def test_an_error_can_cross_a_process() -> None:
    error = raised("UNAVAILABLE", "x", info("PROPAGATION_UNKNOWN", revision="1.2"))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    assert type(again) is type(error)
    assert again.status == error.status


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"^[ │├└─]*([A-Z][A-Za-z]+) {2,}\S", errors.__doc__ or "", re.MULTILINE)
    drawn += re.findall(r"── ([A-Z][A-Za-z]+) also", errors.__doc__ or "")
    classes = {
        name
        for name in errors.__all__
        if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), Exception)
    }
    assert set(drawn) == classes
