"""From an authenticated call to the `Request` that use cases take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward_server.api.access import TABLE
from doorward_server.api.fields import Fields
from doorward_server.errors import PermissionDenied
from doorward_server.model import CallerKind
from doorward_server.service.context import Request

if TYPE_CHECKING:
    from doorward_server.api.methods import Call
    from doorward_server.model import Caller

__all__ = ["caller_of", "request_of"]

LONGEST_ON_BEHALF_OF: Final = 255


def caller_of(call: Call) -> Caller:
    """Who calls.

    Raises:
        PermissionDenied: CALLER_NOT_PERMITTED, nobody: the access table let a call through without a credential.
    """
    if call.caller is None:
        raise PermissionDenied("CALLER_NOT_PERMITTED", "this needs a credential", metadata={"method": call.path})
    return call.caller


def request_of(call: Call, *, validate_only: bool = False) -> Request:
    """Who asks for a change, and until when.

    Raises:
        PermissionDenied: CALLER_NOT_PERMITTED, nobody asks.
        InvalidArgument: INVALID_FIELDS, of the metadata `on-behalf-of`.
    """
    caller, fields = caller_of(call), Fields()
    fields.text("on-behalf-of", call.peer.on_behalf_of, longest=LONGEST_ON_BEHALF_OF)
    if call.peer.on_behalf_of and caller.kind is CallerKind.TOKEN:
        # It would stand in the audit as if an operator had vouched for it.
        fields.wrong("on-behalf-of", "must be left out: only an operator may say for whom it acts", "FIELD_CONFLICT")
    fields.done()
    return Request(
        caller=caller,
        peer=call.peer.host,
        on_behalf_of=call.peer.on_behalf_of,
        until_ns=call.peer.until_ns,
        validate_only=validate_only,
        method=call.path,
        needs_permission=TABLE[call.path].needs_permission,
    )
