"""The use case of a check: may this token do this here? (design sections 2 and 7, Check)

Everything is decided by plain functions over what is in memory: `Authorizer.try_…` answers or names what is `Missing`.
The warm path is one try. The cold path captures the lease first, brings what is missing and tries again, and looks at
*that* lease once more before it answers; never at a newer one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from doorward.core.catalog import Catalog, Level, Permission
from doorward.core.entries import ACCOUNT_PLAN, TOKEN_ACCOUNT_ID, TOKEN_COMPILED, TOKEN_ID, AccountEntry, TokenEntry
from doorward.core.explain import Explanation, explain
from doorward.core.matrix import DenyReason, decide, is_current
from doorward.core.token_table import CATALOG_KEY, UNKNOWN
from doorward_server.errors import Refused, Unavailable
from doorward_server.replica.caches import Missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.core.revision import Revision
    from doorward_server.replica.caches import Caches
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.recognition import Recognition

__all__ = ["AllMissing", "Authorizer", "Decision", "Holder", "no_lease"]

T = TypeVar("T")

# Module names, because a member looked up on its enum costs as much as the rest of a line.
_PROJECT_LEVEL: Final = Level.PROJECT
# What calling a NamedTuple does, in half the time.
_new: Final = tuple.__new__
# A try that still misses something after so many loads runs against a storm of changes to the same things.
MAX_TRIES: Final = 64
# One batch must not take every connection of the pool.
LOADS_AT_ONCE: Final = 8


class Decision(NamedTuple):
    """What a check is answered. The ids are empty unless the secret was recognized."""

    reason: DenyReason
    token_id: str
    account_id: str


# A recognized token, compiled under the catalog that is in force, and its account; a plain pair is made at once.
Holder: TypeAlias = tuple[TokenEntry, AccountEntry]


class AllMissing(list[Missing]):
    """What several checks of one batch miss, to be brought together; `failed` gets what could not be brought."""

    def __init__(self, failed: dict[tuple[str, str], Refused]) -> None:
        super().__init__()
        self.failed = failed


UNRECOGNIZED: Final = Decision(DenyReason.TOKEN_UNRECOGNIZED, "", "")


def no_lease() -> Unavailable:
    """This replica cannot know whether what it holds is still true."""
    return Unavailable(
        "NO_LEASE", "this replica holds no lease at present and decides nothing; try another one, or again"
    )


class Authorizer:
    """Answers checks from memory."""

    def __init__(self, holding: Holding, caches: Caches, recognition: Recognition) -> None:
        self._holding = holding
        self._tables = holding.tables
        self._used = holding.used
        self._caches = caches
        self._recognition = recognition

    def find_catalog(self) -> Catalog | Missing:
        """The catalog in force."""
        catalog = self._tables.catalogs.get(CATALOG_KEY)
        return catalog if isinstance(catalog, Catalog) else Missing("catalog", CATALOG_KEY)

    def find_holder(
        self, secret: bytes, catalog: Catalog, now_us: int, refuted: set[bytes] | None
    ) -> Holder | Missing | None:
        """Whose secret this is; None: nobody's. `refuted` None: nothing may be written (a warm check)."""
        token = self._recognition.tokens.find(secret, now_us, refuted)
        if token is None or isinstance(token, Missing):
            return token
        return self._with_account(token, catalog, refuted)

    def find_token(self, token_id: str, catalog: Catalog, refuted: set[bytes] | None) -> Holder | Missing | None:
        """The token of this id, whoever holds its secret; None: there is none."""
        token = self._tables.tokens.get(token_id)
        if token is None:
            return Missing("token", token_id)
        return None if token is UNKNOWN else self._with_account(token, catalog, refuted)

    def _with_account(self, token: TokenEntry, catalog: Catalog, refuted: set[bytes] | None) -> Holder | Missing | None:
        """The token, compiled as it must be now, beside its account."""
        account = self._tables.accounts.get(token[TOKEN_ACCOUNT_ID])
        if account is None:
            return Missing("account", token[TOKEN_ACCOUNT_ID])
        if account is UNKNOWN:
            return None
        if not is_current(token[TOKEN_COMPILED], catalog, account[ACCOUNT_PLAN]):
            if refuted is None:
                return Missing("proof", token[TOKEN_ID])
            self._caches.compile(token, account, catalog)
            compiled = self._tables.tokens.get(token[TOKEN_ID])
            if compiled is None or compiled is UNKNOWN:
                return Missing("token", token[TOKEN_ID])
            token = compiled
        return token, account

    def decide(
        self,
        holder: Holder | Missing | None,
        permission: Permission,
        resource_id: str,
        now_us: int,
    ) -> Decision | Missing:
        """The decision for what `find_holder` found, or what must be looked up first: that, or the project.

        `resource_id` is an account's or a project's, as the permission's level wants.
        """
        if holder is None:
            return UNRECOGNIZED
        if isinstance(holder, Missing):
            return holder
        token, account = holder
        # Arguments by position: named ones would cost as much as the decision.
        if permission.level is _PROJECT_LEVEL:
            owner = self._tables.projects.get(resource_id)
            if owner is None:
                return Missing("project", resource_id)
            owner_id = None if owner is UNKNOWN else owner
            reason = decide(token, account, permission, None, resource_id, owner_id, now_us)
        else:
            reason = decide(token, account, permission, resource_id, None, None, now_us)
        token_id = token[TOKEN_ID]
        self._used[token_id] = now_us
        return _new(Decision, (reason, token_id, token[TOKEN_ACCOUNT_ID]))

    def explain(
        self, holder: Holder, permission: Permission, resource_id: str, *, catalog: Catalog, now_us: int
    ) -> Explanation | Missing:
        """What `decide` answers, and what each grant had to do with it."""
        token, account = holder
        if permission.level is not _PROJECT_LEVEL:
            return explain(token, account, catalog, permission, resource_id, None, None, now_us)
        owner = self.find_project_account(resource_id)
        if isinstance(owner, Missing):
            return owner
        return explain(token, account, catalog, permission, None, resource_id, owner, now_us)

    def check(
        self,
        secret: bytes,
        permission: Permission,
        resource_id: str,
        *,
        catalog: Catalog,
        now_us: int,
        refuted: set[bytes] | None,
    ) -> Decision | Missing:
        """One check, from memory: recognize, then decide."""
        return self.decide(self.find_holder(secret, catalog, now_us, refuted), permission, resource_id, now_us)

    def find_project_account(self, project_id: str) -> str | Missing | None:
        """Whose project this is; None: nobody's."""
        owner = self._tables.projects.get(project_id)
        if owner is None:
            return Missing("project", project_id)
        return None if owner is UNKNOWN else owner

    async def under_lease(self, attempt: Callable[[int, set[bytes]], T | Missing | AllMissing]) -> tuple[T, Revision]:
        """Runs `attempt(now_us, refuted)` until it misses nothing, all under the lease captured first.

        Raises:
            Unavailable: NO_LEASE (nothing is loaded), or the lease ended before the answer was ready.
        """
        end_ns = self._holding.capture()
        if end_ns is None:
            raise no_lease()
        refuted: set[bytes] = set()
        for _ in range(MAX_TRIES):
            # No await from here to the return: what was found is what the answer stands on.
            try:
                result = attempt(self._holding.latest_us(), refuted)
            except Refused:
                if self._holding.still_good(end_ns):
                    raise
                raise no_lease() from None
            if isinstance(result, Missing):
                await self._recognition.fetch(result, refuted)
            elif isinstance(result, AllMissing):
                await self.fetch_all(result, refuted)
            elif self._holding.still_good(end_ns):
                return result, self._holding.revision
            else:
                raise no_lease()
        raise Unavailable(
            "REVISION_NOT_REACHED",
            "what this check needs is being changed too often; try again",
            metadata={"revision": str(self._holding.revision)},
        )

    async def fetch_all(self, missing: AllMissing, refuted: set[bytes]) -> None:
        """Brings what several checks miss, a few at a time. What cannot be had is noted in `missing.failed`."""
        distinct = list({(item.kind, item.key): item for item in missing}.values())
        for start in range(0, len(distinct), LOADS_AT_ONCE):
            items = distinct[start : start + LOADS_AT_ONCE]
            loads = (self._recognition.fetch(item, refuted) for item in items)
            for item, outcome in zip(items, await asyncio.gather(*loads, return_exceptions=True), strict=True):
                if isinstance(outcome, Refused):
                    missing.failed[item.kind, item.key] = outcome
                elif isinstance(outcome, BaseException):
                    raise outcome
