"""How fresh an answer must be: the `Consistency` of a request (design sections 3 and 7).

Waits until this replica has applied what is asked for, before the check captures its lease.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward_server.errors import FailedPrecondition, Unavailable
from doorward_server.service.authorize import no_lease
from doorward_server.storage import changes

if TYPE_CHECKING:
    from doorward.core.revision import Revision
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.lease_keeper import LeaseKeeper
    from doorward_server.storage.pool import Database

__all__ = ["LATEST_KNOWN", "Demand", "Freshness", "check_revision"]

# A little before the caller's deadline, so that the answer says what was awaited.
TIP_NS: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for: neither (what is in memory), a revision, or the log's end as of now."""

    at_least: Revision | None = None
    fully: bool = False


LATEST_KNOWN: Final = Demand()


class Freshness:
    """Waits for demands."""

    def __init__(self, holding: Holding, keeper: LeaseKeeper, database: Database) -> None:
        self._holding = holding
        self._keeper = keeper
        self._database = database

    async def reached(self, demand: Demand, until_ns: int | None) -> None:
        """Returns once this replica has applied what `demand` asks for.

        Raises:
            FailedPrecondition: REVISION_OF_ANOTHER_EPOCH, REVISION_BEYOND_END.
            Unavailable: NO_LEASE, or REVISION_NOT_REACHED before the deadline (or a hold, without one).
        """
        if demand is LATEST_KNOWN:
            return
        if self._holding.capture() is None:
            raise no_lease()
        try:
            async with asyncio.timeout(self._budget_s(until_ns)):
                if demand.fully:
                    await self._applied(await self._keeper.fresh_renewal())
                elif demand.at_least is not None:
                    await self._at_least(demand.at_least)
        except TimeoutError:
            raise Unavailable(
                "REVISION_NOT_REACHED",
                "this replica has not applied the revision that was asked for in time; try again",
                metadata={"revision": str(demand.at_least or self._holding.revision)},
            ) from None

    async def _at_least(self, wanted: Revision) -> None:
        holding = self._holding
        if wanted.epoch == holding.history.epoch and wanted.number <= holding.applied:
            return
        async with self._database.reading() as connection:
            end = await changes.read_end(connection)
        check_revision(wanted, end.epoch, end.number)
        await self._applied(wanted.number)

    async def _applied(self, number: int) -> None:
        holding = self._holding
        generation = holding.history.generation
        # A registration anew stands at the log's end, wherever it was before.
        await holding.moved.until(lambda: holding.applied >= number or holding.history.generation != generation)

    def _budget_s(self, until_ns: int | None) -> float:
        hold_ns = self._holding.hold_ms * 1_000_000
        left_ns = hold_ns if until_ns is None else min(hold_ns, until_ns - self._holding.timing.now_ns() - TIP_NS)
        return max(left_ns, 0) / 1e9


def check_revision(wanted: Revision, epoch: int, end: int) -> None:
    """Whether a revision can be waited for at all, given the log's end.

    Raises:
        FailedPrecondition: REVISION_OF_ANOTHER_EPOCH, REVISION_BEYOND_END.
    """
    if wanted.epoch != epoch:
        raise FailedPrecondition(
            "REVISION_OF_ANOTHER_EPOCH",
            f"revision {wanted} is of another epoch than the database's {epoch}: it was restored since",
            metadata={"revision": str(wanted), "epoch": str(epoch)},
        )
    if wanted.number > end:
        raise FailedPrecondition(
            "REVISION_BEYOND_END",
            f"revision {wanted} is beyond the end of the change log, {epoch}.{end}",
            metadata={"revision": str(wanted), "end": f"{epoch}.{end}"},
        )
