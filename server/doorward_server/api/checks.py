"""Check and BatchCheck as plain functions from request bytes to response bytes (design section 11): the warm path.

No await, no grpc type, no asyncio. A `Checker` answers, or says what is missing; `authorizer.py` brings that and asks
again under the same lease. It reads memory only; with `refuted` None it writes nothing at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.core.catalog import Catalog, Level, Permission
from doorward.core.matrix import DenyReason
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2
from doorward_server.api.errors import rpc_status_of
from doorward_server.api.fields import LONGEST_SECRET, Fields
from doorward_server.errors import InvalidArgument
from doorward_server.replica.caches import Missing
from doorward_server.service.authorize import AllMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.errors import Refused
    from doorward_server.service.authorize import Authorizer, Decision

__all__ = ["Checker", "Item", "encode_batch", "encode_check", "items_of", "note_violations"]

# secret, permission, which resource, its id; a tuple because a batch makes a thousand of them.
Item = tuple[str, str, str | None, str]

# Field 1 of BatchCheckResponse, length-delimited (protobuf's wire format).
_RESULT_TAG: Final = b"\x0a"
# Distinct results remembered in encoded form: a batch asks much about few tokens.
_MAX_ENCODED: Final = 4096


def items_of(request: pb.BatchCheckRequest) -> list[Item]:
    """The items of a batch, each with the secret that counts for it."""
    common = request.secret
    items: list[Item] = []
    for item in request.items:
        which = item.WhichOneof("resource")
        resource_id = item.project_id if which == "project_id" else item.account_id
        items.append((item.secret or common, item.permission, which, resource_id))
    return items


class Checker:
    """Answers items from memory."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._encoded: dict[tuple[DenyReason, str, str], bytes] = {}

    def one(self, item: Item, catalog: Catalog, now_us: int, refuted: set[bytes] | None) -> Decision | Missing:
        """The decision of one item, or what is missing for it.

        Raises:
            InvalidArgument: INVALID_FIELDS, with every violation.
        """
        secret, name, which, resource_id = item
        permission = catalog.permissions.get(name)
        text = secret.encode()
        if permission is None or which is None or not 0 < len(text) <= LONGEST_SECRET:
            raise _violations(item, catalog)
        is_account = permission.level is Level.ACCOUNT
        if is_account is not (which == "account_id"):
            raise _violations(item, catalog)
        decision = self._authorizer.check(
            text,
            permission,
            resource_id if is_account else None,
            None if is_account else resource_id,
            catalog=catalog,
            now_us=now_us,
            refuted=refuted,
        )
        # What is the token's own has an id of the right form; the form of any other is looked at only here.
        if type(decision) is Missing or decision[0] in _UNPLACED:
            _require_form(item, catalog)
        return decision

    def many(
        self,
        items: Sequence[Item],
        catalog: Catalog,
        now_us: int,
        refuted: set[bytes] | None,
        failed: dict[tuple[str, str], Refused],
    ) -> list[bytes] | AllMissing:
        """The encoded results of some items, in order, or all that is missing for them."""
        results: list[bytes] = []
        missing = AllMissing(failed)
        encoded, one = self._encoded, self.one
        for item in items:
            try:
                decision = one(item, catalog, now_us, refuted)
            except InvalidArgument as refused:
                results.append(_encode_error(refused))
                continue
            if isinstance(decision, Missing):
                known = failed.get((decision.kind, decision.key))
                if known is None:
                    missing.append(decision)
                else:
                    results.append(_encode_error(known))
                continue
            result = encoded.get(decision)
            results.append(self._encode(decision) if result is None else result)
        return missing or results

    def _encode(self, decision: Decision) -> bytes:
        if len(self._encoded) >= _MAX_ENCODED:
            self._encoded.clear()
        reason, token_id, account_id = decision
        result = pb.BatchCheckResult(
            allowed=reason is DenyReason.ALLOWED, reason=_number(reason), token_id=token_id, account_id=account_id
        )
        encoded = self._encoded[decision] = _delimited(result.SerializeToString())
        return encoded


_UNPLACED: Final = frozenset({DenyReason.RESOURCE_NOT_IN_ACCOUNT, DenyReason.TOKEN_UNRECOGNIZED})


def encode_check(decision: Decision, revision: str) -> bytes:
    """The response to a Check."""
    reason, token_id, account_id = decision
    return pb.CheckResponse(
        allowed=reason is DenyReason.ALLOWED,
        reason=_number(reason),
        token_id=token_id,
        account_id=account_id,
        revision=revision,
    ).SerializeToString()


def encode_batch(results: Sequence[bytes], revision: str) -> bytes:
    """The response to a BatchCheck: concatenated fields are a message."""
    return b"".join(results) + pb.BatchCheckResponse(revision=revision).SerializeToString()


def _number(reason: DenyReason) -> types_pb2.DenyReason.ValueType:
    return int(reason)  # type: ignore[return-value]  # the same numbers; a conversion would cost a third of the check


def _delimited(body: bytes) -> bytes:
    length, prefix = len(body), bytearray(_RESULT_TAG)
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + body


def _encode_error(refused: Refused) -> bytes:
    return _delimited(pb.BatchCheckResult(error=rpc_status_of(refused)).SerializeToString())


def _require_form(item: Item, catalog: Catalog) -> None:
    if not Fields.fits_identifier(item[3]):
        raise _violations(item, catalog)


def _violations(item: Item, catalog: Catalog) -> InvalidArgument:
    """Everything that is wrong with the item; there must be something."""
    fields = Fields()
    note_violations(fields, item, catalog)
    return fields.refusal()


def note_violations(fields: Fields, item: Item, catalog: Catalog) -> None:
    """Notes everything that is wrong with the item."""
    secret, name, which, resource_id = item
    fields.secret("secret", secret)
    permission = catalog.find_permission(name)
    if not name:
        fields.wrong("permission", "is required: resource:action, for example jobs:write", "FIELD_REQUIRED")
    elif permission is None:
        fields.wrong("permission", _unknown_permission(name, catalog), "PERMISSION_UNKNOWN")
    if which is None:
        fields.wrong("resource", "is required: account_id or project_id", "FIELD_REQUIRED")
    else:
        fields.identifier(which, resource_id)
    if permission is not None and which is not None:
        _note_mismatch(fields, permission, which)


def _note_mismatch(fields: Fields, permission: Permission, which: str) -> None:
    wanted = "account_id" if permission.level is Level.ACCOUNT else "project_id"
    if which != wanted:
        level = permission.level.value
        text = f"{permission.name} is a permission on {level} level: ask with {wanted}, not {which}"
        fields.wrong(which, text, "PERMISSION_LEVEL_MISMATCH")


def _unknown_permission(name: str, catalog: Catalog) -> str:
    resource = catalog.resources.get(name.partition(":")[0])
    if resource is None:
        return "is not in the catalog; a permission is resource:action, for example jobs:write"
    known = ", ".join(f"{resource.name}:{action}" for action in resource.actions)
    return f"is not in the catalog; {resource.name} has: {known}"
