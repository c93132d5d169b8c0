"""Filters over an account's tokens by shape, the same in ListTokens and RevokeTokensByFilter (contract: TokenAdmin)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from doorward.v1 import types_pb2
from doorward_server.api.fields import LONGEST_DISPLAY_NAME
from doorward_server.model import TokenFilter, TokenState

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf import timestamp_pb2

    from doorward.v1 import token_admin_pb2 as pb
    from doorward_server.api.fields import Fields

__all__ = ["filter_of", "spelled"]

_ACTOR: Final = re.compile(r"(?:operator|token):(.*)", re.DOTALL)
LONGEST_ACTOR: Final = len("operator:") + 64


def filter_of(
    request: pb.ListTokensRequest | pb.RevokeTokensByFilterRequest, fields: Fields, *, most_labels: int
) -> TokenFilter:
    """What the request asks for. Sets, times that must have passed, and ids are checked where they are known."""
    project_id, permission_set = request.project_id, request.permission_set
    return TokenFilter(
        state=fields.enumerated("state", request.state, TokenState, types_pb2.TokenState.keys()),
        permission_set=fields.name("permission_set", permission_set, example="job_admin") if permission_set else "",
        project_id=fields.identifier("project_id", project_id) if project_id else "",
        labels=fields.labels("labels", request.labels, most=most_labels),
        created_by=_actor(fields, "created_by", request.created_by),
        unused_since=_instant(fields, "unused_since", request.unused_since, is_set=request.HasField("unused_since")),
        expires_before=_instant(
            fields, "expires_before", request.expires_before, is_set=request.HasField("expires_before")
        ),
        display_name_prefix=fields.text(
            "display_name_prefix", request.display_name_prefix, longest=LONGEST_DISPLAY_NAME
        ),
    )


def spelled(request: pb.ListTokensRequest) -> tuple[str, ...]:
    """The filters as text, another one for each other filter: what a page token is bound to."""
    return (
        str(request.state),
        request.permission_set,
        request.project_id,
        json.dumps(sorted(request.labels.items())),
        request.created_by,
        *(f"{time.seconds}.{time.nanos}" for time in (request.unused_since, request.expires_before)),
        request.display_name_prefix,
    )


def _actor(fields: Fields, field: str, value: str) -> str:
    if not value:
        return ""
    match = _ACTOR.fullmatch(value)
    if len(value) > LONGEST_ACTOR:
        fields.wrong(field, f"has {len(value)} characters; at most {LONGEST_ACTOR} are allowed", "FIELD_TOO_LONG")
    elif match is None or not fields.fits_identifier(match[1]):
        fields.wrong(field, "must be operator:<id> or token:<id>, with a public id", "FIELD_MALFORMED")
    return value


def _instant(fields: Fields, field: str, given: timestamp_pb2.Timestamp, *, is_set: bool) -> datetime | None:
    return fields.expiry(given, None, field=field)[0] if is_set else None
