"""Keeps a record of refused mutations and failed credentials, at a bounded rate and never in anyone's way (design section 5).

`record` only puts into memory; the background part writes once a second. A flood is bounded three times: for each actor
(or, of unproved ones, each address) and reason, for all together, and in the number of those that are told apart. What is
left out is counted, and the count is written with the next one of its kind, at the latest when its kind has been quiet
for a moment, so that a flood's end is on record too. A crash loses the last second; so does a database that cannot be
written to, once the queue is full, but for the counts.

Called by `api/wrapper.py` for every RPC, and by use cases that refuse silently.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from doorward_server.errors import Refused
from doorward_server.model import Refusal
from doorward_server.storage import refusals
from doorward_server.storage.failures import StatementRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward_server.replica.timing import Timing
    from doorward_server.storage.pool import Database

__all__ = ["ANONYMOUS", "Refusals"]

log = structlog.get_logger()

ANONYMOUS: Final = "anonymous"

SECOND_NS: Final = 1_000_000_000
WRITE_EVERY_NS: Final = SECOND_NS
BATCH: Final = 500
QUEUE: Final = 2_000
# How many actors and addresses, each with its reasons, are told apart at a time; those beyond share one place a reason.
KINDS: Final = 4_096
OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Pace:
    """At most `burst` at once, and one more every `interval_ns`."""

    interval_ns: int
    burst: int

    def paid(self, due_ns: int, now_ns: int) -> int | None:
        """When the allowance that ends at `due_ns` ends after one more; None: there is none left at `now_ns`."""
        after = max(due_ns, now_ns) + self.interval_ns
        return after if after - now_ns <= self.burst * self.interval_ns else None


OF_ONE_KIND: Final = Pace(10 * SECOND_NS, 10)
# Unproved callers cost nothing to imitate: they share an allowance of their own, and cannot use up that of the others.
OF_ALL_UNPROVED: Final = Pace(SECOND_NS, 200)
OF_ALL_PROVED: Final = Pace(SECOND_NS, 200)


class _Kind:
    """What is known of one actor (or address) and reason: its allowance, and what was left out."""

    __slots__ = ("due_ns", "last", "suppressed")

    def __init__(self) -> None:
        self.due_ns = 0
        self.suppressed = 0
        self.last: tuple[int, Refusal] | None = None


class Refusals:
    """The record. `record` may be called from anywhere in the event loop's thread; `run` is the background part."""

    def __init__(self, database: Database, timing: Timing) -> None:
        self._database = database
        self._timing = timing
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._due_ns = {True: 0, False: 0}
        self._queue: deque[tuple[int, Refusal]] = deque()
        self._turn = asyncio.Lock()

    def record(self, *, actor: str, action: str, subject: str, account_id: str | None, reason: str, peer: str) -> None:
        """Takes note that `reason` was answered; costs microseconds, raises nothing, and may only be counted.

        `actor` is `token:<id>` or `operator:<id>` only if it was proved, else `anonymous`. No argument holds a secret.
        """
        now_ns = self._timing.now_ns()
        kind = self._kind(peer if actor == ANONYMOUS else actor, reason)
        refusal = Refusal(actor, action, subject, account_id, reason, peer)
        if len(self._queue) >= QUEUE or not self._may_write(kind, refusal, now_ns):
            kind.suppressed += 1
            kind.last = (now_ns, refusal)
            return
        self._queue.append((now_ns, replace(refusal, suppressed=kind.suppressed)))
        kind.suppressed, kind.last = 0, None

    async def run(self) -> None:
        """Writes what was taken note of, once a second, for ever."""
        while True:
            await self._timing.sleep_until(self._timing.now_ns() + WRITE_EVERY_NS)
            self._settle(self._timing.now_ns())
            await self._write()

    async def flush(self) -> None:
        """Writes everything now, counts too; for the shutdown. What the database does not take is lost."""
        for kind in self._kinds.values():
            self._queue_what_was_left_out(kind)
        await self._write()

    def _kind(self, who: str, reason: str) -> _Kind:
        kind = self._kinds.get((who, reason))
        if kind is None:
            key = (who, reason) if len(self._kinds) < KINDS else (OTHERS, reason)
            kind = self._kinds.setdefault(key, _Kind())
        return kind

    def _may_write(self, kind: _Kind, refusal: Refusal, now_ns: int) -> bool:
        """Takes one from both allowances, or from neither."""
        is_proved = refusal.actor != ANONYMOUS
        of_kind = OF_ONE_KIND.paid(kind.due_ns, now_ns)
        of_all = (OF_ALL_PROVED if is_proved else OF_ALL_UNPROVED).paid(self._due_ns[is_proved], now_ns)
        if of_kind is None or of_all is None:
            return False
        kind.due_ns, self._due_ns[is_proved] = of_kind, of_all
        return True

    def _settle(self, now_ns: int) -> None:
        """Queues the counts of what has been quiet for a moment, and forgets what has nothing left to say."""
        for key, kind in list(self._kinds.items()):
            if kind.last is not None:
                at_ns, refusal = kind.last
                is_quiet = now_ns - at_ns >= WRITE_EVERY_NS and len(self._queue) < QUEUE
                if is_quiet and self._may_write(kind, refusal, now_ns):
                    self._queue_what_was_left_out(kind)
            elif kind.due_ns <= now_ns:
                del self._kinds[key]

    def _queue_what_was_left_out(self, kind: _Kind) -> None:
        """The last one of them, with the number of those before it."""
        if kind.last is not None:
            at_ns, refusal = kind.last
            self._queue.append((at_ns, replace(refusal, suppressed=kind.suppressed - 1)))
            kind.suppressed, kind.last = 0, None

    async def _write(self) -> None:
        async with self._turn:
            while self._queue:
                batch = list(itertools.islice(self._queue, BATCH))
                try:
                    await self._write_batch(batch)
                except Refused as refused:
                    # They stay in the queue, which is bounded, for the next time.
                    log.warning("refusals_not_written", reason=refused.reason, waiting=len(self._queue))
                    return
                except StatementRefused:
                    # The same rows would be refused for ever, and others behind them wait.
                    log.exception("refusals_lost", count=len(batch))
                for _ in batch:
                    self._queue.popleft()

    async def _write_batch(self, batch: Sequence[tuple[int, Refusal]]) -> None:
        now_ns = self._timing.now_ns()
        async with self._database.reading() as connection:
            await refusals.write(connection, [((now_ns - at_ns) // 1_000, refusal) for at_ns, refusal in batch])
