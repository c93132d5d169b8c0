"""When tokens were last used: gathered in memory, written at intervals (design section 5).

A use is a check of a recognized secret, allowed or denied. Each costs the check one store into `Holding.used`; no check
waits for anything here. What a crash loses is the last interval: `last_used_time` then lags, and is never wrong the other
way. Started by `app.py`, which also has the rest written at the end.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from doorward_server.errors import Refused
from doorward_server.storage import usage
from doorward_server.storage.failures import StatementRefused

if TYPE_CHECKING:
    from doorward_server.replica.holding import Holding
    from doorward_server.storage.pool import Database

__all__ = ["Usage"]

log = structlog.get_logger()

# How often the number of gathered uses is looked at.
LOOK_NS: Final = 1_000_000_000
# With this many they are written at once. Between two looks no more tokens can be added than are cached, and then loaded.
MANY: Final = 50_000
# Rows of one statement: their locks are held for some tens of milliseconds.
BATCH: Final = 5_000


class Usage:
    """The part that writes. `run` does so every `interval_s` seconds, `flush` at the end."""

    def __init__(self, holding: Holding, database: Database, interval_s: float) -> None:
        self._used = holding.used
        self._timing = holding.timing
        self._database = database
        self._interval_ns = int(interval_s * 1e9)
        # Others have written what is this close: so a token that every replica sees is written once an interval, by one.
        self._closer_than = timedelta(seconds=interval_s)
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Writes at intervals, for ever."""
        due_ns = self._timing.now_ns() + self._interval_ns
        while True:
            now_ns = self._timing.now_ns()
            await self._timing.sleep_until(min(due_ns, now_ns + LOOK_NS))
            if self._timing.now_ns() >= due_ns or len(self._used) >= MANY:
                await self._write(self._closer_than)
                due_ns = self._timing.now_ns() + self._interval_ns

    async def flush(self) -> None:
        """Writes everything that was gathered; for the shutdown. What the database does not take is lost."""
        await self._write(timedelta(0))

    async def _write(self, closer_than: timedelta) -> None:
        async with self._turn:
            # No await until it is empty again: what is stored from here on is for the next time.
            gathered = list(self._used.items())
            self._used.clear()
            for start in range(0, len(gathered), BATCH):
                try:
                    async with self._database.reading() as connection:
                        await usage.write_uses(connection, gathered[start : start + BATCH], closer_than)
                except Refused as refused:
                    log.warning("uses_not_written", reason=refused.reason, waiting=len(gathered) - start)
                    self._put_back(gathered[start:])
                    return
                except StatementRefused:
                    log.exception("uses_lost", count=len(gathered[start : start + BATCH]))

    def _put_back(self, gathered: list[tuple[str, int]]) -> None:
        """For the next time. A token that was used again meanwhile has a later time already."""
        for token_id, used_us in gathered:
            self._used.setdefault(token_id, used_us)
