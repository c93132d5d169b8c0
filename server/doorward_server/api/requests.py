"""From an authenticated call to the `Request` that use cases take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward_server.api.fields import Fields
from doorward_server.errors import PermissionDenied
from doorward_server.service.context import Request

if TYPE_CHECKING:
    from doorward_server.api.methods import Call

__all__ = ["request_of"]

LONGEST_ON_BEHALF_OF: Final = 255


def request_of(call: Call, *, validate_only: bool = False) -> Request:
    """Who asks for a change, and until when.

    Raises:
        PermissionDenied: CALLER_NOT_PERMITTED, nobody asks: the access table let a call through without a credential.
        InvalidArgument: INVALID_FIELDS, of the metadata `on-behalf-of`.
    """
    fields = Fields()
    fields.text("on-behalf-of", call.peer.on_behalf_of, longest=LONGEST_ON_BEHALF_OF)
    fields.done()
    if call.caller is None:
        raise PermissionDenied("CALLER_NOT_PERMITTED", "changes need a credential")
    return Request(
        caller=call.caller,
        peer=call.peer.address,
        on_behalf_of=call.peer.on_behalf_of,
        until_ns=call.peer.until_ns,
        validate_only=validate_only,
    )
