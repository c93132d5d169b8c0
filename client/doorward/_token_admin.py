"""TokenAdmin's calls from arguments: a token's life. Answers are the contract's messages, but where a secret is in them.

Each function is a method of `TokenAdminClient` in both dialects. What an RPC does, leaves alone and refuses is told in
`protos/doorward/v1/token_admin.proto`. `timeout`: seconds; the client's default if None. `request_id`: a UUID; give your
own to be able to repeat a call that failed within 10 minutes, with the same arguments, without a second secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import field_mask_pb2

from doorward._shared import call, call_to, duration_of, request_id_of, timestamp_of
from doorward.records import UNCHANGED, IssuedToken, RotatedToken
from doorward.v1 import token_admin_pb2 as pb
from doorward.v1 import types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from doorward._shared import Call
    from doorward.records import Unchanged


def issue_token(
    account_id: str,
    *,
    display_name: str,
    grants: Iterable[types_pb2.Grant],
    description: str = "",
    labels: Mapping[str, str] | None = None,
    expire_time: datetime | None = None,
    ttl: timedelta | None = None,
    allow_self_rotation: bool = False,
    request_id: str | None = None,
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[IssuedToken]:
    """Issues a token, whose secret is seen here and never again. Once this returns it works everywhere."""
    if expire_time is not None and ttl is not None:
        raise ValueError("expire_time and ttl both say when it expires; give one of them")
    request = pb.IssueTokenRequest(
        account_id=account_id,
        display_name=display_name,
        description=description,
        labels=labels,
        grants=grants,
        expire_time=timestamp_of(expire_time),
        ttl=duration_of(ttl),
        allow_self_rotation=allow_self_rotation,
        request_id=request_id_of(request_id, validate_only),
        validate_only=validate_only,
    )
    return call_to(request, pb.IssueTokenResponse, timeout, IssuedToken.of)


def get_token(token_id: str, *, timeout: float | None = None) -> Call[pb.GetTokenResponse]:
    """Reads one token, a revoked one too. Never its secret."""
    return call(pb.GetTokenRequest(token_id=token_id), pb.GetTokenResponse, timeout)


def list_tokens(
    account_id: str,
    *,
    state: types_pb2.TokenState.ValueType = types_pb2.TOKEN_STATE_UNSPECIFIED,
    permission_set: str = "",
    project_id: str = "",
    labels: Mapping[str, str] | None = None,
    created_by: str = "",
    unused_since: datetime | None = None,
    expires_before: datetime | None = None,
    display_name_prefix: str = "",
    page_size: int = 0,
    page_token: str = "",
    timeout: float | None = None,
) -> Call[pb.ListTokensResponse]:
    """A page of the account's tokens that match every filter, newest first."""
    request = pb.ListTokensRequest(
        account_id=account_id,
        state=state,
        permission_set=permission_set,
        project_id=project_id,
        labels=labels,
        created_by=created_by,
        unused_since=timestamp_of(unused_since),
        expires_before=timestamp_of(expires_before),
        display_name_prefix=display_name_prefix,
        page_size=page_size,
        page_token=page_token,
    )
    return call(request, pb.ListTokensResponse, timeout)


def update_token(
    token_id: str,
    *,
    display_name: str | Unchanged = UNCHANGED,
    description: str | Unchanged = UNCHANGED,
    labels: Mapping[str, str] | Unchanged = UNCHANGED,
    grants: Iterable[types_pb2.Grant] | Unchanged = UNCHANGED,
    expire_time: datetime | None | Unchanged = UNCHANGED,
    allow_self_rotation: bool | Unchanged = UNCHANGED,
    etag: str = "",
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[pb.UpdateTokenResponse]:
    """Sets exactly what is given, in place; the secret stays. `expire_time=None`: never. `labels`, `grants`: replaced whole.

    With `etag` only if the token is as it was when that was read, else Conflict. Not sent again by gRPC.
    """
    given = {
        "display_name": display_name,
        "description": description,
        "labels": labels,
        "grants": grants,
        "expire_time": expire_time,
        "allow_self_rotation": allow_self_rotation,
    }
    mask = [name for name, value in given.items() if value is not UNCHANGED]
    if not mask:
        raise ValueError("nothing is given that could be updated")
    token = types_pb2.ServiceToken(token_id=token_id, etag=etag)
    if display_name is not UNCHANGED:
        token.display_name = display_name
    if description is not UNCHANGED:
        token.description = description
    if labels is not UNCHANGED:
        token.labels.update(labels)
    if grants is not UNCHANGED:
        token.grants.extend(grants)
    if expire_time is not UNCHANGED and (ends := timestamp_of(expire_time)) is not None:
        token.expire_time.CopyFrom(ends)
    if allow_self_rotation is not UNCHANGED:
        token.allow_self_rotation = allow_self_rotation
    request = pb.UpdateTokenRequest(
        token=token, update_mask=field_mask_pb2.FieldMask(paths=mask), validate_only=validate_only
    )
    return call(request, pb.UpdateTokenResponse, timeout)


def rotate_token(
    token_id: str,
    *,
    overlap: timedelta,
    request_id: str | None = None,
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[RotatedToken]:
    """Makes a new secret under the same id, seen here and never again. The present one works until `overlap` ends."""
    request = pb.RotateTokenRequest(
        token_id=token_id,
        overlap=duration_of(overlap),
        request_id=request_id_of(request_id, validate_only),
        validate_only=validate_only,
    )
    return call_to(request, pb.RotateTokenResponse, timeout, RotatedToken.of)


def disable_token(token_id: str, *, timeout: float | None = None) -> Call[pb.DisableTokenResponse]:
    """Disables the token: once this returns, every check of it is denied. `enable_token` takes it back."""
    return call(pb.DisableTokenRequest(token_id=token_id), pb.DisableTokenResponse, timeout)


def enable_token(token_id: str, *, timeout: float | None = None) -> Call[pb.EnableTokenResponse]:
    """Enables a disabled token: it works again with the same secret and grants."""
    return call(pb.EnableTokenRequest(token_id=token_id), pb.EnableTokenResponse, timeout)


def revoke_token(token_id: str, *, reason: str = "", timeout: float | None = None) -> Call[pb.RevokeTokenResponse]:
    """Revokes the token, for good: once this returns, nobody anywhere says yes to a check of it that begins from then on."""
    return call(pb.RevokeTokenRequest(token_id=token_id, reason=reason), pb.RevokeTokenResponse, timeout)


def batch_revoke_tokens(
    account_id: str,
    token_ids: Iterable[str],
    *,
    reason: str = "",
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[pb.BatchRevokeTokensResponse]:
    """Revokes up to 1,000 tokens of one account in one transaction, with one wait at the end."""
    request = pb.BatchRevokeTokensRequest(
        account_id=account_id, token_ids=token_ids, reason=reason, validate_only=validate_only
    )
    return call(request, pb.BatchRevokeTokensResponse, timeout)


def revoke_tokens_by_filter(
    account_id: str,
    *,
    state: types_pb2.TokenState.ValueType = types_pb2.TOKEN_STATE_UNSPECIFIED,
    permission_set: str = "",
    project_id: str = "",
    labels: Mapping[str, str] | None = None,
    created_by: str = "",
    unused_since: datetime | None = None,
    expires_before: datetime | None = None,
    display_name_prefix: str = "",
    obtained_by: str = "",
    include_descendants: bool = False,
    all_tokens: bool = False,
    reason: str = "",
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[pb.RevokeTokensByFilterResponse]:
    """Revokes every token that matches all filters. `obtained_by`: those whose secret that token ever received."""
    request = pb.RevokeTokensByFilterRequest(
        account_id=account_id,
        state=state,
        permission_set=permission_set,
        project_id=project_id,
        labels=labels,
        created_by=created_by,
        unused_since=timestamp_of(unused_since),
        expires_before=timestamp_of(expires_before),
        display_name_prefix=display_name_prefix,
        obtained_by=obtained_by,
        include_descendants=include_descendants,
        all_tokens=all_tokens,
        reason=reason,
        validate_only=validate_only,
    )
    return call(request, pb.RevokeTokensByFilterResponse, timeout)


def report_leaked_token(secret: str, *, timeout: float | None = None) -> Call[None]:
    """Stops a secret that was found where it should not be. Needs no credential; the answer tells nothing."""
    return call_to(pb.ReportLeakedTokenRequest(secret=secret), pb.ReportLeakedTokenResponse, timeout, _nothing)


def describe_self(*, timeout: float | None = None) -> Call[pb.DescribeSelfResponse]:
    """Describes the token whose secret is the client's credential."""
    return call(pb.DescribeSelfRequest(), pb.DescribeSelfResponse, timeout)


def revoke_self(*, reason: str = "", timeout: float | None = None) -> Call[pb.RevokeSelfResponse]:
    """Revokes the token whose secret is the client's credential. Not sent again by gRPC: a repeat is Unauthenticated."""
    return call(pb.RevokeSelfRequest(reason=reason), pb.RevokeSelfResponse, timeout)


def rotate_self(
    *, overlap: timedelta, request_id: str | None = None, timeout: float | None = None
) -> Call[RotatedToken]:
    """Makes a new secret for the token whose secret is the client's credential; with no overlap a lost answer is lost."""
    request = pb.RotateSelfRequest(overlap=duration_of(overlap), request_id=request_id_of(request_id))
    return call_to(request, pb.RotateSelfResponse, timeout, RotatedToken.of)


def list_permission_sets(
    account_id: str, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
) -> Call[pb.ListPermissionSetsResponse]:
    """The permission sets as the account's plan calls them, and which it covers: what a form needs."""
    request = pb.ListPermissionSetsRequest(account_id=account_id, page_size=page_size, page_token=page_token)
    return call(request, pb.ListPermissionSetsResponse, timeout)


def list_audit_events(
    *,
    account_id: str = "",
    token_id: str = "",
    actor: str = "",
    action: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    kind: pb.AuditEventKind.ValueType = pb.AUDIT_EVENT_KIND_UNSPECIFIED,
    page_size: int = 0,
    page_token: str = "",
    timeout: float | None = None,
) -> Call[pb.ListAuditEventsResponse]:
    """A page of audit events that match every filter, newest first. No event contains a secret."""
    request = pb.ListAuditEventsRequest(
        account_id=account_id,
        token_id=token_id,
        actor=actor,
        action=action,
        start_time=timestamp_of(start_time),
        end_time=timestamp_of(end_time),
        kind=kind,
        page_size=page_size,
        page_token=page_token,
    )
    return call(request, pb.ListAuditEventsResponse, timeout)


def await_propagation(revision: str, *, timeout: float | None = None) -> Call[pb.AwaitPropagationResponse]:
    """Returns once the change with this revision is true everywhere: what follows a `ChangeStands`."""
    return call(pb.AwaitPropagationRequest(revision=revision), pb.AwaitPropagationResponse, timeout)


def _nothing(_answer: pb.ReportLeakedTokenResponse) -> None:
    return None
