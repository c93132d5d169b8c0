"""TokenAdmin: parse, call the use case, answer. A new secret is put into a response here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import token_admin_pb2 as pb
from doorward.v1 import types_pb2
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_DESCRIPTION, LONGEST_DISPLAY_NAME, LONGEST_REASON, Fields
from doorward_server.api.paging import next_page_token, page_of, part_of, require_number
from doorward_server.api.requests import request_of
from doorward_server.errors import Unimplemented, Violation
from doorward_server.model import TokenState
from doorward_server.service.issue import IssueToken

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.model import Token
    from doorward_server.service.issue import Issue
    from doorward_server.service.propagation import AwaitPropagation
    from doorward_server.service.revoke import Revoke
    from doorward_server.service.shown import Shown
    from doorward_server.service.tokens import Tokens
    from doorward_server.settings import Settings

__all__ = ["TokenAdmin"]

SERVICE: Final = "/doorward.v1.TokenAdmin/"
# Filters of ListTokens that this version does not offer.
LATER_FILTERS: Final = (
    "permission_set",
    "project_id",
    "labels",
    "created_by",
    "unused_since",
    "expires_before",
    "display_name_prefix",
)
# Every set that a catalog can have fits in one page.
MOST_SETS: Final = 1000
LATER: Final = (
    "UpdateToken",
    "RotateToken",
    "DisableToken",
    "EnableToken",
    "BatchRevokeTokens",
    "RevokeTokensByFilter",
    "ReportLeakedToken",
    "DescribeSelf",
    "RevokeSelf",
    "RotateSelf",
    "ListAuditEvents",
)


class TokenAdmin:
    """The service's RPCs."""

    def __init__(
        self, tokens: Tokens, issue: Issue, revoke: Revoke, propagation: AwaitPropagation, settings: Settings
    ) -> None:
        self._tokens = tokens
        self._issue = issue
        self._revoke = revoke
        self._propagation = propagation
        self._settings = settings

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [
            binder.method(SERVICE + "IssueToken", pb.IssueTokenRequest, self.issue_token),
            binder.method(SERVICE + "GetToken", pb.GetTokenRequest, self.get_token),
            binder.method(SERVICE + "ListTokens", pb.ListTokensRequest, self.list_tokens),
            binder.method(SERVICE + "RevokeToken", pb.RevokeTokenRequest, self.revoke_token),
            binder.method(SERVICE + "ListPermissionSets", pb.ListPermissionSetsRequest, self.list_permission_sets),
            binder.method(SERVICE + "AwaitPropagation", pb.AwaitPropagationRequest, self.await_propagation),
            *(binder.unimplemented(SERVICE + name) for name in LATER),
        ]

    async def issue_token(self, request: pb.IssueTokenRequest, call: Call) -> pb.IssueTokenResponse:
        """Issues a token and shows its secret, once."""
        if request.request_id:
            raise _later("request_id")
        fields = Fields()
        wanted = self._wanted(request, fields)
        await fields.done_with(lambda: self._issue.further_violations(wanted))
        done = await self._issue.issue_token(request_of(call, validate_only=request.validate_only), wanted)
        token = _one(done.value.shown)
        if request.validate_only:
            # The row that was tried is gone, and its id with it.
            token.token_id = token.etag = ""
        return pb.IssueTokenResponse(
            token=token,
            secret="" if done.value.secret is None else done.value.secret.reveal(),
            propagation=convert.propagation(done.propagation),
        )

    async def get_token(self, request: pb.GetTokenRequest, _call: Call) -> pb.GetTokenResponse:
        """One token's record."""
        fields = Fields()
        token_id = fields.identifier("token_id", request.token_id)
        fields.done()
        return pb.GetTokenResponse(token=_one(await self._tokens.get_token(token_id)))

    async def list_tokens(self, request: pb.ListTokensRequest, _call: Call) -> pb.ListTokensResponse:
        """A page of an account's tokens, newest first."""
        for field, _ in request.ListFields():
            if field.name in LATER_FILTERS:
                raise _later(field.name)
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        state = fields.enumerated("state", request.state, TokenState, types_pb2.TokenState.keys())
        bound_to = (SERVICE + "ListTokens", account_id, str(request.state))
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._settings.max_page)
        fields.done()
        shown = await self._tokens.list_tokens(account_id, state, require_number(page))
        last = (str(shown.tokens[-1].create_revision),) if shown.tokens else ()
        return pb.ListTokensResponse(
            tokens=(_message(token, shown) for token in shown.tokens),
            next_page_token=next_page_token(page, len(shown.tokens), last, bound_to),
        )

    async def revoke_token(self, request: pb.RevokeTokenRequest, call: Call) -> pb.RevokeTokenResponse:
        """Revokes a token for good."""
        fields = Fields()
        token_id = fields.identifier("token_id", request.token_id)
        reason = fields.text("reason", request.reason, longest=LONGEST_REASON)
        fields.done()
        done = await self._revoke.revoke_token(request_of(call), token_id, reason)
        return pb.RevokeTokenResponse(token=_one(done.value), propagation=convert.propagation(done.propagation))

    async def list_permission_sets(
        self, request: pb.ListPermissionSetsRequest, _call: Call
    ) -> pb.ListPermissionSetsResponse:
        """What an account may grant, by the names its plan uses."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        bound_to = (SERVICE + "ListPermissionSets", account_id)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=MOST_SETS, default=MOST_SETS)
        fields.done()
        shown = await self._tokens.list_permission_sets(account_id)
        names = part_of(list(shown.catalog.permission_sets), page)
        return pb.ListPermissionSetsResponse(
            permission_sets=(convert.permission_set(shown.catalog, name, shown.plan) for name in names),
            next_page_token=next_page_token(page, len(names), names[-1:], bound_to),
        )

    async def await_propagation(self, request: pb.AwaitPropagationRequest, call: Call) -> pb.AwaitPropagationResponse:
        """Waits until nobody answers from before a revision any more."""
        fields = Fields()
        revision = fields.revision("revision", request.revision)
        fields.done()
        assert revision is not None  # noqa: S101 - else `done` has raised
        propagation = await self._propagation.await_propagation(revision, call.peer.until_ns)
        return pb.AwaitPropagationResponse(propagation=convert.propagation(propagation))

    def _wanted(self, request: pb.IssueTokenRequest, fields: Fields) -> IssueToken:
        settings = self._settings
        expiry = request.WhichOneof("expiry")
        expire_time, ttl = fields.expiry(
            request.expire_time if expiry == "expire_time" else None, request.ttl if expiry == "ttl" else None
        )
        return IssueToken(
            account_id=fields.identifier("account_id", request.account_id),
            display_name=fields.text("display_name", request.display_name, longest=LONGEST_DISPLAY_NAME, required=True),
            description=fields.text("description", request.description, longest=LONGEST_DESCRIPTION),
            labels=fields.labels("labels", request.labels, most=settings.max_labels),
            grants=fields.grants(
                "grants", request.grants, most=settings.max_grants, most_projects=settings.max_projects_in_grant
            ),
            expire_time=expire_time,
            ttl=ttl,
            allow_self_rotation=request.allow_self_rotation,
        )


def _later(field: str) -> Unimplemented:
    text = f"{field} is not offered by this version; leave it out"
    return Unimplemented(
        "NOT_IMPLEMENTED", text, violations=(Violation(field, text, "NOT_IMPLEMENTED"),), metadata={"field": field}
    )


def _message(token: Token, shown: Shown) -> types_pb2.ServiceToken:
    return convert.token(token, shown.catalog, shown.plan, shown.now)


def _one(shown: Shown) -> types_pb2.ServiceToken:
    return _message(shown.tokens[0], shown)
