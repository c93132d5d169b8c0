"""A failover of a real pair, by hand: checks stop and come back, and nothing that was acknowledged is lost.

Tests 9, 29, 30, 31 and 43 of the model's `faults.md`, on a primary and a synchronous standby. Real processes in real
time: what is waited for are conditions, and how long a barrier waited is read from its Propagation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Self

import pytest

from doorward_server.errors import Unavailable
from doorward_server.storage import changes, replicas
from tests.cluster.history import OK, Subject, now_ns
from tests.support.database import opened, put_account
from tests.support.replica import running
from tests.support.stepped import eventually as eventually_async
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from doorward_server.storage.pool import Database
    from tests.cluster.clients import Client
    from tests.support.nodes import Node
    from tests.support.pair import Pair
    from tests.support.replica import Parts

HOLD_S = 1.0
ALLOWED, REVOKED, UNAVAILABLE = "ALLOWED", "TOKEN_REVOKED", "UNAVAILABLE"


class Traffic:
    """Issues tokens and revokes every other one, at one server, until it is told to end; failures are part of it."""

    def __init__(self, client: Client, like: Subject) -> None:
        self._client = client
        self._like = like
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"traffic at {client.replica}")
        self.issued: list[Subject] = []
        self.revoked: list[Subject] = []

    @property
    def acknowledged(self) -> int:
        return len(self.issued) + len(self.revoked)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        like = self._like
        while not self._ended.is_set():
            subject = Subject(like.account_id, like.project_id, "", "", like.permission, "TOKEN_UNRECOGNIZED")
            if self._client.begin_issue(subject).result().answered != OK:
                continue
            self.issued.append(subject)
            if len(self.issued) % 2 and self._client.begin_revoke(subject).result().answered == OK:
                self.revoked.append(subject)


def waits_for(client: Client, subject: Subject, answer: str, *, fully: bool = False) -> None:
    """Returns once a check of `subject` is answered so."""
    eventually(lambda: client.check(subject, fully=fully) == answer)


@contextlib.contextmanager
def frozen(pair: Pair, client: Client) -> Iterator[None]:
    """The server's process stands still."""
    pid = pair.servers[client.replica].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def connections(node: Node) -> int:
    """How many connections Doorward has to it."""
    return int(node.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'doorward'"))


def test_checks_stop_with_the_lease_and_come_back_without_a_restart_and_nothing_acknowledged_is_lost(
    pair: Pair,
) -> None:
    clients = a, b = pair.serve(2, pair.primary, pair.standby, hold_s=HOLD_S)
    subject = a.subject()
    with Traffic(a, subject) as at_a, Traffic(b, subject) as at_b:
        eventually(lambda: min(len(at_a.revoked), len(at_b.revoked)) >= 5)
        pair.primary.kill()
        for client in clients:
            waits_for(client, subject, UNAVAILABLE)
        acknowledged = at_a.acknowledged, at_b.acknowledged
        pair.standby.promote()
        pair.attach_standby(pair.standby, into=pair.primary)
        for client in clients:
            waits_for(client, subject, ALLOWED)
        eventually(lambda: at_a.acknowledged > acknowledged[0] and at_b.acknowledged > acknowledged[1])

    for client in clients:
        for traffic in (at_a, at_b):
            assert {client.check(revoked) for revoked in traffic.revoked} == {REVOKED}
            assert all(client.check(issued) in {ALLOWED, REVOKED} for issued in traffic.issued)
    assert all(server.process.poll() is None for server in pair.servers.values())
    pair.verify(pair.standby)


def test_a_deposed_primary_gives_no_lease_and_acknowledges_nothing(pair: Pair) -> None:
    (a,) = pair.serve(1, pair.primary, hold_s=HOLD_S)
    live, revoked = a.subject(), a.subject()
    assert a.begin_revoke(revoked).result().answered == OK

    pair.standby.promote()

    waits_for(a, live, UNAVAILABLE)
    eventually(lambda: pair.primary.commits_that_wait() > 0)
    # It is up and answers reads; a renewal is a write, which waits for a standby that is gone.
    assert a.begin_revoke(live).result().answered == UNAVAILABLE
    assert a.begin_revoke(live).result().answered == UNAVAILABLE, "a retry is no success either"
    assert a.begin_revoke(revoked).result().answered == UNAVAILABLE, "nor is 'it is revoked already'"
    assert a.check(live) == UNAVAILABLE
    assert a.check(live, fully=True) == UNAVAILABLE
    pair.verify(pair.standby)


def test_what_a_pooled_connection_reads_at_a_deposed_primary_serves_nobody(pair: Pair) -> None:
    hosts = pair.standby, pair.primary
    a, b = pair.serve(2, *hosts, hold_s=HOLD_S)
    known, other = a.subject(), a.subject()
    for client in (a, b):
        assert client.check(known) == ALLOWED, "what every check needs is in memory, and connections are in the pool"
    pair.standby.promote()
    pair.attach_standby(pair.standby)
    # Unanswered renewals go on at the next primary; the pool's idle connections still lead to the deposed one.
    eventually(lambda: connections(pair.standby) > 0)
    for client in (a, b):
        waits_for(client, known, ALLOWED)

    eventually(lambda: a.begin_revoke(other).result().answered == OK)

    log = pair.servers["b"].log
    assert "load_from_another_history" not in log.read_text()
    assert b.check(other) == REVOKED
    assert "load_from_another_history" in log.read_text(), "the first read was at the deposed primary"
    assert b.check(other, fully=True) == REVOKED
    pair.verify(pair.standby)


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
        assert client.check(subject) == ALLOWED
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
        waits_for(client, subject, REVOKED)
    pair.verify(pair.primary)


STARTS = {
    "several hosts, one of which replicates to nobody": ((), "names several hosts"),
    "a commit that waits for no disk": (("synchronous_commit", "off"), "synchronous_commit=off"),
    "a commit that waits for this disk alone": (("synchronous_commit", "local"), "names several hosts"),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_server_does_not_start_on_a_database_that_may_forget_unless_told_to(lone: Pair, case: str) -> None:
    setting, why = STARTS[case]
    if setting:
        lone.primary.fetch(f"ALTER ROLE doorward SET {setting[0]} = {setting[1]}")
    hosts = lone.primary, lone.standby
    with pytest.raises(AssertionError, match=why) as refused:
        lone.serve(1, *hosts, hold_s=HOLD_S)
    assert "--accept-failover-loss" in str(refused.value)
    assert "status 2" in str(refused.value)
    (client,) = lone.serve(1, *hosts, hold_s=HOLD_S, arguments=("--accept-failover-loss",))
    assert client.check(client.subject()) == ALLOWED
