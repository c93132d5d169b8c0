"""A new epoch after a restore: the use case behind `doorward db new-epoch` (design section 7, Restore).

Done on the database itself, without a caller and without a server; servers that run all the same notice by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward_server.model import AuditEvent
from doorward_server.service.operators import DIRECT_ACTOR
from doorward_server.storage import epochs

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.core.revision import Revision
    from doorward_server.replica.timing import Timing
    from doorward_server.storage.pool import Database

__all__ = ["EpochBegun", "begin_new_epoch"]


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """Where the log stands in the new epoch, how many replicas' rows went, and how long was waited for their leases."""

    revision: Revision
    replicas: int
    hold_ms: int


async def begin_new_epoch(
    database: Database, timing: Timing, least_hold_ms: int, on_wait: Callable[[epochs.Departed], None]
) -> EpochBegun:
    """Forgets all replicas, waits until none of them can have a lease any more, and begins an epoch.

    `on_wait` is told what is waited for. What is least waited, and what is raised: see `epochs.begin_epoch`.
    """

    async def outlast(departed: epochs.Departed) -> None:
        from_ns = timing.now_ns()
        on_wait(departed)
        await timing.sleep_until(from_ns + departed.hold_ms * 1_000_000)

    revision, departed = await epochs.begin_epoch(database, least_hold_ms, outlast, _event)
    return EpochBegun(revision, departed.replicas, departed.hold_ms)


def _event(former: int, departed: epochs.Departed) -> AuditEvent:
    return AuditEvent(
        actor=DIRECT_ACTOR,
        action="NewEpoch",
        subject=f"epoch:{former + 1}",
        account_id=None,
        before={"epoch": former, "replicas": departed.replicas},
        after={"epoch": former + 1},
    )
