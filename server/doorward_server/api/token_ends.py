"""TokenAdmin, where tokens end otherwise than one by one by their id: many at once, by a filter, by a secret that leaked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_REASON, Fields
from doorward_server.api.requests import caller_of, request_of
from doorward_server.api.token_filters import filter_of
from doorward_server.model import TokenFilter, TokenState
from doorward_server.service.revoke_many import MOST_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.find_tokens import FindTokens
    from doorward_server.service.report_leaked import ReportLeaked
    from doorward_server.service.revoke_many import RevokeMany
    from doorward_server.settings import Settings

__all__ = ["TokenEnds"]

SERVICE: Final = "/doorward.v1.TokenAdmin/"


class TokenEnds:
    """The RPCs."""

    def __init__(self, find: FindTokens, revoke: RevokeMany, leaked: ReportLeaked, settings: Settings) -> None:
        self._find = find
        self._revoke = revoke
        self._leaked = leaked
        self._settings = settings

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [
            binder.method(SERVICE + "BatchRevokeTokens", pb.BatchRevokeTokensRequest, self.batch_revoke_tokens),
            binder.method(
                SERVICE + "RevokeTokensByFilter", pb.RevokeTokensByFilterRequest, self.revoke_tokens_by_filter
            ),
            binder.method(SERVICE + "ReportLeakedToken", pb.ReportLeakedTokenRequest, self.report_leaked_token),
        ]

    async def batch_revoke_tokens(
        self, request: pb.BatchRevokeTokensRequest, call: Call
    ) -> pb.BatchRevokeTokensResponse:
        """Revokes the named tokens, all or none."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        most = min(self._settings.max_batch, MOST_AT_ONCE)
        token_ids = _token_ids(fields, request.token_ids, most)
        reason = fields.text("reason", request.reason, longest=LONGEST_REASON)
        fields.done()
        asked = request_of(call, validate_only=request.validate_only)
        done = await self._revoke.revoke_batch(asked, account_id, token_ids, reason)
        return pb.BatchRevokeTokensResponse(
            tokens=convert.shown_tokens(done.value), propagation=convert.propagation(done.propagation)
        )

    async def revoke_tokens_by_filter(
        self, request: pb.RevokeTokensByFilterRequest, call: Call
    ) -> pb.RevokeTokensByFilterResponse:
        """Revokes what matches every filter."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        wanted = self._wanted(request, fields)
        reason = fields.text("reason", request.reason, longest=LONGEST_REASON)
        await fields.done_with(lambda: self._find.further_violations(caller_of(call), account_id, wanted))
        asked = request_of(call, validate_only=request.validate_only)
        done = await self._revoke.revoke_by_filter(asked, account_id, wanted, reason)
        return pb.RevokeTokensByFilterResponse(token_ids=done.value, propagation=convert.propagation(done.propagation))

    async def report_leaked_token(
        self, request: pb.ReportLeakedTokenRequest, call: Call
    ) -> pb.ReportLeakedTokenResponse:
        """Ends the secret, if it is one; says nothing either way."""
        fields = Fields()
        presented = fields.secret("secret", request.secret)
        request.ClearField("secret")
        fields.done()
        await self._leaked.report(presented, call.peer.host, call.peer.until_ns)
        return pb.ReportLeakedTokenResponse()

    def _wanted(self, request: pb.RevokeTokensByFilterRequest, fields: Fields) -> TokenFilter:
        narrowed = filter_of(request, fields, most_labels=self._settings.max_labels)
        obtained_by = fields.identifier("obtained_by", request.obtained_by) if request.obtained_by else ""
        wanted = replace(narrowed, obtained_by=obtained_by, include_descendants=request.include_descendants)
        if wanted.state is TokenState.REVOKED:
            fields.wrong("state", "must not be TOKEN_STATE_REVOKED: those are revoked already", "FIELD_OUT_OF_RANGE")
        if request.include_descendants and not request.obtained_by:
            text = "is required with include_descendants: the public id of the token whose descendants are meant"
            fields.wrong("obtained_by", text, "FIELD_REQUIRED")
        _require_one(fields, is_narrowed=_is_narrowed(request), is_all=request.all_tokens)
        return wanted


def _is_narrowed(request: pb.RevokeTokensByFilterRequest) -> bool:
    """Whether any filter is set, right or wrong."""
    beside = {"account_id", "all_tokens", "reason", "validate_only"}
    return any(field.name not in beside for field, _ in request.ListFields())


def _require_one(fields: Fields, *, is_narrowed: bool, is_all: bool) -> None:
    if is_all and is_narrowed:
        fields.wrong("all_tokens", "must be false if a filter is set; it would revoke every token", "FIELD_CONFLICT")
    elif not is_all and not is_narrowed:
        text = "must be true if no filter is set: an empty request never means all tokens"
        fields.wrong("all_tokens", text, "FIELD_REQUIRED")


def _token_ids(fields: Fields, values: Sequence[str], most: int) -> list[str]:
    if not values:
        fields.wrong("token_ids", f"is required: 1 to {most} public ids of tokens", "FIELD_REQUIRED")
    elif len(values) > most:
        text = f"has {len(values)} ids; at most {most} are allowed"
        fields.wrong("token_ids", text, "TOO_MANY_ITEMS")
        return []
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        fields.identifier(f"token_ids[{index}]", value)
        if value and value in seen:
            text = f"stands in token_ids[{seen[value]}] already"
            fields.wrong(f"token_ids[{index}]", text, "FIELD_DUPLICATE")
        seen.setdefault(value, index)
    return list(values)
