"""SystemAdmin's calls from arguments: the catalog, operators, replicas. Answers are the contract's messages, but a secret's.

Each function is a method of `SystemAdminClient` in both dialects. What an RPC does, leaves alone and refuses is told in
`protos/doorward/v1/system_admin.proto`. `timeout`: seconds; the client's default if None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward._shared import call, call_to, duration_of, timestamp_of
from doorward.records import CreatedOperator
from doorward.v1 import system_admin_pb2 as pb
from doorward.v1 import types_pb2

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from doorward._shared import Call


def get_catalog(*, timeout: float | None = None) -> Call[pb.GetCatalogResponse]:
    """Reads the catalog in force: as TOML text and as messages."""
    return call(pb.GetCatalogRequest(), pb.GetCatalogResponse, timeout)


def preview_catalog(
    catalog: str,
    *,
    include_tokens: bool = False,
    page_size: int = 0,
    page_token: str = "",
    timeout: float | None = None,
) -> Call[pb.PreviewCatalogResponse]:
    """Tells how many tokens would gain and lose what if this catalog (TOML) were applied. Changes nothing."""
    request = pb.PreviewCatalogRequest(
        catalog=catalog, include_tokens=include_tokens, page_size=page_size, page_token=page_token
    )
    return call(request, pb.PreviewCatalogResponse, timeout)


def apply_catalog(
    catalog: str,
    *,
    expected_catalog_version: int = 0,
    force: bool = False,
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[pb.ApplyCatalogResponse]:
    """Replaces the whole catalog (TOML). Not sent again by gRPC: every apply raises the version."""
    request = pb.ApplyCatalogRequest(
        catalog=catalog,
        expected_catalog_version=expected_catalog_version,
        force=force,
        validate_only=validate_only,
    )
    return call(request, pb.ApplyCatalogResponse, timeout)


def create_operator(
    role: types_pb2.OperatorRole.ValueType,
    *,
    display_name: str,
    expire_time: datetime | None = None,
    ttl: timedelta | None = None,
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[CreatedOperator]:
    """Creates an operator, whose credential is seen here and never again. Not sent again by gRPC: that makes another."""
    if expire_time is not None and ttl is not None:
        raise ValueError("expire_time and ttl both say when it expires; give one of them")
    request = pb.CreateOperatorRequest(
        role=role,
        display_name=display_name,
        expire_time=timestamp_of(expire_time),
        ttl=duration_of(ttl),
        validate_only=validate_only,
    )
    return call_to(request, pb.CreateOperatorResponse, timeout, CreatedOperator.of)


def list_operators(
    *,
    role: types_pb2.OperatorRole.ValueType = types_pb2.OPERATOR_ROLE_UNSPECIFIED,
    include_inactive: bool = False,
    page_size: int = 0,
    page_token: str = "",
    timeout: float | None = None,
) -> Call[pb.ListOperatorsResponse]:
    """A page of operators, newest first. Never their credentials."""
    request = pb.ListOperatorsRequest(
        role=role, include_inactive=include_inactive, page_size=page_size, page_token=page_token
    )
    return call(request, pb.ListOperatorsResponse, timeout)


def revoke_operator(
    operator_id: str, *, reason: str = "", validate_only: bool = False, timeout: float | None = None
) -> Call[pb.RevokeOperatorResponse]:
    """Revokes an operator's credential, for good: once this returns, no call with it passes, at any replica."""
    request = pb.RevokeOperatorRequest(operator_id=operator_id, reason=reason, validate_only=validate_only)
    return call(request, pb.RevokeOperatorResponse, timeout)


def list_replicas(
    *, page_size: int = 0, page_token: str = "", timeout: float | None = None
) -> Call[pb.ListReplicasResponse]:
    """A page of the server processes that a change waits for, and how far each has come."""
    request = pb.ListReplicasRequest(page_size=page_size, page_token=page_token)
    return call(request, pb.ListReplicasResponse, timeout)
