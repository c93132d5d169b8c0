"""The `request_id` of a request, and what it stands for: the RPC and all else that the request says (AIP-155).

Called by the RPCs that tell a secret. What a repeat gets is decided in `service/idempotency.py`.
"""

from __future__ import annotations

import copy
import hashlib
import re
from typing import TYPE_CHECKING, Final, TypeAlias

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.service.idempotency import RequestId

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from doorward_server.api.fields import Fields

__all__ = ["request_id_of"]

Repeatable: TypeAlias = pb.IssueTokenRequest | pb.RotateTokenRequest | pb.RotateSelfRequest

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NIL: Final = bytes(16)
# A request that is only tried stands for the one that is meant.
_ASIDE: Final = ("request_id", "validate_only")


def request_id_of(fields: Fields, request: Repeatable, path: str) -> RequestId | None:
    """The request's id together with a hash of the rest; None if it has none. `path` is the RPC's."""
    text = request.request_id
    if not text:
        return None
    value = bytes.fromhex(text.replace("-", "")) if _UUID.fullmatch(text) else _NIL
    if value == _NIL:
        # Not repeated: with the database and its key file it would open what was sealed.
        example = "8b7c1f0e-4a57-4c7e-9d1a-0c4f5b6e7a21"
        fields.wrong("request_id", f"must be a random UUID, for example {example}", "FIELD_MALFORMED")
        return None
    return RequestId(value, _hash(request, path))


def _hash(request: Repeatable, path: str) -> bytes:
    """Of the RPC and of the request's own bytes in one order. A retry is the same request, whoever serializes it here."""
    rest: Message = copy.deepcopy(request)
    for name in _ASIDE:
        if name in rest.DESCRIPTOR.fields_by_name:
            rest.ClearField(name)
    content = rest.SerializeToString(deterministic=True)
    return hashlib.sha256(len(path).to_bytes(4, "big") + path.encode() + content).digest()
