"""What a replica's row says, and whether it stays, while watchers hold something (design section 7: Watchers, Shutdown)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.replica.watch_messages import UnrecognizedSnapshot
from doorward_server.storage import replicas
from tests.support.database import put_account
from tests.support.replica import running
from tests.support.stepped import SteppedClock, SteppedTiming, eventually, settled

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.model import ReplicaRow
    from doorward_server.replica.watch_session import Session
    from doorward_server.storage.pool import Database
    from tests.support.replica import Parts

ACCOUNT = "account:acme"


async def row_of(database: Database) -> ReplicaRow:
    async with database.reading() as connection:
        (row,) = await replicas.read_rows(connection)
        return row


def a_session(replica: Parts) -> Session:
    """One that holds the account under a sub-lease, and has acknowledged everything so far."""
    watchers = replica.holding.watchers
    session = watchers.open("operator:o")
    take_all(replica, session)
    watchers.snapshot(session, UnrecognizedSnapshot(1, ""), (ACCOUNT,))
    assert watchers.grant(session, 1)
    take_all(replica, session)
    return session


def take_all(replica: Parts, session: Session) -> None:
    """Takes what waits, and acknowledges it."""
    watchers = replica.holding.watchers
    while taken := watchers.take(session):
        watchers.acknowledge(session, replica.holding.history.epoch, taken.number)


async def test_a_report_waits_for_the_acknowledgement_and_counts_who_gave_it(
    database: Database, tmp_path: Path
) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        session = a_session(replica)
        number = (await put_account(database, "acme")).number
        await replica.applied(number)
        await settled()
        assert (await row_of(database)).applied_revision < number

        take_all(replica, session)

        async def is_reported() -> bool:
            return (await row_of(database)).applied_revision == number

        await eventually(is_reported)
        assert (await row_of(database)).watchers == 1


async def test_a_report_waits_for_the_count_of_one_that_is_cut_off(database: Database, tmp_path: Path) -> None:
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock), without=("feed",)) as replica:
        await replica.usable()
        session = a_session(replica)
        counted_ns = session.counted_until_ns - clock.now_ns()
        replica.holding.watchers.end(session, None)
        number = (await put_account(database, "acme")).number
        async with database.reading() as connection:
            nonce = await connection.fetchval("SELECT nonce FROM changes WHERE revision = $1", number)
        replica.holding.apply(number, nonce, (ACCOUNT,))

        clock.advance((counted_ns - 1_000_000) / 1e6)
        replica.holding.watchers.look()
        await settled()
        assert (await row_of(database)).applied_revision < number

        async def is_reported() -> bool:
            replica.holding.watchers.look()
            return (await row_of(database)).applied_revision == number

        clock.advance(1)
        await eventually(is_reported)
        assert (await row_of(database)).watchers == 0


async def test_a_row_stays_while_a_sub_lease_is_counted(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        a_session(replica)
        await replica.keeper.leave()
        assert (await row_of(database)).replica_id == replica.holding.replica_id


async def test_a_row_goes_when_none_is_counted_any_more(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path, without=("keeper", "reporter", "feed")) as replica:
        replica.holding.replica_id = "00000000-0000-4000-8000-000000000000"
        async with database.reading() as connection:
            number = await connection.fetchval("SELECT revision FROM state")
            await replicas.register(connection, replica.holding.replica_id, 5000, "test")
        replica.holding.registered(replica.holding.replica_id, 1, number, b"nonce")
        replica.holding.renewed(replica.timing.now_ns(), number, b"nonce", 0)
        session = a_session(replica)
        replica.holding.watchers.goodbye(session, session.session_id)
        await replica.keeper.leave()
        async with database.reading() as connection:
            assert await replicas.read_rows(connection) == []
