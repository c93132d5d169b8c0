"""What a request id stands for: the RPC and everything that the request says, however it was serialized."""

from __future__ import annotations

import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.v1.token_admin_pb2 import IssueTokenRequest, RotateSelfRequest, RotateTokenRequest
from doorward.v1.types_pb2 import Grant
from doorward_server.api.fields import Fields
from doorward_server.api.request_ids import request_id_of

PATH = "/doorward.v1.TokenAdmin/IssueToken"
LABELS = st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=3), st.text(max_size=3), max_size=6)


def hash_of(request: IssueTokenRequest | RotateTokenRequest | RotateSelfRequest, path: str = PATH) -> bytes:
    fields = Fields()
    found = request_id_of(fields, request, path)
    assert fields.are_right
    assert found is not None
    return found.request_hash


def a_request(labels: dict[str, str], **fields: object) -> IssueTokenRequest:
    grants = [Grant(permission_set="member", all_projects=True)]
    given_fields = {"account_id": "acme", "grants": grants, "request_id": str(uuid.uuid4()), **fields}
    request = IssueTokenRequest(**given_fields)  # type: ignore[arg-type]
    for key, value in labels.items():
        request.labels[key] = value
    return request


@settings(deadline=None)
@given(labels=LABELS, order=st.randoms(use_true_random=False))
def test_neither_the_order_of_labels_nor_the_id_nor_validate_only_makes_another_request(
    labels: dict[str, str], order: object
) -> None:
    shuffled = list(labels.items())
    order.shuffle(shuffled)  # type: ignore[attr-defined]

    assert hash_of(a_request(labels)) == hash_of(a_request(dict(shuffled), validate_only=True))


@settings(deadline=None)
@given(one=LABELS, other=LABELS)
def test_requests_that_differ_have_different_hashes(one: dict[str, str], other: dict[str, str]) -> None:
    assert (hash_of(a_request(one)) == hash_of(a_request(other))) is (one == other)


def test_the_same_bytes_for_another_rpc_are_another_request() -> None:
    request = a_request({})

    assert hash_of(request) != hash_of(request, PATH + "s")


def test_the_request_is_left_as_it_was() -> None:
    request = a_request({"a": "b"}, validate_only=True)
    before = request.SerializeToString(deterministic=True)

    hash_of(request)

    assert request.SerializeToString(deterministic=True) == before


def test_an_overlap_of_0_is_another_request_than_none() -> None:
    with_none = RotateTokenRequest(token_id="t", request_id=str(uuid.uuid4()))
    with_0 = RotateTokenRequest(token_id="t", request_id=str(uuid.uuid4()))
    with_0.overlap.SetInParent()

    assert hash_of(with_none) != hash_of(with_0)


def test_no_id_is_no_request_id() -> None:
    fields = Fields()

    assert request_id_of(fields, RotateSelfRequest(), PATH) is None
    assert fields.are_right


def test_the_id_is_not_shown() -> None:
    found = request_id_of(Fields(), a_request({}, request_id="8b7c1f0e-4a57-4c7e-9d1a-0c4f5b6e7a21"), PATH)

    assert found is not None
    assert found.value == bytes.fromhex("8b7c1f0e4a574c7e9d1a0c4f5b6e7a21")
    assert "8b7c1f0e" not in repr(found)
    assert repr(found.value) not in repr(found)
