"""Between the contract's messages and the server's records (design section 3). No decision is made here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from google.protobuf import duration_pb2, timestamp_pb2

from doorward.core.revision import Revision
from doorward.v1 import system_admin_pb2, token_admin_pb2, types_pb2
from doorward_server.model import Account, Grant, Project, Propagation, ReplicaRow, Token, TokenState
from doorward_server.service.etags import etag_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from doorward.core.catalog import Catalog
    from doorward_server.service.shown import Shown
    from doorward_server.storage.changes import LogEnd

from doorward.core.catalog import Level

__all__ = [
    "account",
    "catalog",
    "grant",
    "permission_set",
    "project",
    "propagation",
    "replica",
    "shown_token",
    "shown_tokens",
    "timestamp",
    "token",
    "token_state",
]


def timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    """A time as the contract says it; None stays unset."""
    if time is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(time.astimezone(UTC).replace(tzinfo=None))
    return message


def timestamp_of_us(time_us: int | None) -> timestamp_pb2.Timestamp | None:
    """The same, from microseconds since the Unix epoch."""
    if time_us is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(time_us)
    return message


def duration(span_s: float) -> duration_pb2.Duration:
    """A span of seconds."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(span_s * 1e9))
    return message


def account(value: Account) -> types_pb2.Account:
    """An account."""
    return types_pb2.Account(
        account_id=value.account_id,
        display_name=value.display_name,
        plan=value.plan,
        state=types_pb2.AccountState.ValueType(value.state),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        etag=etag_of(value.revision),
    )


def project(value: Project) -> types_pb2.Project:
    """A project."""
    return types_pb2.Project(
        project_id=value.project_id,
        account_id=value.account_id,
        display_name=value.display_name,
        create_time=timestamp(value.create_time),
    )


def propagation(value: Propagation | None) -> types_pb2.Propagation | None:
    """How a change was propagated; unset when nothing was committed."""
    if value is None:
        return None
    return types_pb2.Propagation(
        revision=str(value.revision),
        replicas_confirmed=value.replicas_confirmed,
        replicas_expired=value.replicas_expired,
        watchers_confirmed=value.watchers_confirmed,
        elapsed=duration(value.elapsed_s),
    )


def grant(value: Grant, *, suspended: bool) -> types_pb2.Grant:
    """A grant, and whether it gives nothing at present."""
    return types_pb2.Grant(
        permission_set=value.permission_set,
        all_projects=value.project_ids is None,
        project_ids=value.project_ids or (),
        suspended=suspended,
    )


def grants(values: Iterable[Grant], catalog_now: Catalog, plan: str) -> list[types_pb2.Grant]:
    """Grants as they stand under a plan: suspended is what it does not cover, or what the catalog no longer knows."""
    return [grant(value, suspended=not catalog_now.covers(plan, value.permission_set)) for value in values]


def token_state(value: Token, now: datetime, *, account_deleted: bool = False) -> TokenState:
    """What becomes of a token that is presented, in the order in which a check names it (design section 2)."""
    if account_deleted or value.revoke_time is not None:
        return TokenState.REVOKED
    if value.expire_time is not None and value.expire_time <= now:
        return TokenState.EXPIRED
    return TokenState.DISABLED if value.disabled else TokenState.ACTIVE


def token(
    value: Token, catalog_now: Catalog, plan: str, now: datetime, *, account_deleted: bool = False
) -> types_pb2.ServiceToken:
    """A token's record; never anything that proves it."""
    return types_pb2.ServiceToken(
        token_id=value.token_id,
        account_id=value.account_id,
        display_name=value.display_name,
        description=value.description,
        labels=value.labels,
        grants=grants(value.grants, catalog_now, plan),
        state=types_pb2.TokenState.ValueType(token_state(value, now, account_deleted=account_deleted)),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        expire_time=timestamp(value.expire_time),
        revoke_time=timestamp(value.revoke_time),
        revoke_reason=value.revoke_reason,
        last_used_time=timestamp(value.last_used_time),
        created_by=value.created_by,
        allow_self_rotation=value.allow_self_rotation,
        etag=etag_of(value.revision),
    )


def shown_tokens(value: Shown) -> list[types_pb2.ServiceToken]:
    """Tokens as a use case answered them."""
    return [
        token(shown, value.catalog, value.plan, value.now, account_deleted=value.account_deleted)
        for shown in value.tokens
    ]


def shown_token(value: Shown) -> types_pb2.ServiceToken:
    """The one token that a use case answered."""
    return shown_tokens(value)[0]


def permission_set(catalog_now: Catalog, name: str, plan: str) -> token_admin_pb2.PermissionSet:
    """A permission set as an account's plan shows it."""
    value = catalog_now.permission_sets[name]
    return token_admin_pb2.PermissionSet(
        name=value.name,
        title=catalog_now.title_of(name, plan),
        description=value.description,
        aliases=value.aliases,
        account_permissions=catalog_now.permission_names(Level.ACCOUNT, value.account_mask),
        project_permissions=catalog_now.permission_names(Level.PROJECT, value.project_mask),
        covered=catalog_now.covers(plan, name),
    )


def catalog(value: Catalog, toml: str) -> system_admin_pb2.GetCatalogResponse:
    """The whole catalog, as text and taken apart."""
    response = system_admin_pb2.GetCatalogResponse(catalog=toml, catalog_version=value.version, label=value.label)
    for resource in value.resources.values():
        level = (
            system_admin_pb2.PERMISSION_LEVEL_ACCOUNT
            if resource.level is Level.ACCOUNT
            else system_admin_pb2.PERMISSION_LEVEL_PROJECT
        )
        response.resources.add(name=resource.name, title=resource.title, level=level, actions=resource.actions)
    for held in value.permission_sets.values():
        names = (
            *value.permission_names(Level.ACCOUNT, held.account_mask),
            *value.permission_names(Level.PROJECT, held.project_mask),
        )
        response.permission_sets.add(
            name=held.name, title=held.title, description=held.description, aliases=held.aliases, permissions=names
        )
    for plan in value.plans.values():
        response.plans.add(
            name=plan.name,
            title=plan.title,
            permission_sets=sorted(plan.permission_sets),
            set_titles=plan.set_titles,
        )
    return response


def replica(value: ReplicaRow, end: LogEnd) -> system_admin_pb2.Replica:
    """A replica's row, how far it is behind the log's end, and how long ago it renewed its lease when that was read."""
    return system_admin_pb2.Replica(
        replica_id=value.replica_id,
        epoch=value.epoch,
        hold=duration(value.hold_ms / 1000),
        applied_revision=str(Revision(value.epoch, value.applied_revision)),
        watchers=value.watchers,
        renewed_time=timestamp(value.renewed_time),
        started_time=timestamp(value.started_time),
        address=value.address,
        lag=max(0, end.number - value.applied_revision) if value.epoch == end.epoch else end.number,
        since_renewal=duration(max(0.0, end.database_us / 1e6 - value.renewed_time.timestamp())),
    )
