"""TokenAdmin.ListAuditEvents: parse, call the use case, answer."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from google.protobuf import struct_pb2

from doorward.core.revision import Revision
from doorward.v1 import token_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import Fields
from doorward_server.api.paging import page_of, page_token_of, require_pair
from doorward_server.api.requests import caller_of
from doorward_server.model import CallerKind
from doorward_server.storage.audit_lists import AuditQuery

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf import timestamp_pb2

    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.model import Caller, Json
    from doorward_server.service.audit import Audit
    from doorward_server.storage.audit_lists import ListedEvent

__all__ = ["AuditEvents"]

PATH: Final = "/doorward.v1.TokenAdmin/ListAuditEvents"

# Actors without an id: nobody is known to have done it; the command line did, without a server.
NAMELESS: Final = frozenset({"anonymous", "direct"})
_ACTION: Final = re.compile(r"[A-Za-z]+")
LONGEST_ACTION: Final = 64
_FIRST_SECOND: Final = -62135596800
_LAST_SECOND: Final = 253402300799


class AuditEvents:
    """The RPC."""

    def __init__(self, audit: Audit, *, max_page: int) -> None:
        self._audit = audit
        self._max_page = max_page

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [binder.method(PATH, pb.ListAuditEventsRequest, self.list_audit_events)]

    async def list_audit_events(self, request: pb.ListAuditEventsRequest, call: Call) -> pb.ListAuditEventsResponse:
        """A page of events or refusals, newest first."""
        fields, caller = Fields(), caller_of(call)
        query = _query_of(fields, caller, request)
        bound_to = _bound_to(request)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        fields.done()
        listed = await self._audit.list_events(caller, query, require_pair(page, _require_time, _require_id))
        return pb.ListAuditEventsResponse(
            audit_events=(_message(event, is_refusal=query.refusals) for event in listed.events),
            next_page_token=page_token_of(listed.next_key, bound_to),
        )


def _require_time(text: str) -> None:
    """Microseconds since the Unix epoch, in the years that there are."""
    if not _is_number(text) or int(text) > _LAST_SECOND * 1_000_000:
        raise ValueError


def _require_id(text: str) -> None:
    if not _is_number(text) or int(text) >= 2**63:
        raise ValueError


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _query_of(fields: Fields, caller: Caller, request: pb.ListAuditEventsRequest) -> AuditQuery:
    account_id = None
    if request.account_id or caller.kind is CallerKind.TOKEN:
        account_id = fields.identifier("account_id", request.account_id)
    start_time = _instant(fields, "start_time", request.start_time) if request.HasField("start_time") else None
    end_time = _instant(fields, "end_time", request.end_time) if request.HasField("end_time") else None
    if start_time is not None and end_time is not None and end_time <= start_time:
        fields.wrong("end_time", "must be after start_time", "FIELD_OUT_OF_RANGE")
    return AuditQuery(
        refusals=_kind(fields, request.kind) == pb.AUDIT_EVENT_KIND_REFUSAL,
        account_id=account_id,
        token_id=fields.identifier("token_id", request.token_id) if request.token_id else None,
        actor=_actor(fields, request.actor) if request.actor else None,
        action=_action(fields, request.action) if request.action else None,
        start_time=start_time,
        end_time=end_time,
    )


def _bound_to(request: pb.ListAuditEventsRequest) -> tuple[str, ...]:
    times = (request.start_time, request.end_time)
    return (
        PATH,
        request.account_id,
        request.token_id,
        request.actor,
        request.action,
        *(f"{time.seconds}.{time.nanos}" for time in times),
        # Unspecified means changes.
        str(request.kind or pb.AUDIT_EVENT_KIND_CHANGE),
    )


def _instant(fields: Fields, field: str, value: timestamp_pb2.Timestamp) -> datetime | None:
    """In microseconds, as events have it: a fraction of one belongs to the next, for both ends of a span."""
    if not _FIRST_SECOND <= value.seconds <= _LAST_SECOND or not 0 <= value.nanos < 1_000_000_000:
        fields.wrong(field, "must be a time between the years 1 and 9999", "FIELD_OUT_OF_RANGE")
        return None
    instant = value.ToDatetime(tzinfo=UTC)
    more = timedelta(microseconds=1 if value.nanos % 1000 else 0)
    return instant if instant == datetime.max.replace(tzinfo=UTC) else instant + more


def _kind(fields: Fields, kind: int) -> int:
    if kind not in pb.AuditEventKind.values():
        known = "AUDIT_EVENT_KIND_CHANGE, AUDIT_EVENT_KIND_REFUSAL"
        fields.wrong("kind", f"has the unknown value {kind}; it may be {known}", "FIELD_OUT_OF_RANGE")
    return kind


def _actor(fields: Fields, actor: str) -> str:
    kind, colon, subject_id = actor.partition(":")
    if actor in NAMELESS:
        return actor
    if not colon or kind not in {"operator", "token"}:
        fields.wrong("actor", "must be operator:<id>, token:<id>, anonymous or direct", "FIELD_MALFORMED")
    else:
        fields.identifier("actor", subject_id)
    return actor


def _action(fields: Fields, action: str) -> str:
    if len(action) > LONGEST_ACTION:
        text = f"has {len(action)} characters; the name of an RPC has at most {LONGEST_ACTION}"
        fields.wrong("action", text, "FIELD_TOO_LONG")
    elif not _ACTION.fullmatch(action):
        fields.wrong("action", "must be the name of an RPC, for example RevokeToken", "FIELD_MALFORMED")
    return action


def _message(event: ListedEvent, *, is_refusal: bool) -> pb.AuditEvent:
    return pb.AuditEvent(
        event_id=event.event_id,
        kind=pb.AUDIT_EVENT_KIND_REFUSAL if is_refusal else pb.AUDIT_EVENT_KIND_CHANGE,
        event_time=convert.timestamp(event.time),
        revision="" if is_refusal else str(Revision(event.epoch, event.number)),
        account_id=event.account_id or "",
        actor=event.actor,
        on_behalf_of=event.on_behalf_of,
        action=event.action,
        subject=event.subject,
        before=_struct(event.before),
        after=_struct(event.after),
        peer=event.peer,
        refusal_reason=event.reason,
        suppressed=event.suppressed,
    )


def _struct(value: Mapping[str, Json] | None) -> struct_pb2.Struct | None:
    if value is None:
        return None
    struct = struct_pb2.Struct()
    struct.update(value)
    return struct
