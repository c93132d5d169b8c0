"""TokenAdmin.ListTokens: a filter, a page, and the token that leads to the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import Fields
from doorward_server.api.paging import page_of, page_token_of, require_number, require_pair
from doorward_server.api.requests import caller_of
from doorward_server.api.token_filters import filter_of, spelled

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.find_tokens import FindTokens
    from doorward_server.settings import Settings

__all__ = ["TokenLists"]

LIST_TOKENS: Final = "/doorward.v1.TokenAdmin/ListTokens"
# The last instant that a Timestamp can say, which a key of a list in the order of a time cannot lie behind.
LAST_US: Final = 253402300800_000_000


class TokenLists:
    """The RPC."""

    def __init__(self, find: FindTokens, settings: Settings) -> None:
        self._find = find
        self._settings = settings

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [binder.method(LIST_TOKENS, pb.ListTokensRequest, self.list_tokens)]

    async def list_tokens(self, request: pb.ListTokensRequest, call: Call) -> pb.ListTokensResponse:
        """A page of an account's tokens that match every filter."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        wanted = filter_of(request, fields, most_labels=self._settings.max_labels)
        bound_to = (LIST_TOKENS, account_id, *spelled(request))
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._settings.max_page)
        await fields.done_with(lambda: self._find.further_violations(caller_of(call), account_id, wanted))
        if wanted.unused_since is None and wanted.expires_before is None:
            page = require_number(page)
        else:
            page = require_pair(page, _require_time, _require_ordinal)
        found = await self._find.list_tokens(caller_of(call), account_id, wanted, page)
        return pb.ListTokensResponse(
            tokens=convert.shown_tokens(found.shown), next_page_token=page_token_of(found.next_key, bound_to)
        )


def _require_time(key: str) -> None:
    """Raises: ValueError, if it is no number of microseconds between 1970 and the year 9999."""
    _require_below(LAST_US, key)


def _require_ordinal(key: str) -> None:
    """Raises: ValueError, if it is no ordinal."""
    _require_below(2**63, key)


def _require_below(bound: int, key: str) -> None:
    if not (key.isascii() and key.isdecimal() and int(key) < bound):
        raise ValueError(key)
