"""What a call ends with that was not answered, as exceptions; both dialects raise the same (design section 3, Errors).

A denied check is no error: it is a `Decision`. Whatever stands below must be treated as a no by who guards something.

    DoorwardError                  a call without an answer
    ├── Unanswered                 nothing is wrong with the call: deny now, and ask again (after `retry_after_s`)
    │   ├── Unavailable            UNAVAILABLE: no server reached, or it cannot decide (NO_LEASE, SHUTTING_DOWN, …)
    │   │   ├── CommitUnknown      also a ChangeUnknown
    │   │   └── PropagationUnknown also a ChangeStands
    │   ├── DeadlineExceeded       DEADLINE_EXCEEDED: no answer in time
    │   │   ├── CommitNotAwaited   also a ChangeUnknown
    │   │   └── PropagationNotAwaited   also a ChangeStands
    │   ├── Exhausted              RESOURCE_EXHAUSTED: some bound was reached, at the server or in this client
    │   └── InternalFault          INTERNAL and every code that Doorward never sends; report it
    ├── Refused                    the call is wrong as it is: a repeat ends alike
    │   ├── InvalidRequest         INVALID_ARGUMENT: `violations` has every bad field
    │   ├── Unauthenticated        UNAUTHENTICATED: the client's own credential, not the secret that is asked about
    │   │   └── CredentialUnreadable   there is no credential to call with; nothing was sent
    │   ├── NotPermitted           PERMISSION_DENIED: the caller may not call this
    │   ├── NotFound               NOT_FOUND
    │   ├── AlreadyExists          ALREADY_EXISTS
    │   ├── PreconditionFailed     FAILED_PRECONDITION
    │   ├── Conflict               ABORTED: something changed meanwhile; read it again and decide anew
    │   └── NotOffered             UNIMPLEMENTED
    ├── ChangeStands               the change is committed; wait with `await_propagation(error.revision)`
    ├── ChangeUnknown              the change may or may not have happened: repeat it with its `request_id`, or look
    └── ClientClosed               `close()` was called

`ValueError` and `TypeError` stay what they are: arguments that no server needs to see. No secret is in any message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AlreadyExists",
    "ChangeStands",
    "ChangeUnknown",
    "ClientClosed",
    "CommitNotAwaited",
    "CommitUnknown",
    "Conflict",
    "CredentialUnreadable",
    "DeadlineExceeded",
    "DoorwardError",
    "Exhausted",
    "InternalFault",
    "InvalidRequest",
    "NotFound",
    "NotOffered",
    "NotPermitted",
    "PreconditionFailed",
    "PropagationNotAwaited",
    "PropagationUnknown",
    "Refused",
    "Status",
    "Unanswered",
    "Unauthenticated",
    "Unavailable",
    "Violation",
    "status_in",
    "status_of",
]

DOMAIN: Final = "doorward"
DETAILS_KEY: Final = "grpc-status-details-bin"
# Looser than the form of a secret, on purpose: a truncated or mistyped one is masked too.
_SECRET: Final = re.compile(r"(dw(?:st|op)_[0-9A-Za-z]{4})[0-9A-Za-z_]{4,}|(?i:\b(bearer\s+))[^\s,;\"'<]{4,}")


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field of a request: its path, what would be right, and a reason from 200 on of the contract's ErrorReason."""

    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """What a failed call said. `reason` and `metadata` are those of the contract's ErrorReason; empty if none of ours."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None

    def error(self) -> DoorwardError:
        """A new exception that says this, of the class that fits best: one for each caller, since raising changes it."""
        return (_BY_REASON.get(self.reason) or _BY_CODE.get(self.code, InternalFault))(self)


class DoorwardError(Exception):
    """A call that was not answered. Never a denial, and never a yes."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.status.code

    @property
    def reason(self) -> str:
        """The contract's reason, without its prefix, as `NO_LEASE`; empty if Doorward did not make the status."""
        return self.status.reason

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the reason documents, as `{"token_id": "8Rk2…"}`."""
        return self.status.metadata

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Every bad field."""
        return self.status.violations

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which another attempt makes sense, where the server says so."""
        return self.status.retry_after_s

    def __str__(self) -> str:
        status = self.status
        reason = f" ({status.reason})" if status.reason else ""
        if not status.violations:
            return f"{status.code.name}{reason}: {status.message}"
        # With bad fields the message is the first of them again.
        told = "; ".join(f"{bad.field}: {bad.description}" for bad in status.violations)
        return f"{status.code.name}{reason}: {told}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class Unanswered(DoorwardError):
    """Nothing is wrong with the call; it could not be answered now. Deny, and ask again."""


class Unavailable(Unanswered):
    """UNAVAILABLE: no server was reached, or the one that was cannot decide. Others were tried before this."""


class DeadlineExceeded(Unanswered):
    """DEADLINE_EXCEEDED: there was no answer in time. What a change did is unknown unless `reason` says it."""


class Exhausted(Unanswered):
    """RESOURCE_EXHAUSTED: a bound was reached, at the server or (without a `reason`) in this client. Nothing was done."""


class InternalFault(Unanswered):
    """INTERNAL, or a code that Doorward never sends. `metadata["request_id"]` is what its log has more under."""


class Refused(DoorwardError):
    """The call is wrong as it is: a repeat ends alike."""


class InvalidRequest(Refused):
    """INVALID_ARGUMENT: `violations` has every bad field, and what would be right."""


class Unauthenticated(Refused):
    """UNAUTHENTICATED: the credential that this client calls with is missing or proves nobody."""


class CredentialUnreadable(Unauthenticated):
    """There is no credential to call with: its file cannot be read, or the callable failed. Nothing was sent."""


class NotPermitted(Refused):
    """PERMISSION_DENIED: the caller is known and may not do this."""


class NotFound(Refused):
    """NOT_FOUND: there is no such thing, or none that this caller may see."""


class AlreadyExists(Refused):
    """ALREADY_EXISTS: the id belongs to something else."""


class PreconditionFailed(Refused):
    """FAILED_PRECONDITION: the state of what it is about does not allow it."""


class Conflict(Refused):
    """ABORTED: something changed meanwhile, and nothing was done. Read it again, and decide anew."""


class NotOffered(Refused):
    """UNIMPLEMENTED: what answers does not do this."""


class ChangeStands(DoorwardError):
    """The change is committed and stands; only that it is true everywhere was not awaited to the end."""

    @property
    def revision(self) -> str:
        """What `await_propagation` goes on waiting for."""
        return self.status.metadata.get("revision", "")


class ChangeUnknown(DoorwardError):
    """The change may or may not have happened."""


class CommitUnknown(ChangeUnknown, Unavailable):
    """UNAVAILABLE, COMMIT_UNKNOWN: the database never said whether it committed."""


class PropagationUnknown(ChangeStands, Unavailable):
    """UNAVAILABLE, PROPAGATION_UNKNOWN: the change stands, and nobody waited for the replicas."""


class CommitNotAwaited(ChangeUnknown, DeadlineExceeded):
    """DEADLINE_EXCEEDED, COMMIT_NOT_AWAITED: the deadline ended while the change was being made; it goes on."""


class PropagationNotAwaited(ChangeStands, DeadlineExceeded):
    """DEADLINE_EXCEEDED, PROPAGATION_NOT_AWAITED: the change stands, and some replica had not confirmed it yet."""


class ClientClosed(DoorwardError):
    """The client was closed before or while this call was under way."""

    def __init__(self, status: Status | None = None) -> None:
        super().__init__(status or Status(grpc.StatusCode.CANCELLED, "this client was closed"))


_BY_REASON: Final[dict[str, type[DoorwardError]]] = {
    "COMMIT_UNKNOWN": CommitUnknown,
    "PROPAGATION_UNKNOWN": PropagationUnknown,
    "COMMIT_NOT_AWAITED": CommitNotAwaited,
    "PROPAGATION_NOT_AWAITED": PropagationNotAwaited,
}
_BY_CODE: Final[dict[grpc.StatusCode, type[DoorwardError]]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: NotPermitted,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.UNIMPLEMENTED: NotOffered,
}
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: Any) -> Status:
    """What a failed call of either dialect said; `error` is a grpc.Call or an AioRpcError."""
    details = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
    rpc_status = status_pb2.Status()
    if isinstance(details, bytes):
        try:
            rpc_status.ParseFromString(details)
        except DecodeError:
            rpc_status.Clear()  # whoever answered is none of ours; code and message are all that it said
    return _status(error.code(), error.details() or "", rpc_status)


def status_in(rpc_status: status_pb2.Status) -> Status:
    """What a google.rpc.Status says, as in a result of a batch."""
    return _status(_CODES.get(rpc_status.code, grpc.StatusCode.UNKNOWN), rpc_status.message, rpc_status)


def _status(code: grpc.StatusCode, message: str, rpc_status: status_pb2.Status) -> Status:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in rpc_status.details:
        for wanted in (info, bad, retry):
            try:
                detail.Unpack(wanted)
            except DecodeError:
                wanted.Clear()
    if info.domain != DOMAIN:
        info.Clear()
    return Status(
        code,
        _masked(message),
        info.reason,
        {key: _masked(value) for key, value in info.metadata.items()},
        tuple(Violation(one.field, _masked(one.description), one.reason) for one in bad.field_violations),
        retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None,
    )


def _masked(text: str) -> str:
    return _SECRET.sub(lambda match: f"{match.group(1) or match.group(2)}***", text)
