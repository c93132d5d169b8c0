"""A small model of one account: its tokens, who received their secrets, and who may hold what (design sections 2 and 5).

Naive on purpose, as `oracle.py`: sets of facts and loops, nothing compiled. `ceiling` of a token is what it may ever come
to: what its issuer, and whoever changed it last, held when they handed it out. Times of expiry are numbers, None is never.
Used by the state machine that drives a real server beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.support.minting import ACCOUNT, EVERY_PROJECT, facts_of, is_within
from tests.support.oracle import account_permissions, covered_sets, permissions_in_set, project_permissions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.support.minting import Fact

# A set, and the projects that it is granted on (None: all).
Grants: TypeAlias = "dict[str, tuple[str, ...] | None]"

OPERATOR: Final = "operator"
WRITE: Final = ("service_tokens:write", ACCOUNT)


@dataclass
class Received:
    """A secret, who received it, and whether it still is one of its token's. `has_end`: it was rotated out."""

    text: str = field(repr=False)
    by: str
    is_live: bool = True
    has_end: bool = False


@dataclass
class Holder:
    """A token."""

    token_id: str
    grants: Grants
    expiry: int | None
    may_rotate: bool
    secrets: list[Received]
    ceiling: frozenset[Fact]
    disabled: bool = False
    revoked: bool = False

    @property
    def actor(self) -> str:
        return f"token:{self.token_id}"

    def rotated(self, secret: Received, *, overlaps: bool) -> None:
        """Another secret takes the place of the current one; of two, the older keeps its end."""
        live = [received for received in self.secrets if received.is_live]
        for middle in live[1:]:
            middle.is_live = False
        oldest = live[0]
        if not oldest.has_end:
            oldest.has_end, oldest.is_live = True, overlaps
        self.secrets.append(secret)


@dataclass
class Tenant:
    """An account under a catalog's document."""

    document: Mapping[str, Any]
    plan: str
    projects: set[str]
    suspended: bool = False
    holders: list[Holder] = field(default_factory=list)

    def full(self, grants: Grants) -> frozenset[Fact]:
        """What grants give whatever the plan."""
        return facts_of(self.document, grants.items())

    def effective(self, holder: Holder) -> frozenset[Fact]:
        """What a token gives now."""
        if holder.revoked or holder.disabled or self.suspended:
            return frozenset()
        return facts_of(self.document, holder.grants.items(), covered_sets(self.document, self.plan))

    def shown(self, facts: Iterable[Fact]) -> set[Fact]:
        """The facts as checks show them: what is held on every project, on each one there is."""
        there: set[Fact] = set()
        for permission, place in facts:
            if place == EVERY_PROJECT:
                there |= {(permission, project_id) for project_id in self.projects}
            elif place == ACCOUNT or place in self.projects:
                there.add((permission, place))
        return there

    def questions(self) -> list[Fact]:
        """Every check that there is."""
        return [
            *((permission, ACCOUNT) for permission in sorted(account_permissions(self.document))),
            *(
                (permission, project_id)
                for project_id in sorted(self.projects)
                for permission in sorted(project_permissions(self.document))
            ),
        ]

    # ---- what a call must come to: the reason of the refusal, or ""

    def caller_refused(self, caller: Holder | None, secret: Received | None) -> str:
        """Whether the caller is one that may change tokens."""
        if caller is None or secret is None:
            return ""
        if not secret.is_live or caller.revoked or caller.disabled or self.suspended:
            return "CREDENTIAL_UNRECOGNIZED"
        return "" if WRITE in self.effective(caller) else "CALLER_NOT_PERMITTED"

    def exceeds(self, caller: Holder | None, grants: Grants, expiry: int | None, *, may_rotate: bool) -> str:
        """Whether such a token is more than the caller holds, or lives longer."""
        if caller is None:
            return ""
        lives_longer = caller.expiry is not None and (expiry is None or expiry > caller.expiry)
        within = is_within(self.full(grants), self.effective(caller))
        return "" if within and not lives_longer and (caller.may_rotate or not may_rotate) else "EXCEEDS_CALLER"

    def holder_exceeds(self, caller: Holder | None, holder: Holder) -> str:
        """The same of a token as it is."""
        return self.exceeds(caller, holder.grants, holder.expiry, may_rotate=holder.may_rotate)

    def wrong(self, grants: Grants, held: Grants | None = None) -> str:
        """Whether the account may not have such grants; those in `held` are kept as they are."""
        new = [grant for grant in grants.items() if grant not in (held or {}).items()]
        covered = covered_sets(self.document, self.plan)
        if any(self._is_wrong(name, project_ids) for name, project_ids in new):
            return "INVALID_FIELDS"
        return "PERMISSION_SET_NOT_IN_PLAN" if any(name not in covered for name, _ in new) else ""

    def _is_wrong(self, name: str, project_ids: tuple[str, ...] | None) -> bool:
        if project_ids is None:
            return False
        gives_nothing = not permissions_in_set(self.document, name) & project_permissions(self.document)
        return gives_nothing or not self.projects.issuperset(project_ids)

    # ---- what happens

    def project_deleted(self, project_id: str) -> None:
        """The id leaves every grant, and a grant left with none goes."""
        self.projects.discard(project_id)
        for holder in self.holders:
            holder.grants = {
                name: left
                for name, project_ids in holder.grants.items()
                if (left := project_ids and tuple(other for other in project_ids if other != project_id)) != ()
            }

    def catalog_applied(self, document: Mapping[str, Any]) -> None:
        """Whoever applies a catalog hands out what its sets give now."""
        self.document = document
        for holder in self.holders:
            holder.ceiling |= self.full(holder.grants)

    def obtained(self, source: str, *, descendants: bool) -> list[Holder]:
        """The live tokens of which `source` ever received a secret; with `descendants`, also what those received, and so on."""
        found: dict[str, Holder] = {}
        actors = [source]
        while actors:
            actor = actors.pop()
            for holder in self.holders:
                if holder.token_id not in found and any(received.by == actor for received in holder.secrets):
                    found[holder.token_id] = holder
                    if descendants:
                        actors.append(holder.actor)
        return [holder for holder in found.values() if not holder.revoked]
