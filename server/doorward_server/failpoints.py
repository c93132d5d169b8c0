"""Named stops at the steps where a fault matters (design section 7, `docs/faults.md`).

Inert: no setting and no endpoint arms one. Only the tests' own entry point calls `arm`, and what it hands in decides
what happens there: wait, raise, or end the process. Names are those of the model's `faults.md`.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import TypeAlias

__all__ = ["Failpoint", "arm", "disarm", "is_armed", "reach"]


class Failpoint(enum.Enum):
    """Where a test may stop a server. The points on the path of a check exist only in the tests' entry point."""

    LOAD_BEFORE_SNAPSHOT = "load.before_snapshot"
    LOAD_AFTER_SNAPSHOT = "load.after_snapshot"
    LOAD_BEFORE_INSTALL = "load.before_install"
    RENEW_BEFORE_SEND = "renew.before_send"
    RENEW_BEFORE_ANSWER = "renew.before_answer"
    REGISTER_BEFORE_COMMIT = "register.before_commit"
    REGISTER_BEFORE_ANSWER = "register.before_answer"
    APPLY_BEFORE = "apply.before"
    REPORT_BEFORE_SEND = "report.before_send"
    MUTATION_AFTER_AUTHN = "mutation.after_authn"
    MUTATION_AFTER_LOCK = "mutation.after_lock"
    MUTATION_BEFORE_COMMIT = "mutation.before_commit"
    MUTATION_ACK_LOST = "mutation.ack_lost"
    BARRIER_BEFORE_ROWS = "barrier.before_rows"
    BARRIER_AFTER_ROWS = "barrier.after_rows"
    PRUNE_BEFORE = "prune.before"
    SHUTDOWN_BEFORE_DELETE = "shutdown.before_delete"
    NOTIFY_DROP = "notify.drop"
    WATCH_BEFORE_GRANT = "watch.before_grant"
    WATCH_DROP_ACKS = "watch.drop_acks"
    BCRYPT_BEFORE_RESULT = "bcrypt.before_result"


Stop: TypeAlias = Callable[[], Awaitable[None]]

_armed: dict[Failpoint, Stop] = {}


async def reach(point: Failpoint) -> None:
    """Does nothing, unless a test armed `point`: then whatever that test wants to happen here."""
    if _armed and (stop := _armed.get(point)) is not None:
        await stop()


def arm(point: Failpoint, stop: Stop) -> None:
    """From now on `stop` is awaited wherever `point` is reached. For the tests' own entry point only."""
    _armed[point] = stop


def disarm(point: Failpoint) -> None:
    """`point` is inert again."""
    _armed.pop(point, None)


def is_armed(point: Failpoint) -> bool:
    """Whether a test armed `point`: for the one place (a NOTIFY's callback) that cannot await."""
    return point in _armed
