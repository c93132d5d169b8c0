"""A new epoch is not begun before every lease of before has ended, on the clock that counts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from doorward.core.revision import Revision
from doorward_server.service.epochs import EpochBegun, begin_new_epoch
from doorward_server.storage import changes
from doorward_server.storage.epochs import Departed
from tests.support.replica import running
from tests.support.stepped import SteppedClock, SteppedTiming, eventually, settled

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.pool import Database


async def epoch_of(database: Database) -> int:
    async with database.reading() as connection:
        return (await changes.read_end(connection)).epoch


async def test_it_waits_out_the_longest_hold_on_its_clock(database: Database) -> None:
    clock = SteppedClock()
    told: list[Departed] = []
    beginning = asyncio.create_task(begin_new_epoch(database, SteppedTiming(clock), 2000, told.append))
    await eventually(lambda: bool(told))
    clock.advance(1999)
    await settled()
    assert not beginning.done()
    assert await epoch_of(database) == 1

    clock.advance(1)

    assert await beginning == EpochBegun(Revision(2, 0), 0, 2000)
    assert told == [Departed(0, 2000)]
    assert await epoch_of(database) == 2


async def test_a_replica_that_ran_on_begins_anew_in_the_new_epoch(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    told: list[Departed] = []
    async with running(database, tmp_path, hold_ms=2000) as replica:
        await replica.usable()
        generation = replica.holding.history.generation
        beginning = asyncio.create_task(begin_new_epoch(database, SteppedTiming(clock), 500, told.append))
        await eventually(lambda: bool(told))
        await eventually(lambda: replica.holding.capture() is None)
        clock.advance(2000)
        begun = await beginning

        await replica.usable()

        assert replica.holding.history.generation > generation
        assert replica.holding.revision == begun.revision == Revision(2, 0)
    assert told == [Departed(1, 2000)]
