"""TokenAdmin, of a token that acts on itself: the credential of the call says which one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_REASON, Fields
from doorward_server.api.request_ids import request_id_of
from doorward_server.api.requests import caller_of, request_of
from doorward_server.api.token_changes import overlap_of

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.rotate import Rotate
    from doorward_server.service.self_service import SelfService

__all__ = ["TokenSelf"]

SERVICE: Final = "/doorward.v1.TokenAdmin/"


class TokenSelf:
    """The RPCs."""

    def __init__(self, itself: SelfService, rotate: Rotate) -> None:
        self._itself = itself
        self._rotate = rotate

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [
            binder.method(SERVICE + "DescribeSelf", pb.DescribeSelfRequest, self.describe_self),
            binder.method(SERVICE + "RevokeSelf", pb.RevokeSelfRequest, self.revoke_self),
            binder.method(SERVICE + "RotateSelf", pb.RotateSelfRequest, self.rotate_self),
        ]

    async def describe_self(self, _request: pb.DescribeSelfRequest, call: Call) -> pb.DescribeSelfResponse:
        """The calling token's record, and when the secret that it called with ends."""
        described = await self._itself.describe_self(caller_of(call))
        return pb.DescribeSelfResponse(
            token=convert.shown_token(described.shown),
            secret_expire_time=convert.timestamp_of_us(described.secret_expire_us),
        )

    async def revoke_self(self, request: pb.RevokeSelfRequest, call: Call) -> pb.RevokeSelfResponse:
        """Revokes the calling token for good."""
        fields = Fields()
        reason = fields.text("reason", request.reason, longest=LONGEST_REASON)
        fields.done()
        done = await self._itself.revoke_self(request_of(call), reason)
        return pb.RevokeSelfResponse(
            token=convert.shown_token(done.value), propagation=convert.propagation(done.propagation)
        )

    async def rotate_self(self, request: pb.RotateSelfRequest, call: Call) -> pb.RotateSelfResponse:
        """Makes a new secret of the calling token and shows it, once."""
        fields = Fields()
        overlap = overlap_of(fields, request.overlap if request.HasField("overlap") else None)
        request_id = request_id_of(fields, request, call.path)
        fields.done()
        done = await self._rotate.rotate_self(request_of(call), overlap, request_id)
        return pb.RotateSelfResponse(
            token=convert.shown_token(done.value.shown),
            secret="" if done.value.secret is None else done.value.secret.reveal(),
            propagation=convert.propagation(done.propagation),
            former_secret_expire_time=convert.timestamp(done.value.former_expire_time),
        )
