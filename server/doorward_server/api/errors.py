"""Turns what was refused into gRPC statuses with details (design section 3, Errors). Nobody else makes a status.

Every status carries `ErrorInfo`; INVALID_ARGUMENT and its kin list every field in `BadRequest`; UNAVAILABLE and
RESOURCE_EXHAUSTED say in `RetryInfo` when to try again. A `Status` is a plain value, so that a refusal on the path of a
check costs no exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from doorward_server.telemetry import redact

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from doorward_server.errors import Refused

__all__ = ["DOMAIN", "Status", "internal", "rpc_status_of", "status_of"]

DOMAIN: Final = "doorward"
# HTTP/2 peers refuse more than 8 KiB of metadata, in which these bytes may travel as base64, beside the message; a request
# with hundreds of bad fields shows the first ones in full.
MAX_DETAILS: Final = 4000


class Status(NamedTuple):
    """What the caller gets instead of an answer: the code by name, a sentence, google.rpc.Status with its details.

    The rest stays here, for the record: why, who was proved to ask (and of which account), and about what.
    """

    code: str
    message: str
    details: bytes
    reason: str
    asked_by: tuple[str, str | None] | None = None
    about: str = ""


def status_of(refused: Refused) -> Status:
    """The status that says `refused` to a gRPC caller."""
    rpc_status = rpc_status_of(refused)
    details = rpc_status.SerializeToString()
    return Status(refused.code, rpc_status.message, details, refused.reason, refused.asked_by, refused.about)


def rpc_status_of(refused: Refused) -> status_pb2.Status:
    """The same as a message, for the results of a batch."""
    metadata = {key: redact(value) for key, value in refused.metadata.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=refused.reason, domain=DOMAIN, metadata=metadata)]
    if refused.violations:
        details.append(_bad_request(refused))
    if refused.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(refused.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(refused.code),
        message=_bounded(refused.message),
        details=[_packed(item) for item in details],
    )


def internal(request_id: str) -> Status:
    """A fault of ours: a fixed sentence, and the id under which the log tells more."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"request_id": request_id})
    message = f"internal error; the server's log has more under request id {request_id}"
    rpc_status = status_pb2.Status(code=code_pb2.INTERNAL, message=message, details=[_packed(info)])
    return Status("INTERNAL", message, rpc_status.SerializeToString(), "INTERNAL")


def _bad_request(refused: Refused) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for shown, violation in enumerate(refused.violations):
        more = error_details_pb2.BadRequest.FieldViolation(
            field=redact(violation.field), description=_bounded(violation.description), reason=violation.reason
        )
        if shown and bad_request.ByteSize() + more.ByteSize() > MAX_DETAILS:
            text = f"and {len(refused.violations) - shown} more"
            bad_request.field_violations.add(field="", description=text, reason=refused.reason)
            break
        bad_request.field_violations.append(more)
    return bad_request


def _bounded(text: str) -> str:
    """At most 1,000 characters, without what looks like a secret: part of one may have been given for an id."""
    shown = redact(text)
    return shown if len(shown) <= 1000 else f"{shown[:1000]}…"


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
