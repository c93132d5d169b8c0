"""TokenAdmin: parse, call the use case, answer. A new secret is put into a response here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_DESCRIPTION, LONGEST_DISPLAY_NAME, LONGEST_REASON, Fields
from doorward_server.api.paging import next_page_token, page_of, part_of
from doorward_server.api.request_ids import request_id_of
from doorward_server.api.requests import caller_of, request_of
from doorward_server.service.issue import IssueToken

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.issue import Issue
    from doorward_server.service.propagation import AwaitPropagation
    from doorward_server.service.revoke import Revoke
    from doorward_server.service.tokens import Tokens
    from doorward_server.settings import Settings

__all__ = ["TokenAdmin"]

SERVICE: Final = "/doorward.v1.TokenAdmin/"
# Every set that a catalog can have fits in one page.
MOST_SETS: Final = 1000


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
            binder.method(SERVICE + "RevokeToken", pb.RevokeTokenRequest, self.revoke_token),
            binder.method(SERVICE + "ListPermissionSets", pb.ListPermissionSetsRequest, self.list_permission_sets),
            binder.method(SERVICE + "AwaitPropagation", pb.AwaitPropagationRequest, self.await_propagation),
        ]

    async def issue_token(self, request: pb.IssueTokenRequest, call: Call) -> pb.IssueTokenResponse:
        """Issues a token and shows its secret, once."""
        fields = Fields()
        wanted = self._wanted(request, fields)
        request_id = request_id_of(fields, request, call.path)
        await fields.done_with(lambda: self._issue.further_violations(caller_of(call), wanted))
        done = await self._issue.issue_token(request_of(call, validate_only=request.validate_only), wanted, request_id)
        token = convert.shown_token(done.value.shown)
        if request.validate_only:
            # The row that was tried is gone, and its id with it.
            token.token_id = token.etag = ""
        return pb.IssueTokenResponse(
            token=token,
            secret="" if done.value.secret is None else done.value.secret.reveal(),
            propagation=convert.propagation(done.propagation),
        )

    async def get_token(self, request: pb.GetTokenRequest, call: Call) -> pb.GetTokenResponse:
        """One token's record."""
        fields = Fields()
        token_id = fields.identifier("token_id", request.token_id)
        fields.done()
        return pb.GetTokenResponse(token=convert.shown_token(await self._tokens.get_token(caller_of(call), token_id)))

    async def revoke_token(self, request: pb.RevokeTokenRequest, call: Call) -> pb.RevokeTokenResponse:
        """Revokes a token for good."""
        fields = Fields()
        token_id = fields.identifier("token_id", request.token_id)
        reason = fields.text("reason", request.reason, longest=LONGEST_REASON)
        fields.done()
        done = await self._revoke.revoke_token(request_of(call), token_id, reason)
        return pb.RevokeTokenResponse(
            token=convert.shown_token(done.value), propagation=convert.propagation(done.propagation)
        )

    async def list_permission_sets(
        self, request: pb.ListPermissionSetsRequest, call: Call
    ) -> pb.ListPermissionSetsResponse:
        """What an account may grant, by the names its plan uses."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        bound_to = (SERVICE + "ListPermissionSets", account_id)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=MOST_SETS, default=MOST_SETS)
        fields.done()
        shown = await self._tokens.list_permission_sets(caller_of(call), account_id)
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
