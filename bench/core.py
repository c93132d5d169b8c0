"""One decision of the pure core beside one dict lookup, in the same run (design sections 2 and 11).

Both are timed by `timeit`, the loop around them included; the least of many short repeats counts, since whatever else
the machine does can only add. Called by `python -m bench core`.
"""

from __future__ import annotations

import timeit
from typing import TYPE_CHECKING, Final

from bench.report import Table
from doorward.core.entries import AccountState, Grant, account_entry, token_entry
from doorward.core.matrix import DenyReason, compile_token, decide
from doorward_server.catalog.load import builtin_text, load_catalog

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward.core.entries import TokenEntry

NUMBER: Final = 500
REPEATS: Final = 400
LIMIT_NS: Final = 1_000.0
NOW_US: Final = 1_800_000_000_000_000
ACCOUNT: Final = account_entry("acme", "enterprise", AccountState.ACTIVE)
ON_TEAM: Final = account_entry("acme", "team", AccountState.ACTIVE)
PROJECTS: Final = tuple(f"project_{number:04d}" for number in range(1_000))


def run() -> list[Table]:
    """Times decisions of every length, from the first obstacle to the last."""
    table = Table(
        f"One decision in core, least of {REPEATS} repeats of {NUMBER}",
        ("what", "ns", "dict lookups", "target"),
    )
    keys = {f"key_{number}": number for number in range(1_000)}
    lookup_ns = _least_ns("keys['key_500']", {"keys": keys})
    table.add("a dict lookup", f"{lookup_ns:.0f}", "1", "")
    catalog = load_catalog(builtin_text(), 1)
    for name, token, account, permission, project_id, expected in _cases(catalog):
        compiled = compile_token(token, catalog, account[1])
        names = {
            "decide": decide,
            "token": compiled,
            "account": account,
            "permission": catalog.permissions[permission],
            "account_id": None if project_id else "acme",
            "project_id": project_id,
            "owner": "acme" if project_id else None,
            "now_us": NOW_US,
        }
        statement = "decide(token, account, permission, account_id, project_id, owner, now_us)"
        reason = eval(statement, names)
        if reason is not expected:
            raise RuntimeError(f"{name}: {reason!r}, expected {expected!r}")
        decision_ns = _least_ns(statement, names)
        table.add(name, f"{decision_ns:.0f}", f"{decision_ns / lookup_ns:.0f}", f"≤ {LIMIT_NS:.0f} ns")
        table.require(decision_ns <= LIMIT_NS, f"{name}: {decision_ns:.0f} ns, the target is {LIMIT_NS:.0f} ns")
    return [table]


def _cases(catalog: Catalog) -> list[tuple[str, TokenEntry, tuple[str, str, int], str, str | None, DenyReason]]:
    named = (PROJECTS[500],)
    one, wide = _token(Grant("job_admin", named)), _token(Grant("job_admin", PROJECTS))
    everything = _token(*(Grant(name, None) for name in catalog.permission_sets))
    suspended = _token(Grant("git_admin", named))
    return [
        ("allowed by a grant on all projects", everything, ACCOUNT, "jobs:write", PROJECTS[0], DenyReason.ALLOWED),
        ("allowed at the account", everything, ACCOUNT, "billing:read", None, DenyReason.ALLOWED),
        ("allowed on a named project", one, ACCOUNT, "jobs:write", PROJECTS[500], DenyReason.ALLOWED),
        ("allowed on one of 1,000 named projects", wide, ACCOUNT, "jobs:write", PROJECTS[777], DenyReason.ALLOWED),
        ("held on another project only", one, ACCOUNT, "jobs:write", PROJECTS[1], DenyReason.PROJECT_NOT_GRANTED),
        ("not granted", one, ACCOUNT, "billing:write", None, DenyReason.PERMISSION_NOT_GRANTED),
        (
            "suspended by the plan",
            suspended,
            ON_TEAM,
            "repositories:write",
            PROJECTS[500],
            DenyReason.GRANT_SUSPENDED_BY_PLAN,
        ),
    ]


def _token(*grants: Grant) -> TokenEntry:
    return token_entry(
        "0kR3vQ8mZ1nT5xYb",
        "acme",
        revoked=False,
        disabled=False,
        expire_us=NOW_US + 1,
        secrets=((1, None, None, None),),
        grants=grants,
    )


def _least_ns(statement: str, names: dict[str, object]) -> float:
    return min(timeit.repeat(statement, globals=names, number=NUMBER, repeat=REPEATS)) / NUMBER * 1e9
