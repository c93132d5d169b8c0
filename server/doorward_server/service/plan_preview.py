"""Which grants a change of plan would suspend, and which it would bring back (contract: PreviewPlanChange). Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward_server.errors import InvalidArgument
from doorward_server.model import AccountState
from doorward_server.service.accounts import account_deleted, account_not_found, unknown_plan
from doorward_server.storage import accounts, previews

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward.core.catalog import Catalog
    from doorward_server.model import Grant, Page
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.storage.pool import Database
    from doorward_server.storage.previews import GrantCounts, HeldToken

__all__ = ["PlanEffect", "PlanPreview", "PlanPreviews"]


@dataclass(frozen=True, slots=True)
class PlanEffect:
    """What one token would lose (`suspended`: it is active now) and what would come back (`restored`)."""

    token: HeldToken
    suspended: tuple[Grant, ...]
    restored: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class PlanPreview:
    """One page of effects, newest token first, and the totals of all pages. `counts`: first suspended, second restored."""

    effects: Sequence[PlanEffect]
    counts: GrantCounts
    current_plan: str


class PlanPreviews:
    """The use case."""

    def __init__(self, database: Database, catalogs: Catalogs) -> None:
        self._database = database
        self._catalogs = catalogs

    async def preview(self, account_id: str, plan: str, page: Page) -> PlanPreview:
        """What the account's live tokens would gain and lose on `plan`, as things are now.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
            FailedPrecondition: ACCOUNT_DELETED.
            InvalidArgument: PLAN_UNKNOWN.
        """
        async with self._database.reading() as connection:
            account = await accounts.read(connection, account_id)
            catalog = await self._catalogs.now(connection)
            if catalog.find_plan(plan) is None:
                raise InvalidArgument.of((unknown_plan(plan, catalog),))
            if account is None:
                raise account_not_found(account_id)
            if account.state is AccountState.DELETED:
                raise account_deleted(account_id)
            covered_now, covered_then = _covered(catalog, account.plan), _covered(catalog, plan)
            suspended, restored = covered_now - covered_then, covered_then - covered_now
            counts = await previews.count_grants(connection, account_id, suspended, restored)
            found = await previews.list_account_page(connection, account_id, suspended | restored, page)
        effects = [
            PlanEffect(
                token,
                tuple(grant for grant in token.grants if grant.permission_set in suspended),
                tuple(grant for grant in token.grants if grant.permission_set in restored),
            )
            for token in found
        ]
        return PlanPreview(effects, counts, account.plan)


def _covered(catalog: Catalog, plan: str) -> frozenset[str]:
    """The sets that the plan covers; none, if the catalog lacks it."""
    found = catalog.find_plan(plan)
    return frozenset() if found is None else found.permission_sets
