"""A failed call in words: every bad field, what to do, and nothing that another's status can do to us."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from doorward.errors import status_of
from doorward.v1 import error_reason_pb2
from doorward_server.cli.rpc_errors import ADVICE, CallFailure, failure_from

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass
class FailedCall:
    """What grpc raises, as far as the client looks at it."""

    name: str
    message: str
    packed: bytes | None

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode[self.name]

    def details(self) -> str:
        return self.message

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return () if self.packed is None else (("grpc-status-details-bin", self.packed),)


def details_of(*messages: Message) -> bytes:
    status = status_pb2.Status()
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        status.details.append(packed)
    encoded: bytes = status.SerializeToString()
    return encoded


def info(reason: str, domain: str = "doorward", **metadata: str) -> Message:
    made: Message = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    return made


def failure_of(code: str, message: str, address: str, details: bytes | None) -> CallFailure:
    """What a call that ended so becomes, by way of the client."""
    return failure_from(status_of(FailedCall(code, message, details)).error(), address)


def test_every_bad_field_is_listed_with_its_reason() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="ttl", description="must be positive", reason="FIELD_OUT_OF_RANGE")
    bad.field_violations.add(field="grants[0].permission_set", description="there is no such set", reason="X")
    failure = failure_of(
        "INVALID_ARGUMENT", "ttl: must be positive (and 1 more)", "a", details_of(info("INVALID_FIELDS"), bad)
    )
    assert failure.as_text().splitlines() == [
        "INVALID_ARGUMENT (INVALID_FIELDS): these fields are wrong:",
        "  ttl: must be positive (FIELD_OUT_OF_RANGE)",
        "  grants[0].permission_set: there is no such set (X)",
    ]


def test_json_has_code_reason_metadata_and_fields() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="ttl", description="d", reason="R")
    failure = failure_of("ABORTED", "m", "a", details_of(info("ETAG_MISMATCH", etag="7"), bad))
    assert json.loads(failure.as_json()) == {
        "error": {
            "code": "ABORTED",
            "reason": "ETAG_MISMATCH",
            "message": "m",
            "metadata": {"etag": "7"},
            "violations": [{"field": "ttl", "description": "d", "reason": "R"}],
        }
    }


def test_a_change_that_was_not_awaited_tells_the_command_that_goes_on() -> None:
    failure = failure_of("DEADLINE_EXCEEDED", "m", "a", details_of(info("PROPAGATION_NOT_AWAITED", revision="1.7")))
    assert "doorward await-propagation 1.7" in failure.as_text()


def test_advice_lacks_no_word_when_the_metadata_lacks_a_key() -> None:
    failure = failure_of("UNAVAILABLE", "m", "a", details_of(info("PROPAGATION_UNKNOWN")))
    assert "doorward await-propagation REVISION" in failure.as_text()


def test_without_a_server_the_address_and_the_way_out_are_named() -> None:
    failure = failure_of("UNAVAILABLE", "connection refused", "127.0.0.1:1", None)
    assert "connection refused" in failure.as_text()
    assert "Nobody answers at 127.0.0.1:1" in failure.as_text()
    assert "--address" in failure.as_text()


def test_another_domains_reason_is_not_ours() -> None:
    assert failure_of("ABORTED", "m", "a", details_of(info("ETAG_MISMATCH", domain="googleapis.com"))).reason == ""


@pytest.mark.parametrize("details", [b"\xff\xff", b"\x1a\xff", details_of(info("ETAG_MISMATCH"))[:-3]])
def test_details_that_are_no_status_leave_code_and_message(details: bytes) -> None:
    failure = failure_of("INTERNAL", "broken", "a", details)
    assert (failure.code, failure.message, failure.reason) == ("INTERNAL", "broken", "")


def test_advice_is_for_reasons_that_the_contract_has() -> None:
    known = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert ADVICE.keys() <= known
