"""Who may call what (design section 5): one table, and an RPC that is absent from it is refused.

Operators by their role; service tokens by a permission that they must hold, or none for a token acting on itself. What a
token may reach is its own account, and that is the use case's to see (`service/delegation.py`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from doorward_server.model import Caller, CallerKind, OperatorRole

__all__ = ["TABLE", "Access", "is_admitted"]


class Access(NamedTuple):
    """Who may call one RPC: operators with one of the `roles`, and service tokens if `tokens`, with what `needs_permission`.

    `credential` says how fresh the look at the caller must be. `cached`: as every check, from memory under the lease.
    `database`: read now; it works without a lease. `none`: whoever can reach the port. `changes`: its refusals are kept.
    """

    roles: frozenset[OperatorRole]
    tokens: bool = False
    credential: str = "database"
    needs_permission: str | None = None
    changes: bool = False


_ALL: Final = frozenset(OperatorRole)
_READERS: Final = frozenset({OperatorRole.ADMIN, OperatorRole.AUDITOR})
_ADMINS: Final = frozenset({OperatorRole.ADMIN})

_CHANGE: Final = Access(_ADMINS, changes=True)
_READ: Final = Access(_READERS)
_CHANGE_TOKENS: Final = Access(_ADMINS, tokens=True, needs_permission="service_tokens:write", changes=True)
_READ_TOKENS: Final = Access(_READERS, tokens=True, needs_permission="service_tokens:read")
_ASK: Final = Access(_ALL, credential="cached")
_ASK_ABOUT_TOKENS: Final = Access(_READERS, tokens=True, credential="cached", needs_permission="service_tokens:read")
_SELF: Final = Access(frozenset(), tokens=True)
_CHANGE_SELF: Final = Access(frozenset(), tokens=True, changes=True)
_ANYONE: Final = Access(frozenset(), credential="none")

TABLE: Final[dict[str, Access]] = {
    "/doorward.v1.AccountAdmin/PutAccount": _CHANGE,
    "/doorward.v1.AccountAdmin/GetAccount": _READ,
    "/doorward.v1.AccountAdmin/ListAccounts": _READ,
    "/doorward.v1.AccountAdmin/SuspendAccount": _CHANGE,
    "/doorward.v1.AccountAdmin/ResumeAccount": _CHANGE,
    "/doorward.v1.AccountAdmin/DeleteAccount": _CHANGE,
    "/doorward.v1.AccountAdmin/PutProject": _CHANGE,
    "/doorward.v1.AccountAdmin/ListProjects": _READ,
    "/doorward.v1.AccountAdmin/DeleteProject": _CHANGE,
    "/doorward.v1.AccountAdmin/PreviewPlanChange": _READ,
    "/doorward.v1.TokenAdmin/IssueToken": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/GetToken": _READ_TOKENS,
    "/doorward.v1.TokenAdmin/ListTokens": _READ_TOKENS,
    "/doorward.v1.TokenAdmin/UpdateToken": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/RotateToken": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/DisableToken": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/EnableToken": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/RevokeToken": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/BatchRevokeTokens": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/RevokeTokensByFilter": _CHANGE_TOKENS,
    "/doorward.v1.TokenAdmin/ReportLeakedToken": _ANYONE,
    "/doorward.v1.TokenAdmin/DescribeSelf": _SELF,
    "/doorward.v1.TokenAdmin/RevokeSelf": _CHANGE_SELF,
    "/doorward.v1.TokenAdmin/RotateSelf": _CHANGE_SELF,
    "/doorward.v1.TokenAdmin/ListPermissionSets": _READ_TOKENS,
    "/doorward.v1.TokenAdmin/ListAuditEvents": _READ_TOKENS,
    "/doorward.v1.TokenAdmin/AwaitPropagation": _READ_TOKENS,
    "/doorward.v1.Authorizer/Check": _ASK,
    "/doorward.v1.Authorizer/BatchCheck": _ASK,
    "/doorward.v1.Authorizer/StreamChecks": _ASK,
    "/doorward.v1.Authorizer/ListPermissions": _ASK,
    "/doorward.v1.Authorizer/IntrospectToken": _ASK,
    "/doorward.v1.Authorizer/ListTokensWithPermission": _ASK_ABOUT_TOKENS,
    # By a secret as Check, by a token id as ListTokensWithPermission: `api/explain.py` tells the two apart.
    "/doorward.v1.Authorizer/ExplainCheck": _ASK_ABOUT_TOKENS._replace(roles=_ALL),
    "/doorward.v1.Authorizer/Watch": _ASK,
    "/doorward.v1.SystemAdmin/GetCatalog": _READ,
    "/doorward.v1.SystemAdmin/PreviewCatalog": _READ,
    "/doorward.v1.SystemAdmin/ApplyCatalog": _CHANGE,
    "/doorward.v1.SystemAdmin/CreateOperator": _CHANGE,
    "/doorward.v1.SystemAdmin/ListOperators": _READ,
    "/doorward.v1.SystemAdmin/RevokeOperator": _CHANGE,
    "/doorward.v1.SystemAdmin/ListReplicas": _READ,
}


def is_admitted(access: Access, caller: Caller) -> bool:
    """Whether `caller` may call an RPC with this `access` at all; what it may do there is the use case's to say."""
    if caller.kind is CallerKind.OPERATOR:
        return caller.role in access.roles
    return access.tokens
