"""A catalog with narrow minting sets: sets that let a token issue others and hold little else. And what grants come to.

The built-in catalog lets only Account Admin mint, so that there the rule of design section 5, nobody hands out more than
they hold, is hardly ever asked. `facts_of` tells naively what grants give, in sets of (permission, place), and `is_within`
whether that is within what somebody holds; both read the catalog's document, never `doorward.core`.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.support.oracle import account_permissions, permissions_in_set

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# A set on all projects (None) or on the named ones.
NamedGrant: TypeAlias = "tuple[str, tuple[str, ...] | None]"
# A permission, and where: ACCOUNT, EVERY_PROJECT, or a project's id.
Fact: TypeAlias = "tuple[str, str]"

ACCOUNT: Final = "the account"
EVERY_PROJECT: Final = "every project"

TOML: Final = """
schema = 1
version = "narrow minting sets"

[account_resources]
billing = { title = "Billing", actions = ["read", "write"] }
service_tokens = { title = "Service tokens", actions = ["read", "write"] }
webhooks = { title = "Webhooks", actions = ["read", "write"] }

[project_resources]
jobs = { title = "Jobs", actions = ["read", "write"] }
metadata = { title = "Metadata", actions = ["read"] }
runs = { title = "Runs", actions = ["read", "write"] }

[plans.small]
title = "Small"
permission_sets = ["minter", "jobs_minter", "jobs_viewer", "runner", "metadata_only", "billing_viewer"]

[plans.large]
title = "Large"
permission_sets = ["*"]

[plans.bare]
title = "Bare"
permission_sets = ["metadata_only", "runner"]

[permission_sets.everything]
title = "Everything"
write = ["*"]
read = ["*"]

[permission_sets.minter]
title = "Mints, and can do nothing else"
write = ["service_tokens"]

[permission_sets.token_viewer]
title = "Sees tokens"
read = ["service_tokens"]

[permission_sets.jobs_minter]
title = "Mints, and edits jobs"
write = ["service_tokens", "jobs"]

[permission_sets.runs_minter]
title = "Mints, and sees runs"
write = ["service_tokens"]
read = ["runs", "metadata"]

[permission_sets.billing_minter]
title = "Mints, and sees bills"
write = ["service_tokens"]
read = ["billing"]

[permission_sets.jobs_admin]
title = "Edits jobs"
write = ["jobs", "runs"]

[permission_sets.jobs_viewer]
title = "Sees jobs"
read = ["jobs"]

[permission_sets.runner]
title = "Runs jobs"
write = ["runs"]
read = ["jobs"]

[permission_sets.metadata_only]
title = "Sees metadata"
read = ["metadata"]

[permission_sets.billing_admin]
title = "Edits bills, and sees jobs"
write = ["billing"]
read = ["jobs"]

[permission_sets.billing_viewer]
title = "Sees bills"
read = ["billing"]
"""
DOCUMENT: Final[dict[str, Any]] = tomllib.loads(TOML)
# The same sets and plans, with another meaning: one that gave more, one that gives less, one that mints no more.
VARIANTS: Final = (
    TOML,
    TOML.replace('title = "Sees jobs"\nread = ["jobs"]', 'title = "Sees more"\nread = ["jobs", "metadata", "billing"]'),
    TOML.replace('title = "Mints, and edits jobs"\nwrite = ["service_tokens", "jobs"]',
                 'title = "Mints, and sees jobs"\nwrite = ["service_tokens"]\nread = ["jobs"]'),
    TOML.replace('title = "Mints, and can do nothing else"\nwrite', 'title = "Mints no more"\nread'),
)  # fmt: skip


def document_of(toml: str) -> dict[str, Any]:
    """A catalog's plain values."""
    return tomllib.loads(toml)


def facts_of(
    document: Mapping[str, Any], grants: Iterable[NamedGrant], covered: Collection[str] | None = None
) -> frozenset[Fact]:
    """What the grants give where their set is `covered`; None: in full, whatever the plan. An unknown set gives nothing."""
    of_account = account_permissions(document)
    facts: set[Fact] = set()
    for name, project_ids in grants:
        if name not in document["permission_sets"] or (covered is not None and name not in covered):
            continue
        for permission in permissions_in_set(document, name):
            if project_ids is None:
                facts.add((permission, ACCOUNT if permission in of_account else EVERY_PROJECT))
            elif permission not in of_account:
                facts |= {(permission, project_id) for project_id in project_ids}
    return frozenset(facts)


def is_within(wanted: Iterable[Fact], held: Collection[Fact]) -> bool:
    """Whether everything wanted is held; what is held on every project is held on each."""
    return not lacking(wanted, held)


def lacking(wanted: Iterable[Fact], held: Collection[Fact]) -> set[Fact]:
    """What is wanted and not held."""
    return {
        (permission, place)
        for permission, place in wanted
        if (permission, place) not in held and (place == ACCOUNT or (permission, EVERY_PROJECT) not in held)
    }
