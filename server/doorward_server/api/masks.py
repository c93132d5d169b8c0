"""The field mask of UpdateToken (AIP-134), and what it names of a `ServiceToken`.

Only what is named is looked at: a wrong value elsewhere in the message is ignored, as the contract says. Called by
`token_changes.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from doorward_server.api.fields import LONGEST_DESCRIPTION, LONGEST_DISPLAY_NAME
from doorward_server.service.update import UpdateToken

if TYPE_CHECKING:
    from doorward.v1 import token_admin_pb2
    from doorward_server.api.fields import Fields
    from doorward_server.settings import Settings

__all__ = ["PATHS", "named_paths", "wanted_update"]

PATHS: Final = ("display_name", "description", "labels", "grants", "expire_time", "allow_self_rotation")
EVERYTHING: Final = "*"
LONGEST_SHOWN: Final = 64


def named_paths(fields: Fields, request: token_admin_pb2.UpdateTokenRequest) -> frozenset[str]:
    """Which fields are to be updated: those in the mask, or without one those that are not empty in the token."""
    given = list(request.update_mask.paths)
    if not given:
        return frozenset(field.name for field, _ in request.token.ListFields() if field.name in PATHS)
    if given == [EVERYTHING]:
        return frozenset(PATHS)
    for place, path in enumerate(given):
        if path not in PATHS:
            fields.wrong(f"update_mask.paths[{place}]", _instead_of(path), "FIELD_MALFORMED")
    return frozenset(given).intersection(PATHS)


def wanted_update(fields: Fields, request: token_admin_pb2.UpdateTokenRequest, settings: Settings) -> UpdateToken:
    """The update, of whose values only those that are named are looked at."""
    token, paths = request.token, named_paths(fields, request)
    wanted = UpdateToken(fields.identifier("token.token_id", token.token_id), token.etag, paths)
    if "display_name" in paths:
        name = fields.text("token.display_name", token.display_name, longest=LONGEST_DISPLAY_NAME, required=True)
        wanted = replace(wanted, display_name=name)
    if "description" in paths:
        text = fields.text("token.description", token.description, longest=LONGEST_DESCRIPTION)
        wanted = replace(wanted, description=text)
    if "labels" in paths:
        wanted = replace(wanted, labels=fields.labels("token.labels", token.labels, most=settings.max_labels))
    if "grants" in paths:
        bounds = {"most": settings.max_grants, "most_projects": settings.max_projects_in_grant}
        wanted = replace(wanted, grants=fields.grants("token.grants", token.grants, **bounds))
    if "expire_time" in paths and token.HasField("expire_time"):
        instant, _ = fields.expiry(token.expire_time, None, field="token.expire_time")
        wanted = replace(wanted, expire_time=instant)
    return replace(wanted, allow_self_rotation="allow_self_rotation" in paths and token.allow_self_rotation)


def _instead_of(path: str) -> str:
    known = ", ".join(PATHS)
    if path == EVERYTHING:
        return f"* stands alone or not at all; beside it only: {known}"
    return f"{path[:LONGEST_SHOWN]!r} cannot be updated; a mask may name, whole, {known}, or * alone"
