"""A failover of a real pair, by hand: checks stop and come back, and nothing that was acknowledged is lost.

Tests 9, 29, 30, 31 and 43 of the model's `faults.md`, on a primary and a synchronous standby. Real processes in real
time: what is waited for are conditions, and how long a barrier waited is read from its Propagation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from doorward.clock import SystemClock
from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.replica.barrier import Barrier
from doorward_server.replica.timing import Timing
from doorward_server.storage import changes, replicas
from doorward_server.storage.line import Line
from doorward_server.storage.pool import Database
from tests.cluster.history import OK, now_ns
from tests.support.calls import Mutations
from tests.support.database import issue_token, opened, put_account
from tests.support.nodes import url_of
from tests.support.pair import await_undecided, first_decision
from tests.support.replica import paused, running
from tests.support.stepped import SteppedClock, SteppedTiming
from tests.support.stepped import eventually as eventually_async
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, MutableMapping
    from pathlib import Path

    from tests.cluster.clients import Client
    from tests.support.pair import Pair
    from tests.support.replica import Parts

HOLD_S = 1.0
ALLOWED, REVOKED, UNAVAILABLE = "ALLOWED", "TOKEN_REVOKED", "UNAVAILABLE"


@contextlib.contextmanager
def frozen(pair: Pair, client: Client) -> Iterator[None]:
    """The server's process stands still."""
    pid = pair.servers.processes[client.replica].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_checks_stop_with_the_lease_and_come_back_without_a_restart_and_nothing_acknowledged_is_lost(
    pair: Pair,
) -> None:
    clients = a, b = pair.serve(2, pair.primary, pair.standby, hold_s=HOLD_S)
    subject = a.subject()
    with Mutations(a, subject) as at_a, Mutations(b, subject) as at_b:
        eventually(lambda: min(len(at_a.revoked), len(at_b.revoked)) >= 5)
        pair.primary.kill()
        for client in clients:
            await_undecided(client, subject)
        acknowledged = at_a.acknowledged, at_b.acknowledged
        pair.standby.promote()
        pair.attach_standby(pair.standby, into=pair.primary)
        for client in clients:
            assert first_decision(client, subject) == ALLOWED
        eventually(lambda: at_a.acknowledged > acknowledged[0] and at_b.acknowledged > acknowledged[1])

    for client in clients:
        for mutations in (at_a, at_b):
            assert {first_decision(client, revoked) for revoked in mutations.revoked} == {REVOKED}
            assert all(first_decision(client, issued) in {ALLOWED, REVOKED} for issued in mutations.issued)
    assert all(server.process.poll() is None for server in pair.servers.processes.values())
    pair.verify(pair.standby)


def test_a_primary_that_neither_answers_nor_refuses_is_passed_over(pair: Pair) -> None:
    (a,) = pair.serve(1, pair.primary, pair.standby, hold_s=HOLD_S)
    subject = a.subject()
    pair.primary.freeze()
    await_undecided(a, subject)
    pair.standby.promote()
    pair.attach_standby(pair.standby)
    assert first_decision(a, subject) == ALLOWED
    eventually(lambda: a.begin_revoke(subject).result().answered == OK)
    assert first_decision(a, subject) == REVOKED
    pair.verify(pair.standby)


def test_a_deposed_primary_gives_no_lease_and_acknowledges_nothing(pair: Pair) -> None:
    (a,) = pair.serve(1, pair.primary, hold_s=HOLD_S)
    (b,) = pair.serve(1, pair.primary, pair.standby, hold_s=HOLD_S)
    live, revoked = a.subject(), a.subject()
    assert a.begin_revoke(revoked).result().answered == OK

    pair.standby.promote()

    for client in (a, b):
        await_undecided(client, live)
    # It is up and answers reads; a renewal is a write, which waits for a standby that is gone.
    eventually(lambda: pair.primary.commits_that_wait() > 0)
    again = a.begin_revoke(revoked).result()
    assert (again.answered, again.why) == (UNAVAILABLE, "COMMIT_UNKNOWN"), "that it was revoked before is no success"
    assert a.begin_revoke(live).result().answered == UNAVAILABLE
    assert a.check(live, fully=True) == UNAVAILABLE

    # Who knows both does not stay with the one that acknowledges nothing.
    pair.attach_standby(pair.standby)
    assert first_decision(b, live) == ALLOWED
    eventually(lambda: b.begin_revoke(live).result().answered == OK)
    assert [a.check(live), a.check(live, fully=True)] == [UNAVAILABLE, UNAVAILABLE]
    assert [first_decision(b, live), first_decision(b, live, fully=True)] == [REVOKED, REVOKED]
    assert "truncated" not in pair.servers.processes["b"].log.read_text(), "its feed does not stay there either"
    pair.verify(pair.standby)


async def test_what_a_pooled_connection_reads_at_a_deposed_primary_serves_nobody(pair: Pair, tmp_path: Path) -> None:
    async with opened(pair.primary.url) as deposed, running(deposed, tmp_path) as one:
        await put_account(deposed, "acme")
        await issue_token(deposed, "nightly", "acme")
        await one.usable()
        former = await backend_of(deposed)
        await asyncio.to_thread(pair.standby.promote)
        async with opened(pair.standby.url) as promoted:
            route(one, promoted)
            changed = await put_account(promoted, "acme", "enterprise")
            await one.applied(changed.number)
            await one.usable()

            with capture_logs() as logs:
                await one.caches.fill("token", "nightly")

        assert "load_from_another_history" in [log["event"] for log in logs]
        assert one.holding.tables.tokens.get("nightly") is None
        assert await backend_of(deposed) != former, "its connection is lent to nobody any more"


async def test_a_barrier_does_not_take_a_deposed_primarys_replicas_for_all_that_there_are(pair: Pair) -> None:
    hosts = pair.primary, pair.standby
    async with (
        through(url_of(*hosts)) as stays,
        through(url_of(*reversed(hosts))) as moves_on,
    ):
        for database in (stays, moves_on):
            assert await backend_of(database), "to the primary"
        await asyncio.to_thread(pair.standby.promote)
        async with opened(pair.standby.url) as promoted:
            await registered(promoted, hold_ms=60_000)
            revision = await put_account(promoted, "acme")

            with pytest.raises(Unavailable) as refused:
                await Barrier(stays, Timing(SystemClock())).passed(revision, None)
            assert refused.value.reason == "PROPAGATION_UNKNOWN"

            moves_on.connector.hosts._first = 0  # as it is once a renewal went unanswered
            clock = SteppedClock()
            with paused(Failpoint.BARRIER_AFTER_ROWS) as pause:
                passing = asyncio.ensure_future(Barrier(moves_on, SteppedTiming(clock)).passed(revision, None))
                await pause.reached.wait()
                # From here on it sees only the deposed primary, where nobody has registered since.
                moves_on.connector.hosts._first = 1
                await moves_on.expire()
            with capture_logs() as logs:
                await eventually_async(lambda: stepped(clock, logs))
            assert not passing.done()
            clock.advance(60_000)
            assert (await passing).propagation.replicas_expired == 1


def stepped(clock: SteppedClock, logs: list[MutableMapping[str, object]]) -> bool:
    """Lets a barrier look again; whether it has looked at a server that lacks the change."""
    clock.advance(10)
    return "rows_from_another_history" in [log["event"] for log in logs]


@contextlib.asynccontextmanager
async def through(url: str) -> AsyncIterator[Database]:
    """A Database that puts up with a primary that has no standby yet."""
    database = Database(url, hold_ms=2000, accept_failover_loss=True)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def backend_of(database: Database) -> int:
    async with database.reading() as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def registered(database: Database, hold_ms: int) -> None:
    line = Line(database)
    await line.call(lambda connection: replicas.register(connection, str(uuid4()), hold_ms, "test"), 5)
    await line.close()


async def test_a_replica_that_read_an_unreplicated_change_at_a_restarted_deposed_primary_begins_anew(
    pair: Pair, tmp_path: Path
) -> None:
    hold_ms = round(HOLD_S * 1000)
    async with opened(pair.primary.url, hold_ms=hold_ms) as deposed, running(deposed, tmp_path, hold_ms=hold_ms) as one:
        replicated = (await put_account(deposed, "acme")).number
        await one.usable()
        await one.applied(replicated)
        generation, replica_id = one.holding.history.generation, str(one.holding.replica_id)
        await asyncio.to_thread(pair.standby.stop)
        with pytest.raises(Unavailable, match="not acknowledge"):
            await put_account(deposed, "lost")
        await asyncio.to_thread(depose_and_restart, pair)

        # It reads there what no standby has; but a renewal is a write.
        await one.applied(replicated + 1)
        unreplicated = one.holding.history.applied
        assert unreplicated is not None
        told = unreplicated.number, unreplicated.nonce
        await eventually_async(lambda: one.holding.capture() is None)

        async with opened(pair.standby.url, hold_ms=hold_ms) as promoted:
            async with promoted.reading() as connection:
                (row,) = await replicas.read_rows(connection)
                assert row.replica_id == replica_id
                assert row.applied_revision <= replicated
                assert not await replicas.report(connection, replica_id, *told), "no such change yet"
                await put_account(promoted, "kept")
                assert not await replicas.report(connection, replica_id, *told), "another change"
            route(one, promoted)
            await one.usable()
            assert one.holding.history.generation > generation
            assert one.holding.applied == replicated + 1
            assert not one.holding.history.holds(*told)
            async with promoted.reading() as connection:
                end = await changes.read_end(connection)
            assert one.holding.history.holds(end.number, end.nonce)


def depose_and_restart(pair: Pair) -> None:
    """The standby, which lacks the newest change, is promoted; the primary crashes and comes back with that change."""
    pair.standby.isolate()
    pair.standby.start()
    pair.standby.promote()
    pair.primary.kill()
    pair.primary.start()


def route(replica: Parts, database: Database) -> None:
    """From now on the replica's lines lead to another server."""
    for line in replica.lines:
        line._database = database
        line.terminate()


def test_a_barrier_counts_from_the_acknowledgement_however_long_that_was_held_back(pair: Pair) -> None:
    hold_s = 2.0
    a, b = pair.serve(2, pair.primary, pair.standby, hold_s=hold_s)
    subject = a.subject()
    for client in (a, b):
        assert first_decision(client, subject) == ALLOWED
    with frozen(pair, b):
        pair.standby.freeze()
        revoking = a.begin_revoke(subject)
        eventually(lambda: pair.primary.commits_that_wait() > 0)
        eventually(lambda: now_ns() - revoking.record.begun_ns > hold_s * 1.2e9)
        assert not revoking.is_done
        assert a.check(subject) == UNAVAILABLE, "no renewal was acknowledged either"
        pair.standby.thaw()
        revoked = revoking.result()
    assert revoked.answered == OK
    assert revoked.expired >= 1
    assert revoked.elapsed_s >= hold_s, "counted from the acknowledgement"
    for client in (a, b):
        assert first_decision(client, subject) == REVOKED
    pair.verify(pair.primary)


STARTS = {
    "several hosts, one of which replicates to nobody": ("", "names several hosts"),
    "a commit that waits for no disk": ("ALTER ROLE doorward SET synchronous_commit = off", "synchronous_commit=off"),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_server_does_not_start_on_a_database_that_may_forget_unless_told_to(lone: Pair, case: str) -> None:
    made_so, why = STARTS[case]
    if made_so:
        lone.primary.fetch(made_so)
    hosts = lone.primary, lone.standby
    with pytest.raises(AssertionError, match=why) as refused:
        lone.serve(1, *hosts, hold_s=HOLD_S)
    assert "--accept-failover-loss" in str(refused.value)
    assert "status 2" in str(refused.value)
    (client,) = lone.serve(1, *hosts, hold_s=HOLD_S, arguments=("--accept-failover-loss",))
    assert first_decision(client, client.subject()) == ALLOWED
