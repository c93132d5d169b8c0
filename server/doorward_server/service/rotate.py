"""Rotating a token's secret (contract: TokenAdmin.RotateToken, RotateSelf): a new one under the same id.

A token has at most two live secrets: the current one, and one that was rotated out and works until its overlap ends. When
another rotation comes within that overlap, the secret in the middle is dropped at once and the oldest keeps its own end:
whoever still changes over from it was promised that time, and an overlap never grows by repeating the rotation. The order
is that of the versions, whoever calls. So a token that rotates itself with its *old* secret, in its overlap, gets a new
one, drops the current one and gains no time for the old one. This is what makes a lost answer harmless: the secret that
nobody received is the one that goes. If the old secret was stolen, its rightful holder finds at once that the current one
has stopped; that the thief can rotate at all is what `allow_self_rotation` allows, and `RevokeToken` ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from doorward_server.errors import FailedPrecondition
from doorward_server.service.delegation import may_see, not_permitted, token_not_found
from doorward_server.service.idempotency import Told
from doorward_server.service.mutations import Done
from doorward_server.service.token_mutations import Outcome, require_not_revoked
from doorward_server.storage import token_secrets, tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from doorward.core.secret import Secret
    from doorward_server.model import Json, Token
    from doorward_server.service.context import Request
    from doorward_server.service.idempotency import Idempotency, Repeatable, RequestId
    from doorward_server.service.new_secrets import NewSecret, NewSecrets
    from doorward_server.service.shown import Shown
    from doorward_server.service.token_mutations import Standing, TokenMutations
    from doorward_server.storage.pool import Database
    from doorward_server.storage.token_secrets import LiveSecret

__all__ = ["Rotate", "Rotated", "succession"]


@dataclass(frozen=True, slots=True)
class Rotated:
    """The token and its new secret (none if it was only validated), and when the former one stops (None: it has)."""

    shown: Shown
    secret: Secret | None
    former_expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class _Rotation:
    """What is asked for. `is_own`: a token rotates itself, and `presented` is the version that it called with."""

    request: Request
    action: str
    token_id: str
    overlap: timedelta
    repeatable: Repeatable | None
    is_own: bool = False

    @property
    def presented(self) -> int | None:
        return self.request.caller.secret_version if self.is_own else None


class Rotate:
    """The two use cases. A repeat of what has the same `request_id` rotates nothing and is answered as the first one was."""

    def __init__(
        self, database: Database, mutations: TokenMutations, new_secrets: NewSecrets, idempotency: Idempotency
    ) -> None:
        self._database = database
        self._mutations = mutations
        self._new_secrets = new_secrets
        self._idempotency = idempotency

    async def rotate_token(
        self, request: Request, token_id: str, overlap: timedelta, request_id: RequestId | None = None
    ) -> Done[Rotated]:
        """Makes a new secret of the token, or with `request.validate_only` checks that it could be done.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
            FailedPrecondition: TOKEN_IS_REVOKED, TOKEN_IS_EXPIRED, ACCOUNT_DELETED.
            PermissionDenied: EXCEEDS_CALLER.
            InvalidArgument: REQUEST_ID_REUSED.
            Exhausted: HASHING_BUSY.
        """
        repeatable = self._idempotency.repeatable(request, request_id)
        return await self._run(_Rotation(request, "RotateToken", token_id, overlap, repeatable))

    async def rotate_self(
        self, request: Request, overlap: timedelta, request_id: RequestId | None = None
    ) -> Done[Rotated]:
        """Makes a new secret of the token that calls.

        Raises:
            PermissionDenied: CALLER_NOT_PERMITTED, it may not rotate itself.
            Unauthenticated: the secret that it called with has stopped since it was recognized.
            InvalidArgument: REQUEST_ID_REUSED.
            Exhausted: HASHING_BUSY.
        """
        own, repeatable = request.caller.subject_id, self._idempotency.repeatable(request, request_id)
        return await self._run(_Rotation(request, "RotateSelf", own, overlap, repeatable, is_own=True))

    async def _run(self, rotation: _Rotation) -> Done[Rotated]:
        request = rotation.request
        await self._require_worth_hashing(rotation)
        new = None if request.validate_only else await self._new_secrets.make(rotation.token_id)
        told: Told | None = None
        former_expire_time: datetime | None = None

        async def decide(standing: Standing) -> Outcome:
            nonlocal told, former_expire_time
            _require_may(rotation, standing)
            told = None if rotation.repeatable is None else await rotation.repeatable.find(standing.transaction)
            if told is not None:
                former_expire_time = await _repeated_end(rotation, standing, told)
                return Outcome(None)
            _require_not_expired(standing.token, standing.transaction.now)
            if new is None:
                return Outcome(None)
            told, ends, outcome = await _rotated(rotation, standing, new)
            former_expire_time = _former_end(rotation, standing, ends)
            return outcome

        done = await self._mutations.run(request, rotation.action, rotation.token_id, decide)
        if told is None or request.validate_only:
            return Done(Rotated(done.value, None, None), done.propagation)
        return Done(Rotated(done.value, told.secret, former_expire_time), done.propagation)

    async def _require_worth_hashing(self, rotation: _Rotation) -> None:
        """Refuses without a bcrypt what would be refused after it; what counts is read again under the locks."""
        request = rotation.request
        async with self._database.reading() as connection:
            token = await tokens.read(connection, rotation.token_id)
        if token is None or not may_see(request.caller, token.account_id):
            raise token_not_found(rotation.token_id)
        if rotation.is_own and not token.allow_self_rotation:
            raise not_permitted(request.caller, request.method)


def succession(live: Sequence[LiveSecret], now: datetime, overlap: timedelta) -> dict[int, datetime]:
    """When each secret that lives at `now` stops once another one is current; `live` has the oldest first."""
    oldest, *newer = live
    if oldest.not_after is None:
        return {oldest.version: now + overlap}
    return {oldest.version: oldest.not_after, **{secret.version: now for secret in newer}}


def _require_may(rotation: _Rotation, standing: Standing) -> None:
    """Whether the caller, as it is now, may have a secret of the token.

    Raises:
        PermissionDenied: EXCEEDS_CALLER or CALLER_NOT_PERMITTED.
        FailedPrecondition: TOKEN_IS_REVOKED.
    """
    require_not_revoked(standing.token)
    if not rotation.is_own:
        standing.authority.require_may_rotate(standing.token)
    elif not standing.token.allow_self_rotation:
        raise not_permitted(rotation.request.caller, rotation.request.method)


def _require_not_expired(token: Token, now: datetime) -> None:
    if token.expire_time is not None and token.expire_time <= now:
        raise FailedPrecondition(
            "TOKEN_IS_EXPIRED",
            f"token {token.token_id!r} has expired; give it a later expire_time first",
            metadata={"token_id": token.token_id},
        )


async def _rotated(
    rotation: _Rotation, standing: Standing, new: NewSecret
) -> tuple[Told, Mapping[int, datetime], Outcome]:
    """Makes `new` the current secret; what is told, when each former one stops, and what the audit says of it."""
    transaction, token = standing.transaction, standing.token
    live = await token_secrets.read_live(transaction.connection, token.token_id, transaction.now)
    ends = succession(live, transaction.now, rotation.overlap)
    told = Told(new.secret, live[-1].version + 1)
    stored = new.stored(told.version)
    await token_secrets.rotate(transaction, token.token_id, ends, stored, issued_to=rotation.request.caller.actor)
    if rotation.repeatable is not None:
        await rotation.repeatable.keep(transaction, told)
    former: dict[str, Json] = {str(version): end.isoformat() for version, end in ends.items()}
    outcome = Outcome(
        replace(token, update_time=transaction.now),
        {"secret_version": live[-1].version},
        {"secret_version": told.version, "former_secrets_end": former},
    )
    return told, ends, outcome


async def _repeated_end(rotation: _Rotation, standing: Standing, told: Told) -> datetime | None:
    """When the former secret of a rotation that was done before stops, as things are now."""
    transaction = standing.transaction
    live = await token_secrets.read_live(transaction.connection, standing.token.token_id, transaction.now)
    ends = {secret.version: secret.not_after for secret in live if secret.not_after and secret.version < told.version}
    return _former_end(rotation, standing, ends)


def _former_end(rotation: _Rotation, standing: Standing, ends: Mapping[int, datetime]) -> datetime | None:
    """When the secret that a token rotated itself with, or else the former one that still works, stops; None: it has.

    The token's own expiry stops all of them.
    """
    now, expire_time = standing.transaction.now, standing.token.expire_time
    asked = [end for version, end in ends.items() if rotation.presented in {None, version}]
    if expire_time is not None:
        asked = [min(end, expire_time) for end in asked]
    return max((end for end in asked if end > now), default=None)
