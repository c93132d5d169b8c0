"""TokenAdmin, of what changes a token that is there: UpdateToken, RotateToken, DisableToken, EnableToken."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import Fields
from doorward_server.api.masks import wanted_update
from doorward_server.api.request_ids import request_id_of
from doorward_server.api.requests import caller_of, request_of

if TYPE_CHECKING:
    from google.protobuf import duration_pb2

    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.rotate import Rotate
    from doorward_server.service.switch import Switch
    from doorward_server.service.update import Update
    from doorward_server.settings import Settings

__all__ = ["TokenChanges", "overlap_of"]

SERVICE: Final = "/doorward.v1.TokenAdmin/"
LONGEST_OVERLAP: Final = timedelta(days=30)


class TokenChanges:
    """The RPCs."""

    def __init__(self, update: Update, rotate: Rotate, switch: Switch, settings: Settings) -> None:
        self._update = update
        self._rotate = rotate
        self._switch = switch
        self._settings = settings

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [
            binder.method(SERVICE + "UpdateToken", pb.UpdateTokenRequest, self.update_token),
            binder.method(SERVICE + "RotateToken", pb.RotateTokenRequest, self.rotate_token),
            binder.method(SERVICE + "DisableToken", pb.DisableTokenRequest, self.disable_token),
            binder.method(SERVICE + "EnableToken", pb.EnableTokenRequest, self.enable_token),
        ]

    async def update_token(self, request: pb.UpdateTokenRequest, call: Call) -> pb.UpdateTokenResponse:
        """Updates what the mask names."""
        fields = Fields()
        wanted = wanted_update(fields, request, self._settings)
        await fields.done_with(lambda: self._update.further_violations(caller_of(call), wanted))
        done = await self._update.update_token(request_of(call, validate_only=request.validate_only), wanted)
        return pb.UpdateTokenResponse(
            token=convert.shown_token(done.value), propagation=convert.propagation(done.propagation)
        )

    async def rotate_token(self, request: pb.RotateTokenRequest, call: Call) -> pb.RotateTokenResponse:
        """Makes a new secret and shows it, once."""
        fields = Fields()
        token_id = fields.identifier("token_id", request.token_id)
        overlap = overlap_of(fields, request.overlap if request.HasField("overlap") else None)
        request_id = request_id_of(fields, request, call.path)
        fields.done()
        done = await self._rotate.rotate_token(
            request_of(call, validate_only=request.validate_only), token_id, overlap, request_id
        )
        return pb.RotateTokenResponse(
            token=convert.shown_token(done.value.shown),
            secret="" if done.value.secret is None else done.value.secret.reveal(),
            propagation=convert.propagation(done.propagation),
            former_secret_expire_time=convert.timestamp(done.value.former_expire_time),
        )

    async def disable_token(self, request: pb.DisableTokenRequest, call: Call) -> pb.DisableTokenResponse:
        """Stops a token, reversibly."""
        fields = Fields()
        token_id = fields.identifier("token_id", request.token_id)
        fields.done()
        done = await self._switch.disable_token(request_of(call), token_id)
        return pb.DisableTokenResponse(
            token=convert.shown_token(done.value), propagation=convert.propagation(done.propagation)
        )

    async def enable_token(self, request: pb.EnableTokenRequest, call: Call) -> pb.EnableTokenResponse:
        """Lets a disabled token work again."""
        fields = Fields()
        token_id = fields.identifier("token_id", request.token_id)
        fields.done()
        done = await self._switch.enable_token(request_of(call), token_id)
        return pb.EnableTokenResponse(
            token=convert.shown_token(done.value), propagation=convert.propagation(done.propagation)
        )


def overlap_of(fields: Fields, given: duration_pb2.Duration | None) -> timedelta:
    """How long a secret that is rotated out goes on working: 0 to 30 days, and it must be said even to be 0."""
    right = f"0s (the former secret stops at once) to {LONGEST_OVERLAP.days * 86_400}s (30 days)"
    if given is None:
        fields.wrong("overlap", f"is required: how long the former secret goes on working, {right}", "FIELD_REQUIRED")
        return timedelta(0)
    nanoseconds = given.seconds * 1_000_000_000 + given.nanos
    is_normal = abs(given.nanos) < 1_000_000_000 and (
        given.seconds == 0 or given.nanos == 0 or (given.seconds > 0) == (given.nanos > 0)
    )
    if not is_normal or not 0 <= nanoseconds <= LONGEST_OVERLAP // timedelta(microseconds=1) * 1_000:
        fields.wrong("overlap", f"must be a span from {right}", "FIELD_OUT_OF_RANGE")
        return timedelta(0)
    return timedelta(microseconds=nanoseconds // 1_000)
