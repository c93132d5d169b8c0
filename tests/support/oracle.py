"""The rules of design section 2 told a second time, naively: names in sets and loops over grants, nothing compiled.

It reads a catalog's document, the plain values of its TOML, never `doorward.core`, and answers with the name of a
DenyReason. It is slow on purpose: what it says can be read off the design sentence by sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NaiveGrant:
    permission_set: str
    project_ids: tuple[str, ...] | None  # None: all projects


@dataclass(frozen=True)
class NaiveToken:
    token_id: str
    account_id: str
    revoked: bool
    disabled: bool
    expire_us: int | None
    grants: tuple[NaiveGrant, ...]


@dataclass(frozen=True)
class World:
    """Everything a decision can depend on but the token."""

    document: Mapping[str, Any]
    plan_of: Mapping[str, str]  # account -> plan
    state_of: Mapping[str, str]  # account -> ACTIVE, SUSPENDED or DELETED
    owner_of: Mapping[str, str]  # project -> account; a deleted project is not in it


def every_permission(document: Mapping[str, Any]) -> set[str]:
    return account_permissions(document) | project_permissions(document)


def account_permissions(document: Mapping[str, Any]) -> set[str]:
    return _permissions_of_table(document.get("account_resources", {}))


def project_permissions(document: Mapping[str, Any]) -> set[str]:
    return _permissions_of_table(document.get("project_resources", {}))


def _permissions_of_table(table: Mapping[str, Any]) -> set[str]:
    return {f"{resource}:{action}" for resource, about in table.items() for action in about["actions"]}


def permissions_in_set(document: Mapping[str, Any], name: str) -> set[str]:
    """What a set gives. Write includes read wherever the resource can be read; "*" is every resource."""
    given = set()
    every = every_permission(document)
    for permission in every:
        resource, action = permission.split(":")
        written = document["permission_sets"][name].get("write", [])
        read = document["permission_sets"][name].get("read", [])
        if action == "write" and (resource in written or "*" in written):
            given.add(permission)
        if action == "read" and (resource in read or "*" in read):
            given.add(permission)
        can_be_written = f"{resource}:write" in every
        if action == "read" and can_be_written and (resource in written or "*" in written):
            given.add(permission)
    return given


def covered_sets(document: Mapping[str, Any], plan: str) -> set[str]:
    if plan not in document["plans"]:
        return set()
    listed = document["plans"][plan]["permission_sets"]
    return set(document["permission_sets"]) if listed == ["*"] else set(listed)


def gives(world: World, grant: NaiveGrant, permission: str, project_id: str | None) -> bool:
    """Whether a grant, were it active, would allow the permission at the account (no project) or at the project."""
    if grant.permission_set not in world.document["permission_sets"]:
        return False
    if permission not in permissions_in_set(world.document, grant.permission_set):
        return False
    if grant.project_ids is None:
        return True
    if project_id is None:
        return False
    return project_id in grant.project_ids


def expected(
    world: World, token: NaiveToken, permission: str, account_id: str | None, project_id: str | None, now_us: int
) -> str:
    """The name of the DenyReason that the design asks for."""
    if token.revoked or world.state_of[token.account_id] == "DELETED":
        return "TOKEN_REVOKED"
    if token.expire_us is not None and not now_us < token.expire_us:
        return "TOKEN_EXPIRED"
    if token.disabled:
        return "TOKEN_DISABLED"
    if world.state_of[token.account_id] == "SUSPENDED":
        return "ACCOUNT_SUSPENDED"

    asked_account = account_id if project_id is None else world.owner_of.get(project_id)
    if asked_account != token.account_id:
        return "RESOURCE_NOT_IN_ACCOUNT"

    known = [grant for grant in token.grants if grant.permission_set in world.document["permission_sets"]]
    covered = covered_sets(world.document, world.plan_of[token.account_id])
    active = [grant for grant in known if grant.permission_set in covered]
    suspended = [grant for grant in known if grant.permission_set not in covered]

    if any(gives(world, grant, permission, project_id) for grant in active):
        return "ALLOWED"
    if any(gives(world, grant, permission, project_id) for grant in suspended):
        return "GRANT_SUSPENDED_BY_PLAN"
    held_on_named_projects = any(
        grant.project_ids and permission in permissions_in_set(world.document, grant.permission_set) for grant in active
    )
    if held_on_named_projects and permission in account_permissions(world.document):
        return "ALL_PROJECTS_REQUIRED"
    if held_on_named_projects and permission in project_permissions(world.document):
        return "PROJECT_NOT_GRANTED"
    return "PERMISSION_NOT_GRANTED"
