"""The messages of `Watch` on the wire: protobuf to the plain values of `core.watch_messages`, and back.

Every rounding errs to the side of no: a sub-lease and an end come out no later, the database's time no earlier. Whatever
this version does not know is a `WatchViolation`, which ends the session: nobody may decide by what was not understood.
Used by both dialects (contract, Watch; design section 7, Watchers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from doorward.core import watch_messages as said
from doorward.core.entries import account_entry
from doorward.core.watch_session import WatchViolation
from doorward.v1 import authorizer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from doorward.v1 import types_pb2

__all__ = ["decoded", "encoded"]

REQUEST: Final = pb.WatchRequest
# Of a field of WatchKey, the kind of its key.
KINDS: Final = {f"{kind.value}_id": kind for kind in said.KeyKind}


def encoded(message: said.ToReplica) -> bytes:
    """The bytes of a message of the watcher."""
    return _request(message).SerializeToString()


def decoded(received: bytes) -> said.FromReplica:
    """The message that these bytes are.

    Raises:
        WatchViolation: they are none, or none that is known here.
    """
    try:
        message = pb.WatchResponse.FromString(received)
    except DecodeError:
        raise WatchViolation("what came is no WatchResponse") from None
    try:
        body = _body(message)
    except ValueError as error:  # a time or a span out of its range
        raise WatchViolation("a message has a time or a span that is none") from error
    return said.FromReplica(message.sequence, message.position, body)


def _request(message: said.ToReplica) -> pb.WatchRequest:
    match message:
        case said.Ack():
            return REQUEST(ack=REQUEST.Ack(position=message.position))
        case said.Ask():
            return REQUEST(ask=REQUEST.Ask(ask=message.ask))
        case said.Resolve():
            return REQUEST(resolve=REQUEST.Resolve(id=message.id, secret=message.secret.reveal()))
        case said.ResolveProject():
            return REQUEST(resolve_project=REQUEST.ResolveProject(id=message.id, project_id=message.project_id))
        case said.Forget():
            keys = [_key(key) for key in message.keys]
            return REQUEST(forget=REQUEST.Forget(keys=keys, sequence=message.sequence))
        case said.Hello():
            return REQUEST(hello=REQUEST.Hello(agent=message.agent))
        case said.Goodbye():
            return REQUEST(goodbye=REQUEST.Goodbye(session_id=message.session_id))


def _key(key: said.WatchKey) -> pb.WatchKey:
    match key.kind:
        case said.KeyKind.TOKEN:
            return pb.WatchKey(token_id=key.id)
        case said.KeyKind.ACCOUNT:
            return pb.WatchKey(account_id=key.id)
        case said.KeyKind.PROJECT:
            return pb.WatchKey(project_id=key.id)


def _body(message: pb.WatchResponse) -> said.Body:
    match message.WhichOneof("body"):
        case "start":
            return _start(message.start)
        case "snapshot":
            return _snapshot(message.snapshot)
        case "evict":
            evict = message.evict
            return said.Evict(_keys(evict.keys), evict.catalog, evict.everything)
        case "catalog":
            return _catalog(message.catalog)
        case "lease_grant":
            grant = message.lease_grant
            if not grant.HasField("latest_time"):
                raise WatchViolation("a sub-lease does not tell the database's time")
            return said.LeaseGrant(grant.ask, _span_ns(grant.length), _us_above(grant.latest_time))
        case "reset":
            return said.Reset()
        case "failure":
            return said.Failure(message.failure.id)
        case _:
            raise WatchViolation("a message has no body that is known here")


def _start(start: pb.WatchResponse.Start) -> said.Start:
    if start.resumed:
        raise WatchViolation("the session claims to go on from another one, which was not asked for")
    return said.Start(
        start.session_id,
        _span_ns(start.hold),
        _span_ns(start.ask_interval),
        _span_ns(start.ack_within),
        start.max_held_keys,
    )


def _snapshot(snapshot: pb.WatchResponse.Snapshot) -> said.TokenSnapshot | said.Unrecognized | said.ProjectSnapshot:
    match snapshot.WhichOneof("entry"):
        case "token":
            return _token(snapshot.id, snapshot.token)
        case "unrecognized":
            return said.Unrecognized(snapshot.id, snapshot.unrecognized.token_id)
        case "project":
            project = snapshot.project
            return said.ProjectSnapshot(snapshot.id, project.project_id, project.account_id or None)
        case _:
            raise WatchViolation("a snapshot has no entry that is known here")


def _token(number: int, token: pb.WatchResponse.Snapshot.Token) -> said.TokenSnapshot:
    account = token.account
    return said.TokenSnapshot(
        number,
        token.token_id,
        account_entry(account.account_id, account.plan, account.state),
        token.secret_version,
        tuple(
            (secret.version, _us_below(secret.expire_time) if secret.HasField("expire_time") else None)
            for secret in token.secrets
        ),
        token.revoked,
        token.disabled,
        _us_below(token.expire_time) if token.HasField("expire_time") else None,
        tuple(_grant(grant) for grant in token.grants),
    )


def _grant(grant: types_pb2.Grant) -> tuple[str, tuple[str, ...] | None]:
    if grant.all_projects and grant.project_ids:
        raise WatchViolation("a grant is on all projects and on some")
    return grant.permission_set, None if grant.all_projects else tuple(grant.project_ids)


def _catalog(catalog: pb.WatchResponse.Catalog) -> said.CatalogSent:
    return said.CatalogSent(
        catalog.catalog_version,
        catalog.label,
        catalog.schema,
        {resource.name: tuple(resource.actions) for resource in catalog.account_resources},
        {resource.name: tuple(resource.actions) for resource in catalog.project_resources},
        {held.name: (tuple(held.read), tuple(held.write)) for held in catalog.permission_sets},
        {plan.name: tuple(plan.permission_sets) for plan in catalog.plans},
    )


def _keys(keys: Iterable[pb.WatchKey]) -> tuple[said.WatchKey, ...]:
    found = []
    for key in keys:
        field = key.WhichOneof("key")
        if field is None:
            raise WatchViolation("an evict has a key of a kind that is not known here")
        found.append(said.WatchKey(KINDS[field], getattr(key, field)))
    return tuple(found)


def _span_ns(span: Duration) -> int:
    return span.ToNanoseconds()  # exact


def _us_above(stamp: Timestamp) -> int:
    return -(-stamp.ToNanoseconds() // 1_000)


def _us_below(stamp: Timestamp) -> int:
    return stamp.ToNanoseconds() // 1_000
