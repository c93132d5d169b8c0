"""Repeats of a call that tells a secret (design section 4, `request_id`; contract: IssueToken, RotateToken, RotateSelf).

A repeat within ten minutes gets the same token and the same secret, and waits for propagation again: a lost answer costs
nobody a token. What is kept is sealed under the request id, which is stored nowhere. The key that it is found by is a
hash of the caller and the id, so that to another caller the id is a fresh one, which tells nothing and opens nothing.

A repeat is authorized as if it were the first: whoever lost the right in between is refused, and so is whoever no longer
holds as much as the token does *now*. A token that was revoked in between is told as that (TOKEN_IS_REVOKED), without its
secret. A secret that was rotated out in between is told all the same, for it is what this call had returned, and it opens
nothing any more. Every repeat commits an audit event, so that a deposed primary can answer none.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from doorward.core.secret import Secret, SecretKind, find_secret
from doorward_server.credentials.sealing import Binding, CannotOpen, open_sealed, seal
from doorward_server.errors import InvalidArgument
from doorward_server.storage import idempotency
from doorward_server.storage.idempotency import SealedResponse

if TYPE_CHECKING:
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.service.context import Request
    from doorward_server.storage.changes import Transaction

__all__ = ["Idempotency", "Repeatable", "RequestId", "Told"]

_KEY_LABEL: Final = b"doorward request id"


@dataclass(frozen=True, slots=True)
class RequestId:
    """The UUID that a caller gave its request, and a hash of the RPC and of the request without it."""

    value: bytes = field(repr=False)
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """What a call told, and a repeat tells again: the secret, and which version of its token's it is."""

    secret: Secret
    version: int


class Repeatable:
    """One request that may come again: what it was told, if it came before. Used under the locks of its transaction."""

    def __init__(self, ring: PepperRing, request: Request, request_id: RequestId) -> None:
        self._ring = ring
        self._caller = request.caller.actor
        self._request_hash = request_id.request_hash
        self._binding = Binding(request_id.value, self._caller, self._request_hash)
        caller = self._caller.encode()
        key = _KEY_LABEL + len(caller).to_bytes(4, "big") + caller + request_id.value
        self._key_hash = hashlib.sha256(key).digest()

    async def find(self, transaction: Transaction) -> Told | None:
        """What this request was told within the last ten minutes; None if it is the first one.

        Raises:
            InvalidArgument: REQUEST_ID_REUSED, the id belongs to another request.
            CannotOpen: a fault of ours, or the pepper key that it was sealed under is gone.
        """
        kept = await idempotency.find(transaction, self._key_hash)
        if kept is None:
            return None
        if kept.request_hash != self._request_hash:
            raise _reused()
        content = json.loads(open_sealed(self._ring, self._binding, kept.sealed))
        secret = find_secret(content["secret"], SecretKind.TOKEN)
        if secret is None:
            raise CannotOpen("a sealed response holds no secret")
        return Told(secret, content["version"])

    async def keep(self, transaction: Transaction, told: Told) -> None:
        """Keeps what is told, in the transaction of the change itself.

        Raises:
            InvalidArgument: REQUEST_ID_REUSED, another request took the id meanwhile. (The same one would have waited for
                the same account's lock, and have found what was kept.)
        """
        plain = json.dumps({"secret": told.secret.reveal(), "version": told.version}).encode()
        response = SealedResponse(self._request_hash, seal(self._ring, self._binding, plain))
        if not await idempotency.keep(transaction, self._key_hash, self._caller, response):
            raise _reused()


class Idempotency:
    """Makes them; holds the pepper keys that responses are sealed under."""

    def __init__(self, ring: PepperRing) -> None:
        self._ring = ring

    def repeatable(self, request: Request, request_id: RequestId | None) -> Repeatable | None:
        """None: the caller gave no id, and every call stands for itself."""
        return None if request_id is None else Repeatable(self._ring, request, request_id)


def _reused() -> InvalidArgument:
    return InvalidArgument(
        "REQUEST_ID_REUSED",
        "this request_id was used within the last 10 minutes for a different request; every token and every rotation "
        "that is wanted has an id of its own",
    )
