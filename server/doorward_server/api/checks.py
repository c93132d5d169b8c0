"""Check and BatchCheck as plain functions from request bytes to response bytes (design section 11): the warm path.

No await, no grpc type, no asyncio. A `Checker` answers, or says what is missing; `authorizer.py` brings that and asks
again under the same lease. It reads memory only; with `refuted` None it writes nothing at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.core.catalog import Catalog, Level, Permission
from doorward.core.entries import SECRET_NOT_AFTER_US, TOKEN_SECRETS
from doorward.core.matrix import DenyReason
from doorward.v1 import authorizer_pb2 as pb
from doorward_server import metrics
from doorward_server.api.encoding import delimited, encode_result
from doorward_server.api.errors import rpc_status_of
from doorward_server.api.fields import LONGEST_SECRET, Fields
from doorward_server.errors import InvalidArgument
from doorward_server.replica.caches import Missing
from doorward_server.service.authorize import AllMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from doorward.core.history import Position
    from doorward_server.errors import Refused
    from doorward_server.service.authorize import Authorizer, Decision, Holder

__all__ = ["Checker", "Item", "Seen", "encode_batch", "item_of", "items_of", "note_question", "note_violations"]

# secret, permission, which resource, its id; a tuple because a batch makes a thousand of them.
Item = tuple[str, str, str | None, str]

# Module names, because a member looked up on its enum costs as much as the rest of a line.
_ACCOUNT_LEVEL: Final = Level.ACCOUNT
_ALLOWED: Final = DenyReason.ALLOWED
_decided: Final = metrics.DECISIONS
_UNPLACED: Final = (DenyReason.RESOURCE_NOT_IN_ACCOUNT, DenyReason.TOKEN_UNRECOGNIZED)


def item_of(request: pb.CheckRequest | pb.BatchCheckItem, common: str = "") -> Item:
    """What is asked, with the secret that counts for it."""
    project_id = request.project_id
    # Only one of the oneof can be other than empty; which of two empty ones was set, protobuf is asked.
    which = "project_id" if project_id else request.WhichOneof("resource")
    return (request.secret or common, request.permission, which, project_id or request.account_id)


def items_of(request: pb.BatchCheckRequest) -> list[Item]:
    """The items of a batch, each with the secret that counts for it."""
    common = request.secret
    return [item_of(item, common) for item in request.items]


class Seen(dict[str, "Holder"]):
    """Whose the secrets of a batch are, as its earlier chunks found: good while nothing is applied, like a lookup."""

    def __init__(self) -> None:
        super().__init__()
        self._position: Position | None = None

    def at(self, position: Position | None) -> Seen:
        """Itself, emptied if `position` is another one than before."""
        if position is not self._position:
            self.clear()
            self._position = position
        return self

    def take(self, holders: Mapping[str, Holder | Missing | None]) -> None:
        """Keeps those that are known, but for tokens with a secret that ends."""
        for secret, holder in holders.items():
            if holder is None or isinstance(holder, Missing):
                continue
            if all(stored[SECRET_NOT_AFTER_US] is None for stored in holder[0][TOKEN_SECRETS]):
                self[secret] = holder


class Checker:
    """Answers items from memory."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def one(
        self,
        item: Item,
        catalog: Catalog,
        now_us: int,
        refuted: set[bytes] | None,
        holders: dict[str, Holder | Missing | None] | None = None,
        known: Holder | None = None,
    ) -> Decision | Missing:
        """The decision of one item, or what is missing for it.

        `known` is whose secret it is, if that is known already; `holders` takes, and has, whose the secrets are that were
        seen in the same step.

        Raises:
            InvalidArgument: INVALID_FIELDS, with every violation.
        """
        secret, name, which, resource_id = item
        permission = catalog.permissions.get(name)
        if permission is None or which is None:
            raise _violations(item, catalog)
        is_account = permission.level is _ACCOUNT_LEVEL
        if is_account is not (which == "account_id"):
            raise _violations(item, catalog)
        holder: Holder | Missing | None = known
        if known is None:
            if holders is not None and secret in holders:
                holder = holders[secret]
            else:
                holder = self._recognized(item, catalog, now_us, refuted, holders)
        decision = self._authorizer.decide(holder, permission, resource_id, now_us)
        # What is the token's own has an id of the right form; the form of any other is looked at only here.
        if isinstance(decision, Missing):
            _require_form(item, catalog)
            return decision
        reason = decision[0]
        if reason is not _ALLOWED and reason in _UNPLACED:
            _require_form(item, catalog)
        _decided[reason] += 1
        return decision

    def _recognized(
        self,
        item: Item,
        catalog: Catalog,
        now_us: int,
        refuted: set[bytes] | None,
        holders: dict[str, Holder | Missing | None] | None,
    ) -> Holder | Missing | None:
        text = item[0].encode()
        if not 0 < len(text) <= LONGEST_SECRET:
            raise _violations(item, catalog)
        holder = self._authorizer.find_holder(text, catalog, now_us, refuted)
        if holders is not None:
            holders[item[0]] = holder
        return holder

    def many(
        self,
        items: Sequence[Item],
        catalog: Catalog,
        now_us: int,
        refuted: set[bytes] | None,
        failed: dict[tuple[str, str], Refused],
        seen: Seen | None = None,
    ) -> list[bytes] | AllMissing:
        """The encoded results of some items, in order, or all that is missing for them; `seen` has and takes the holders."""
        results: list[bytes] = []
        missing = AllMissing(failed)
        holders: dict[str, Holder | Missing | None] = {**(seen or {})}
        encoded: dict[Decision, bytes] = {}
        one = self.one
        for item in items:
            try:
                decision = one(item, catalog, now_us, refuted, holders)
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
            if result is None:
                result = encoded[decision] = encode_result(decision)
            results.append(result)
        if seen is not None:
            seen.take(holders)
        return missing or results


def encode_batch(results: Sequence[bytes], revision: str) -> bytes:
    """The response to a BatchCheck: concatenated fields are a message."""
    return b"".join(results) + pb.BatchCheckResponse(revision=revision).SerializeToString()


def _encode_error(refused: Refused) -> bytes:
    return delimited(pb.BatchCheckResult(error=rpc_status_of(refused)).SerializeToString())


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
    fields.secret("secret", item[0])
    note_question(fields, item[1], item[2], item[3], catalog)


def note_question(fields: Fields, name: str, which: str | None, resource_id: str, catalog: Catalog) -> None:
    """Notes everything that is wrong with a permission and the resource that it is wanted on."""
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
