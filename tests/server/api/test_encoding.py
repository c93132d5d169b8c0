"""Decisions written by hand are what protobuf itself would write."""

from __future__ import annotations

import pytest

from doorward.core.matrix import DenyReason
from doorward.v1 import authorizer_pb2 as pb
from doorward_server.api.checks import encode_batch
from doorward_server.api.encoding import delimited, encode_check, encode_result
from doorward_server.service.authorize import Decision

IDS = [("", ""), ("t", "a"), ("0kR3vQ8mZ1nT5xYb", "acme"), ("t" * 64, "a" * 64)]
REVISIONS = ["1.0", "1.4711", f"{2**63 - 1}.{2**63 - 1}"]


@pytest.mark.parametrize("reason", DenyReason)
@pytest.mark.parametrize(("token_id", "account_id"), IDS)
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_check_is_encoded_as_by_protobuf(reason: DenyReason, token_id: str, account_id: str, revision: str) -> None:
    expected = pb.CheckResponse(
        allowed=reason is DenyReason.ALLOWED,
        reason=pb.CheckResponse(reason=int(reason)).reason,  # type: ignore[arg-type]  # the same numbers
        token_id=token_id,
        account_id=account_id,
        revision=revision,
    )

    encoded = encode_check(Decision(reason, token_id, account_id), revision)

    assert pb.CheckResponse.FromString(encoded) == expected
    assert encoded == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("reason", DenyReason)
@pytest.mark.parametrize(("token_id", "account_id"), IDS)
def test_a_result_is_encoded_as_by_protobuf(reason: DenyReason, token_id: str, account_id: str) -> None:
    expected = pb.BatchCheckResponse(
        results=[
            pb.BatchCheckResult(
                allowed=reason is DenyReason.ALLOWED,
                reason=int(reason),  # type: ignore[arg-type]  # the same numbers
                token_id=token_id,
                account_id=account_id,
            )
        ],
        revision="1.4711",
    )

    encoded = encode_batch([encode_result(Decision(reason, token_id, account_id))], "1.4711")

    assert encoded == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 20_000])
def test_a_result_of_any_length_is_delimited(length: int) -> None:
    result = pb.BatchCheckResult(token_id="x" * length)

    decoded = pb.BatchCheckResponse.FromString(delimited(result.SerializeToString()))

    assert list(decoded.results) == [result]
