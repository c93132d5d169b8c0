"""What applying a catalog would change: for sets, plans and resources, and for which tokens (contract: PreviewCatalog).

Changes nothing. Live tokens are read in portions, so that neither a statement nor the loop is kept busy for long, however
many there are; each portion is true of its own moment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward_server.catalog.diff import Kind, SetChange
from doorward_server.service.catalog_use import read_use
from doorward_server.storage import catalog_use, previews

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward.core.catalog import Catalog
    from doorward_server.catalog.diff import Difference, Effect, PlanChange, ResourceChange
    from doorward_server.model import Page
    from doorward_server.service.catalog_text import CatalogTexts
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.storage.pool import Database
    from doorward_server.storage.previews import AccountSize, HeldToken

__all__ = ["CatalogPreview", "CatalogPreviews", "CountedPlan", "CountedSet", "TokenChange"]

# Tokens that are named at once, and tokens that are counted at once: some ten milliseconds of the loop, and a tenth of a
# second of the database (measured).
PORTION: Final = 1000
COUNTED_AT_ONCE: Final = 20_000
ACCOUNTS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class CountedSet:
    """A permission set, and how many live tokens gain and lose something through it."""

    change: SetChange
    gaining: int
    losing: int


@dataclass(frozen=True, slots=True)
class CountedPlan:
    """A plan, and how many accounts, not deleted, are on it."""

    change: PlanChange
    accounts: int


@dataclass(frozen=True, slots=True)
class TokenChange:
    """What one token would gain and lose."""

    token: HeldToken
    effect: Effect


@dataclass(frozen=True, slots=True)
class CatalogPreview:
    """The whole comparison on the first page, and that page's tokens."""

    current_version: int
    needs_force: bool
    sets: Sequence[CountedSet] = ()
    plans: Sequence[CountedPlan] = ()
    resources: Sequence[ResourceChange] = ()
    tokens: Sequence[TokenChange] = ()


class _Tally:
    """How many tokens gain and lose something, by the set that this is through."""

    def __init__(self) -> None:
        self.gaining: Counter[str] = Counter()
        self.losing: Counter[str] = Counter()

    def add(self, effect: Effect, tokens: int = 1) -> None:
        """So many more tokens for which this would change."""
        for name in effect.gaining_sets:
            self.gaining[name] += tokens
        for name in effect.losing_sets:
            self.losing[name] += tokens


class CatalogPreviews:
    """The use case."""

    def __init__(self, database: Database, catalogs: Catalogs, texts: CatalogTexts) -> None:
        self._database = database
        self._catalogs = catalogs
        self._texts = texts

    async def preview(self, catalog: Catalog, page: Page | None) -> CatalogPreview:
        """Compares `catalog` with the one in force. `page`: which tokens to name; None names none.

        The key of a token, for `Page.after`, is `(account_id, token_id)`.
        """
        async with self._database.reading() as connection:
            in_force = await self._catalogs.now(connection)
        difference = await self._texts.compare(in_force, catalog)
        plans = difference.plan_changes()
        async with self._database.reading() as connection:
            needs_force = bool(await read_use(connection, difference))
            accounts = await catalog_use.count_accounts(connection, [plan.name for plan in plans])
        tokens = [] if page is None else await self._named(difference, page)
        if page is not None and page.after is not None:
            return CatalogPreview(in_force.version, needs_force, tokens=tokens)
        return CatalogPreview(
            in_force.version,
            needs_force,
            _counted_sets(difference, await self._counted(difference)),
            [CountedPlan(plan, accounts.get(plan.name, 0)) for plan in plans],
            difference.resource_changes(),
            tokens,
        )

    async def _counted(self, difference: Difference) -> _Tally:
        """Counts every live token."""
        tally, start = _Tally(), ""
        while difference.affected_sets:
            async with self._database.reading() as connection:
                found = await previews.list_accounts(connection, start, ACCOUNTS_AT_ONCE, inclusive=False)
                if not found:
                    break
                chosen = _first_accounts(found, COUNTED_AT_ONCE)
                ids = [account.account_id for account in chosen]
                shapes, entangled = await previews.count_shapes(connection, ids, difference.affected_sets)
            for shape in shapes:
                tally.add(difference.effect(shape.plan, shape.grants), shape.tokens)
            plans = {account.account_id: account.plan for account in chosen}
            for first in range(0, len(entangled), PORTION):
                async with self._database.reading() as connection:
                    tokens = await previews.list_by_id(connection, entangled[first : first + PORTION])
                for token in tokens:
                    tally.add(difference.effect(plans[token.account_id], token.grants))
            start = ids[-1]
        return tally

    async def _named(self, difference: Difference, page: Page) -> list[TokenChange]:
        """The page's tokens."""
        named: list[TokenChange] = []
        tokens = _LiveTokens(self._database, difference.affected_sets, page.after or ("", ""))
        while len(named) < page.size and (portion := await tokens.next_portion()) is not None:
            for plan, token in portion:
                effect = difference.effect(plan, token.grants)
                if effect.gained or effect.lost:
                    named.append(TokenChange(token, effect))
        return named[: page.size]


class _LiveTokens:
    """The live tokens that hold one of some sets, each with its account's plan, by account and id, behind a key."""

    def __init__(self, database: Database, permission_sets: frozenset[str], after: tuple[str, ...]) -> None:
        self._database = database
        self._permission_sets = permission_sets
        self._account_id, self._token_id = after

    async def next_portion(self) -> list[tuple[str, HeldToken]] | None:
        """The next ones, perhaps none of them; None: there are no more."""
        if not self._permission_sets:
            return None
        async with self._database.reading() as connection:
            found = await previews.list_accounts(
                connection, self._account_id, ACCOUNTS_AT_ONCE, inclusive=bool(self._token_id)
            )
            if not found:
                return None
            chosen = _first_accounts(found, PORTION)
            plans = {account.account_id: account.plan for account in chosen}
            after = (self._account_id, self._token_id)
            tokens = await previews.list_of(connection, list(plans), self._permission_sets, after, PORTION)
        if len(tokens) < PORTION:
            self._account_id, self._token_id = chosen[-1].account_id, ""
        else:
            self._account_id, self._token_id = tokens[-1].account_id, tokens[-1].token_id
        return [(plans[token.account_id], token) for token in tokens]


def _first_accounts(found: Sequence[AccountSize], most: int) -> list[AccountSize]:
    """As many of them as have at most so many live tokens together; at least one."""
    chosen: list[AccountSize] = []
    tokens = 0
    for account in found:
        tokens += account.live_tokens
        if chosen and tokens > most:
            break
        chosen.append(account)
    return chosen


def _counted_sets(difference: Difference, tally: _Tally) -> list[CountedSet]:
    """The sets that changed, and those through which somebody gains or loses all the same: a plan changed around them."""
    changes = difference.set_changes()
    for name in (*tally.gaining, *tally.losing):
        changes.setdefault(name, SetChange(name, Kind.CHANGED))
    return [CountedSet(changes[name], tally.gaining[name], tally.losing[name]) for name in sorted(changes)]
