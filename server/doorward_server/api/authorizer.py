"""Authorizer: the checks' two paths, warm and cold, and what a token may do (design sections 3, 7 and 11).

Every attempt verifies the caller too, under the lease that the call captured first: here nothing is admitted beforehand.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from doorward.core.entries import (
    TOKEN_COMPILED,
    TOKEN_EXPIRE_US,
    TOKEN_GRANTS,
    TOKEN_ID,
    TOKEN_SECRETS,
    find_live_secret,
)
from doorward.core.matrix import DenyReason, Grant, effective_state, held_permissions
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2
from doorward_server.api import convert
from doorward_server.api.access import TABLE
from doorward_server.api.asking import Asking, demand_of
from doorward_server.api.checks import Seen, encode_batch, item_of, items_of, note_violations
from doorward_server.api.encoding import encode_check
from doorward_server.api.fields import Fields
from doorward_server.api.methods import Method, Peer
from doorward_server.api.warm import BATCH_CHECK, CHECK, CHUNK, STREAM_CHECKS, WarmChecks
from doorward_server.api.wrapper import parsed
from doorward_server.replica.caches import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from doorward.core.catalog import Catalog
    from doorward.core.revision import Revision
    from doorward_server.api.checks import Item
    from doorward_server.errors import Refused
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.recognition import Recognition
    from doorward_server.service.authorize import AllMissing, Authorizer, Holder
    from doorward_server.service.callers import Callers
    from doorward_server.service.freshness import Freshness
    from doorward_server.service.tokens import Tokens

__all__ = ["AuthorizerApi"]

T = TypeVar("T")

SERVICE: Final = "/doorward.v1.Authorizer/"
LIST_PERMISSIONS: Final = SERVICE + "ListPermissions"
INTROSPECT: Final = SERVICE + "IntrospectToken"

LARGE_AT_ONCE: Final = 2
# What a verdict says of the token's state; a suspended account says nothing of it.
STATES: Final = {
    types_pb2.DENY_REASON_UNSPECIFIED: types_pb2.TOKEN_STATE_ACTIVE,
    types_pb2.DENY_REASON_TOKEN_REVOKED: types_pb2.TOKEN_STATE_REVOKED,
    types_pb2.DENY_REASON_TOKEN_EXPIRED: types_pb2.TOKEN_STATE_EXPIRED,
    types_pb2.DENY_REASON_TOKEN_DISABLED: types_pb2.TOKEN_STATE_DISABLED,
}


class AuthorizerApi(WarmChecks):
    """The service's RPCs."""

    def __init__(
        self,
        holding: Holding,
        authorizer: Authorizer,
        callers: Callers,
        recognition: Recognition,
        freshness: Freshness,
        tokens: Tokens,
        *,
        max_batch: int,
    ) -> None:
        super().__init__(holding, authorizer, callers)
        self._attempts = Asking(authorizer, callers)
        self._recognition = recognition
        self._freshness = freshness
        self._tokens = tokens
        self._max_batch = max_batch
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    def methods(self) -> list[Method]:
        """Its part of the method table."""
        return [
            Method(CHECK, TABLE[CHECK], self.check_warm, self.check),
            Method(BATCH_CHECK, TABLE[BATCH_CHECK], self.batch_check_warm, self.batch_check),
            Method(LIST_PERMISSIONS, TABLE[LIST_PERMISSIONS], None, self.list_permissions),
            Method(INTROSPECT, TABLE[INTROSPECT], None, self.introspect_token),
        ]

    async def check(self, request: bytes, peer: Peer) -> bytes:
        """A Check, with whatever must be brought for it."""
        await self._admitted(CHECK, peer)
        message = parsed(pb.CheckRequest, request)
        item, fields = item_of(message), Fields()
        demand = demand_of(message.consistency, fields)
        if not fields.are_right:
            catalog, _ = await self._under_lease(CHECK, peer, lambda catalog, _now_us, _refuted: catalog)
            note_violations(fields, item, catalog)
            fields.done()
        await self._freshness.reached(demand, peer.until_ns)
        decision, revision = await self._under_lease(
            CHECK, peer, lambda catalog, now_us, refuted: self._checker.one(item, catalog, now_us, refuted)
        )
        return encode_check(decision, str(revision))

    async def batch_check(self, request: bytes, peer: Peer) -> bytes:
        """A BatchCheck, in chunks, each under a lease of its own."""
        await self._admitted(BATCH_CHECK, peer)
        return await self._batch(BATCH_CHECK, parsed(pb.BatchCheckRequest, request), peer)

    async def streamed_batch(self, message: pb.BatchCheckRequest, peer: Peer) -> bytes:
        """The same of one message of a stream, whose caller is verified as if it had just come."""
        await self._admitted(STREAM_CHECKS, peer)
        return await self._batch(STREAM_CHECKS, message, peer)

    async def list_permissions(self, request: bytes, peer: Peer) -> bytes:
        """What a Check would allow, at the account or at one project."""
        await self._admitted(LIST_PERMISSIONS, peer)
        message, fields = parsed(pb.ListPermissionsRequest, request), Fields()
        secret = fields.secret("secret", message.secret)
        project_id = fields.identifier("project_id", message.project_id) if message.HasField("project_id") else None
        demand = demand_of(message.consistency, fields)
        fields.done()
        await self._freshness.reached(demand, peer.until_ns)

        def attempt(catalog: Catalog, now_us: int, refuted: set[bytes]) -> pb.ListPermissionsResponse | Missing:
            holder = self._authorizer.find_holder(secret, catalog, now_us, refuted)
            if holder is None or isinstance(holder, Missing):
                unrecognized = types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED
                return holder or pb.ListPermissionsResponse(reason=unrecognized)
            return self._permissions_of(holder, project_id, catalog, now_us)

        response, revision = await self._under_lease(LIST_PERMISSIONS, peer, attempt)
        response.revision = str(revision)
        return response.SerializeToString()

    async def introspect_token(self, request: bytes, peer: Peer) -> bytes:
        """What a token is."""
        await self._admitted(INTROSPECT, peer)
        message, fields = parsed(pb.IntrospectTokenRequest, request), Fields()
        secret = fields.secret("secret", message.secret)
        demand = demand_of(message.consistency, fields)
        fields.done()
        await self._freshness.reached(demand, peer.until_ns)

        def attempt(catalog: Catalog, now_us: int, refuted: set[bytes]) -> pb.IntrospectTokenResponse | Missing:
            holder = self._authorizer.find_holder(secret, catalog, now_us, refuted)
            if holder is None or isinstance(holder, Missing):
                return holder or pb.IntrospectTokenResponse(reason=types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED)
            return self._introspection_of(holder, secret, catalog, now_us)

        response, revision = await self._under_lease(INTROSPECT, peer, attempt)
        if not response.token_id:
            response.revision = str(revision)
            return response.SerializeToString()
        # Names and times for display come from the database; the verdict is taken afterwards, under a lease of its own.
        shown = await self._tokens.get_presented(response.token_id)
        response, revision = await self._under_lease(INTROSPECT, peer, attempt)
        record = convert.shown_token(shown)
        if response.token_id:
            response.display_name, response.state = record.display_name, _state_of(response.reason, record.state)
            response.create_time.CopyFrom(record.create_time)
            if record.HasField("last_used_time"):
                response.last_used_time.CopyFrom(record.last_used_time)
        response.revision = str(revision)
        return response.SerializeToString()

    async def _admitted(self, path: str, peer: Peer) -> None:
        await self._attempts.admitted(path, peer)

    async def _under_lease(
        self, path: str, peer: Peer, attempt: Callable[[Catalog, int, set[bytes]], T | Missing | AllMissing]
    ) -> tuple[T, Revision]:
        return await self._attempts.under_lease(
            path, peer, lambda asked: attempt(asked.catalog, asked.now_us, asked.refuted)
        )

    def _require_bounds(self, message: pb.BatchCheckRequest, fields: Fields) -> None:
        count = len(message.items)
        if message.secret:
            fields.secret("secret", message.secret)
        if not count:
            fields.wrong("items", f"is required: 1 to {self._max_batch} items", "FIELD_REQUIRED")
        elif count > self._max_batch:
            fields.wrong("items", f"has {count} items; at most {self._max_batch} are allowed", "TOO_MANY_ITEMS")
        fields.done()

    async def _batch(self, path: str, message: pb.BatchCheckRequest, peer: Peer) -> bytes:
        fields = Fields()
        demand = demand_of(message.consistency, fields)
        self._require_bounds(message, fields)
        await self._freshness.reached(demand, peer.until_ns)
        items = items_of(message)
        if len(items) <= CHUNK:
            results, revision = await self._chunk(path, items, peer, Seen())
            return encode_batch(results, str(revision))
        async with self._large:
            return await self._chunks(path, items, peer)

    async def _chunk(self, path: str, items: Sequence[Item], peer: Peer, seen: Seen) -> tuple[list[bytes], Revision]:
        failed: dict[tuple[str, str], Refused] = {}

        def attempt(catalog: Catalog, now_us: int, refuted: set[bytes]) -> list[bytes] | AllMissing:
            here = seen.at(self._holding.history.applied)
            return self._checker.many(items, catalog, now_us, refuted, failed, here)

        return await self._under_lease(path, peer, attempt)

    async def _chunks(self, path: str, items: Sequence[Item], peer: Peer) -> bytes:
        results: list[bytes] = []
        first: Revision | None = None
        seen = Seen()
        for start in range(0, len(items), CHUNK):
            more, revision = await self._chunk(path, items[start : start + CHUNK], peer, seen)
            results += more
            # The oldest state that any of them was decided from.
            first = revision if first is None else first
            await asyncio.sleep(0)
        return encode_batch(results, str(first))

    def _permissions_of(
        self, holder: Holder, project_id: str | None, catalog: Catalog, now_us: int
    ) -> pb.ListPermissionsResponse | Missing:
        token, account = holder
        reason = effective_state(token, account, now_us)
        if project_id is not None and reason is DenyReason.ALLOWED:
            owner = self._authorizer.find_project_account(project_id)
            if isinstance(owner, Missing):
                return owner
            if owner != account[0]:
                reason = DenyReason.RESOURCE_NOT_IN_ACCOUNT
        usable = reason is DenyReason.ALLOWED
        return pb.ListPermissionsResponse(
            permissions=held_permissions(token[TOKEN_COMPILED], catalog, project_id) if usable else (),
            usable=usable,
            reason=types_pb2.DenyReason.ValueType(reason),
            token_id=token[TOKEN_ID],
            account_id=account[0],
        )

    def _introspection_of(
        self, holder: Holder, secret: bytes, catalog: Catalog, now_us: int
    ) -> pb.IntrospectTokenResponse:
        token, account = holder
        reason = effective_state(token, account, now_us)
        version = self._recognition.tokens.version_of(secret)
        live = None if version is None else find_live_secret(token[TOKEN_SECRETS], version, now_us)
        return pb.IntrospectTokenResponse(
            active=reason is DenyReason.ALLOWED,
            reason=types_pb2.DenyReason.ValueType(reason),
            token_id=token[TOKEN_ID],
            account_id=account[0],
            grants=convert.grants((Grant(name, ids) for name, ids in token[TOKEN_GRANTS]), catalog, account[1]),
            expire_time=convert.timestamp_of_us(token[TOKEN_EXPIRE_US]),
            secret_expire_time=convert.timestamp_of_us(None if live is None else live[3]),
        )


def _state_of(
    reason: types_pb2.DenyReason.ValueType, recorded: types_pb2.TokenState.ValueType
) -> types_pb2.TokenState.ValueType:
    """The state that goes with the verdict: record and verdict were read by two clocks, a moment apart."""
    return STATES.get(reason, recorded)
