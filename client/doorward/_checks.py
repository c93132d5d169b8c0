"""Checks as messages, and answers as decisions: what both dialects send and read (design section 3).

A batch is put together from bytes: every check is encoded as a BatchCheckRequest of one item where its caller is, and
concatenated messages are one message. So a check that cannot be encoded fails its own caller and nobody else, and the
moment in which a batch is sent costs one copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from doorward.decisions import Ask, Decision, DenyReason, placed
from doorward.errors import DeadlineExceeded, DoorwardError, Exhausted, InternalFault, Status, status_in
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "LARGEST_BATCH",
    "batch_part",
    "batch_request",
    "batches_of",
    "check_request",
    "consistency_of",
    "decision_of",
    "decisions_of",
    "demand_of",
    "error_for_each",
    "no_room",
    "too_late",
]

# Of the contract.
LARGEST_BATCH: Final = 1_000
# What no revision looks like.
FULLY: Final = "fully_consistent"
_REASONS: Final = {
    number: DenyReason(name.removeprefix("DENY_REASON_"))
    for name, number in types_pb2.DenyReason.items()
    if number != types_pb2.DENY_REASON_UNSPECIFIED
}


def demand_of(at_least_as_fresh: str | None, fully_consistent: bool) -> str | None:
    """How fresh the state must be, as a key: None for `minimize_latency`. Checks of one demand may share a call.

    Raises:
        ValueError: both are given.
    """
    if not fully_consistent:
        return at_least_as_fresh
    if at_least_as_fresh is not None:
        raise ValueError(
            "at_least_as_fresh and fully_consistent both say how fresh the answer must be; give one of them"
        )
    return FULLY


def consistency_of(demand: str | None) -> types_pb2.Consistency | None:
    """The same as a message; None asks for the default."""
    if demand is None:
        return None
    if demand == FULLY:
        return types_pb2.Consistency(fully_consistent=True)
    return types_pb2.Consistency(at_least_as_fresh=demand)


def check_request(
    secret: str, permission: str, project_id: str | None, account_id: str | None, demand: str | None
) -> pb.CheckRequest:
    """One check that goes alone.

    Raises:
        ValueError, TypeError: it cannot be a request, whatever a server would say.
    """
    request = placed(pb.CheckRequest(secret=secret, permission=permission), project_id, account_id)
    consistency = consistency_of(demand)
    if consistency is not None:
        request.consistency.CopyFrom(consistency)
    return request


def batch_part(secret: str, permission: str, project_id: str | None, account_id: str | None) -> bytes:
    """One check as a part of a batch.

    Raises:
        ValueError, TypeError: it cannot be a request, whatever a server would say.
    """
    item = placed(pb.BatchCheckItem(secret=secret, permission=permission), project_id, account_id)
    return pb.BatchCheckRequest(items=(item,)).SerializeToString()


def batch_request(parts: Iterable[bytes], demand: str | None) -> bytes:
    """The parts as one request."""
    whole = b"".join(parts)
    return whole if demand is None else whole + _demand_part(demand)


def batches_of(secret: str, asks: Sequence[Ask], demand: str | None) -> Iterator[pb.BatchCheckRequest]:
    """The calls that `check_many` makes: as many as the contract's limit needs, none for nothing."""
    for start in range(0, len(asks), LARGEST_BATCH):
        yield pb.BatchCheckRequest(
            secret=secret,
            items=[
                placed(
                    pb.BatchCheckItem(permission=ask.permission, secret=ask.secret or ""),
                    ask.project_id,
                    ask.account_id,
                )
                for ask in asks[start : start + LARGEST_BATCH]
            ],
            consistency=consistency_of(demand),
        )


def decision_of(answer: pb.CheckResponse) -> Decision:
    """What a Check was answered."""
    if answer.allowed:
        return Decision(True, None, answer.token_id, answer.account_id, answer.revision)
    reason = _REASONS.get(answer.reason, DenyReason.UNKNOWN)
    return Decision(False, reason, answer.token_id, answer.account_id, answer.revision)


def decisions_of(answer: pb.BatchCheckResponse, asked: int) -> list[Decision]:
    """What the items of a batch were answered, in order; an item that was not decided has its `error`.

    Raises:
        InternalFault: there are not as many results as items, so that nobody knows whose is which.
    """
    results, revision = answer.results, answer.revision
    if len(results) != asked:
        message = f"the server answered {len(results)} results to a batch of {asked}"
        raise InternalFault(Status(grpc.StatusCode.INTERNAL, message))
    # No name is looked up twice: a batch of a hundred passes here for every answer of the server.
    return [
        Decision(True, None, result.token_id, result.account_id, revision) if result.allowed else _no(result, revision)
        for result in results
    ]


def error_for_each(failure: BaseException) -> DoorwardError:
    """A new exception of what befell a whole batch: each caller raises its own."""
    if isinstance(failure, DoorwardError):
        error = type(failure)(failure.status)
        error.__cause__ = failure.__cause__
        return error
    message = f"the checks could not be sent: {type(failure).__name__}"
    fault = InternalFault(Status(grpc.StatusCode.INTERNAL, message))
    fault.__cause__ = failure
    return fault


def no_room() -> Exhausted:
    """What a check ends with that may not wait."""
    message = "too many checks of this client wait already; nothing was sent"
    return Exhausted(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, message))


def too_late() -> DeadlineExceeded:
    """What a check ends with whose own time ran out before that of its batch."""
    message = "no answer in time; the check was on its way with others, or waited to be"
    return DeadlineExceeded(Status(grpc.StatusCode.DEADLINE_EXCEEDED, message))


def _no(result: pb.BatchCheckResult, revision: str) -> Decision:
    if result.HasField("error"):
        return Decision(False, None, "", "", revision, status_in(result.error).error())
    reason = _REASONS.get(result.reason, DenyReason.UNKNOWN)
    return Decision(False, reason, result.token_id, result.account_id, revision)


def _demand_part(demand: str) -> bytes:
    return pb.BatchCheckRequest(consistency=consistency_of(demand)).SerializeToString()
