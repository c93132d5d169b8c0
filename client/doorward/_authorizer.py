"""Authorizer's calls from arguments, but for the checks themselves (`_checks.py`, `_batching.py`).

Each function is a method of `AuthorizerClient` in both dialects. What an RPC does and refuses is told in
`protos/doorward/v1/authorizer.proto`. `timeout`: seconds; the client's default if None. `at_least_as_fresh`: a revision
that the answer must contain; `fully_consistent`: the log's end is read first, at the price of a round trip to the
database. Neither is needed to see a change that had returned when the call began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward._checks import consistency_of, demand_of
from doorward._shared import call
from doorward.decisions import placed
from doorward.v1 import authorizer_pb2 as pb

if TYPE_CHECKING:
    from doorward._shared import Call


def list_permissions(
    secret: str,
    *,
    project_id: str | None = None,
    at_least_as_fresh: str | None = None,
    fully_consistent: bool = False,
    timeout: float | None = None,
) -> Call[pb.ListPermissionsResponse]:
    """The permissions that the secret's token has on the project, or without one on its account."""
    request = pb.ListPermissionsRequest(
        secret=secret,
        project_id=project_id,
        consistency=consistency_of(demand_of(at_least_as_fresh, fully_consistent)),
    )
    return call(request, pb.ListPermissionsResponse, timeout)


def introspect_token(
    secret: str,
    *,
    at_least_as_fresh: str | None = None,
    fully_consistent: bool = False,
    timeout: float | None = None,
) -> Call[pb.IntrospectTokenResponse]:
    """What the secret's token is: to show it. Decide with `check`."""
    request = pb.IntrospectTokenRequest(
        secret=secret, consistency=consistency_of(demand_of(at_least_as_fresh, fully_consistent))
    )
    return call(request, pb.IntrospectTokenResponse, timeout)


def list_tokens_with_permission(
    permission: str,
    *,
    project_id: str | None = None,
    account_id: str | None = None,
    page_size: int = 0,
    page_token: str = "",
    timeout: float | None = None,
) -> Call[pb.ListTokensWithPermissionResponse]:
    """A page of the tokens for which a check would now say yes, newest first. For admins and auditors."""
    request = pb.ListTokensWithPermissionRequest(permission=permission, page_size=page_size, page_token=page_token)
    placed(request, project_id, account_id)
    return call(request, pb.ListTokensWithPermissionResponse, timeout)


def explain_check(
    permission: str,
    *,
    secret: str | None = None,
    token_id: str | None = None,
    project_id: str | None = None,
    account_id: str | None = None,
    at_least_as_fresh: str | None = None,
    fully_consistent: bool = False,
    timeout: float | None = None,
) -> Call[pb.ExplainCheckResponse]:
    """A decision with each grant's part in it, and the smallest grant that would turn a no into a yes. Changes nothing."""
    if (secret is None) is (token_id is None):
        raise ValueError("exactly one of secret and token_id must be given")
    request = pb.ExplainCheckRequest(
        permission=permission, consistency=consistency_of(demand_of(at_least_as_fresh, fully_consistent))
    )
    placed(request, project_id, account_id)
    if secret is not None:
        request.secret = secret
    if token_id is not None:
        request.token_id = token_id
    return call(request, pb.ExplainCheckResponse, timeout)
