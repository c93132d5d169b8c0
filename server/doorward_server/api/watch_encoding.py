"""Makes the contract's WatchResponse of what a replica says to a watcher (`replica/watch_messages.py`).

Of a secret only its version goes out, and the end of its overlap: neither digest nor hash has a place in these messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf import duration_pb2

from doorward.core.entries import (
    ACCOUNT_ID,
    ACCOUNT_PLAN,
    ACCOUNT_STATE,
    SECRET_NOT_AFTER_US,
    SECRET_VERSION,
    TOKEN_EXPIRE_US,
    TOKEN_GRANTS,
    TOKEN_ID,
    TOKEN_IS_DISABLED,
    TOKEN_IS_REVOKED,
    TOKEN_SECRETS,
)
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2
from doorward_server.api.convert import timestamp_of_us
from doorward_server.api.errors import rpc_status_of
from doorward_server.api.watch_catalog import encoded_catalog
from doorward_server.replica import watch_messages as said

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog

__all__ = ["WatchEncoder", "key_of"]

RESPONSE: Final = pb.WatchResponse
# Of a key's kind, the field of WatchKey.
KEY_FIELDS: Final = {"token": "token_id", "account": "account_id", "project": "project_id"}
KINDS: Final = {field: kind for kind, field in KEY_FIELDS.items()}


def key_of(key: pb.WatchKey) -> str | None:
    """The key as the replica names it; None: it has none."""
    field = key.WhichOneof("key")
    return None if field is None else f"{KINDS[field]}:{getattr(key, field)}"


class WatchEncoder:
    """The messages of one replica. The catalog, which all watchers get, is taken apart once for each version."""

    def __init__(self, hold_ms: int, ack_within_ns: int) -> None:
        self._hold, self._quarter = _span(hold_ms * 1_000_000), _span(ack_within_ns)
        self._catalog: tuple[Catalog, pb.WatchResponse.Catalog] | None = None

    def encode(self, taken: said.Taken, epoch: int) -> bytes:
        """The message on the wire."""
        message = self._message(taken.body)
        message.sequence, message.position = taken.sequence, f"{epoch}.{taken.number}"
        return message.SerializeToString()

    def _message(self, body: said.Body) -> pb.WatchResponse:
        match body:
            case said.Grant():
                return RESPONSE(
                    lease_grant=RESPONSE.LeaseGrant(
                        ask=body.ask, length=_span(body.length_ns), latest_time=timestamp_of_us(body.latest_us)
                    )
                )
            case said.Evict():
                keys = [_watch_key(key) for key in body.keys]
                return RESPONSE(evict=RESPONSE.Evict(keys=keys, catalog=body.is_catalog, everything=body.is_everything))
            case said.CatalogSent():
                return RESPONSE(catalog=self._catalog_of(body.catalog))
            case said.Start():
                return RESPONSE(
                    start=RESPONSE.Start(
                        session_id=body.session_id,
                        hold=self._hold,
                        ask_interval=self._quarter,
                        ack_within=self._quarter,
                        max_held_keys=body.max_held_keys,
                    )
                )
            case said.Reset():
                return RESPONSE(reset=RESPONSE.Reset(cause=rpc_status_of(body.cause)))
            case said.Failure():
                return RESPONSE(failure=RESPONSE.Failure(id=body.id, error=rpc_status_of(body.refused)))
            case _:
                return RESPONSE(snapshot=_snapshot(body))

    def _catalog_of(self, catalog: Catalog) -> pb.WatchResponse.Catalog:
        known = self._catalog
        if known is None or known[0] is not catalog:
            known = self._catalog = (catalog, encoded_catalog(catalog))
        return known[1]


def _snapshot(
    body: said.TokenSnapshot | said.UnrecognizedSnapshot | said.ProjectSnapshot,
) -> pb.WatchResponse.Snapshot:
    snapshot = RESPONSE.Snapshot
    if isinstance(body, said.UnrecognizedSnapshot):
        return snapshot(id=body.id, unrecognized=snapshot.Unrecognized(token_id=body.token_id))
    if isinstance(body, said.ProjectSnapshot):
        return snapshot(
            id=body.id, project=snapshot.Project(project_id=body.project_id, account_id=body.account_id or "")
        )
    token, account = body.token, body.account
    return snapshot(
        id=body.id,
        token=snapshot.Token(
            token_id=token[TOKEN_ID],
            account=snapshot.Account(
                account_id=account[ACCOUNT_ID],
                plan=account[ACCOUNT_PLAN],
                state=types_pb2.AccountState.ValueType(account[ACCOUNT_STATE]),
            ),
            secret_version=body.secret_version,
            secrets=[
                snapshot.SecretVersion(
                    version=secret[SECRET_VERSION], expire_time=timestamp_of_us(secret[SECRET_NOT_AFTER_US])
                )
                for secret in token[TOKEN_SECRETS]
            ],
            revoked=token[TOKEN_IS_REVOKED],
            disabled=token[TOKEN_IS_DISABLED],
            expire_time=timestamp_of_us(token[TOKEN_EXPIRE_US]),
            grants=[
                types_pb2.Grant(permission_set=name, all_projects=project_ids is None, project_ids=project_ids or ())
                for name, project_ids in token[TOKEN_GRANTS]
            ],
        ),
    )


def _watch_key(key: str) -> pb.WatchKey:
    kind, _, subject_id = key.partition(":")
    message = pb.WatchKey()
    setattr(message, KEY_FIELDS[kind], subject_id)
    return message


def _span(span_ns: int) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(span_ns)
    return message
