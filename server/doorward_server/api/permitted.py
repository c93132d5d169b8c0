"""Authorizer.ListTokensWithPermission: parse, call the use case, answer under the lease that was captured first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import authorizer_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.access import TABLE
from doorward_server.api.checks import note_question
from doorward_server.api.fields import Fields
from doorward_server.api.methods import Method, Peer
from doorward_server.api.paging import page_of, page_token_of, require_number
from doorward_server.api.wrapper import parsed
from doorward_server.service.authorize import no_lease
from doorward_server.service.permitted import Question

if TYPE_CHECKING:
    from doorward_server.api.asking import Asked, Asking
    from doorward_server.model import Caller, Page
    from doorward_server.replica.holding import Holding
    from doorward_server.service.permitted import Permitted

__all__ = ["PermittedApi"]

LIST_TOKENS: Final = "/doorward.v1.Authorizer/ListTokensWithPermission"


class PermittedApi:
    """The RPC."""

    def __init__(self, asking: Asking, permitted: Permitted, holding: Holding, *, max_page: int) -> None:
        self._asking = asking
        self._permitted = permitted
        self._holding = holding
        self._max_page = max_page

    def methods(self) -> list[Method]:
        """Its part of the method table."""
        return [Method(LIST_TOKENS, TABLE[LIST_TOKENS], None, self.list_tokens_with_permission)]

    async def list_tokens_with_permission(self, request: bytes, peer: Peer) -> bytes:
        """A page of the tokens that may do it, newest first."""
        await self._asking.admitted(LIST_TOKENS, peer)
        message = parsed(pb.ListTokensWithPermissionRequest, request)
        (caller, page), _ = await self._asking.under_lease(
            LIST_TOKENS, peer, lambda asked: self._checked(message, asked)
        )
        found = await self._permitted.list_tokens(caller, _question_of(message), page, peer.until_ns)
        # Once more, for the caller may have been revoked while the page was read; and the page's own lease, not that of this.
        await self._asking.admitted(LIST_TOKENS, peer)
        if not self._holding.still_good(found.end_ns):
            raise no_lease()
        return pb.ListTokensWithPermissionResponse(
            tokens=convert.shown_tokens(found.shown),
            next_page_token=page_token_of(found.next_key, _bound_to(message)),
            revision=str(found.revision),
        ).SerializeToString()

    def _checked(self, message: pb.ListTokensWithPermissionRequest, asked: Asked) -> tuple[Caller, Page]:
        """Who asks, and for which page, once all of the request is right."""
        fields = Fields()
        which = message.WhichOneof("resource")
        note_question(fields, message.permission, which, message.project_id or message.account_id, asked.catalog)
        page = page_of(fields, message.page_size, message.page_token, _bound_to(message), most=self._max_page)
        fields.done()
        return asked.caller, require_number(page)


def _question_of(message: pb.ListTokensWithPermissionRequest) -> Question:
    return Question(message.permission, message.account_id or None, message.project_id or None)


def _bound_to(message: pb.ListTokensWithPermissionRequest) -> tuple[str, ...]:
    return LIST_TOKENS, message.permission, message.account_id, message.project_id
