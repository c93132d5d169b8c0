"""What leaves a cold call, whatever happens in it (style.md, Cancellation)."""

from __future__ import annotations

import asyncio

import pytest
from google.rpc import error_details_pb2, status_pb2

from doorward_server.api.errors import Status
from doorward_server.api.methods import Peer
from doorward_server.api.wrapper import answer_cold
from doorward_server.errors import InvalidArgument, Violation

PEER = Peer(None, "test", "", None)


def details_of(status: Status) -> status_pb2.Status:
    return status_pb2.Status.FromString(status.details)


async def test_a_fault_of_ours_is_internal_with_a_fixed_sentence() -> None:
    async def cold(_request: bytes, _peer: Peer) -> bytes:
        raise RuntimeError("dwst_0123456789abcdef_secret and the driver's words")

    answer = await answer_cold("/a/b", cold, b"", PEER)
    assert isinstance(answer, Status)
    assert answer.code == "INTERNAL"
    assert "driver" not in answer.message
    assert b"dwst_" not in answer.details
    info = error_details_pb2.ErrorInfo()
    details_of(answer).details[0].Unpack(info)
    assert info.reason == "INTERNAL"
    assert info.metadata["request_id"] in answer.message


async def test_what_was_refused_carries_its_reason_and_every_violation() -> None:
    async def cold(_request: bytes, _peer: Peer) -> bytes:
        raise InvalidArgument.of((Violation("a", "is required", "FIELD_REQUIRED"), Violation("b", "is wrong", "X")))

    answer = await answer_cold("/a/b", cold, b"", PEER)
    assert isinstance(answer, Status)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    first, second = details_of(answer).details
    assert first.Unpack(info)
    assert second.Unpack(bad_request)
    assert (info.reason, info.domain) == ("INVALID_FIELDS", "doorward")
    assert [violation.field for violation in bad_request.field_violations] == ["a", "b"]


async def test_a_cancellation_from_inside_is_answered() -> None:
    async def cold(_request: bytes, _peer: Peer) -> bytes:
        helper = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(helper.cancel)
        await helper
        return b""

    answer = await answer_cold("/a/b", cold, b"", PEER)
    assert isinstance(answer, Status)
    assert (answer.code, answer.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")


async def test_a_caller_that_leaves_is_not_answered() -> None:
    async def cold(_request: bytes, _peer: Peer) -> bytes:
        await asyncio.Event().wait()
        return b""

    task = asyncio.ensure_future(answer_cold("/a/b", cold, b"", PEER))
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_many_violations_still_fit_into_a_status() -> None:
    async def cold(_request: bytes, _peer: Peer) -> bytes:
        raise InvalidArgument.of(tuple(Violation(f"grants[{n}]", "is wrong " * 20, "X") for n in range(1000)))

    answer = await answer_cold("/a/b", cold, b"", PEER)
    assert isinstance(answer, Status)
    assert len(answer.details) < 8000
    bad_request = error_details_pb2.BadRequest()
    details_of(answer).details[1].Unpack(bad_request)
    assert "more" in bad_request.field_violations[-1].description
