"""A switchover and a failover by Patroni, under traffic: no promise is broken, and nothing acknowledged is lost.

Prints how long checks could not be decided, for docs/failover.md. Real time throughout; nothing of it is asserted.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.cluster.history import now_ns
from tests.support.calls import Checks, Mutations
from tests.support.pair import Servers, begin_deployment, first_decision
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.lines import Background
    from tests.ha.patroni import Patronis

# The default, and one that is longer than Patroni takes to depose a leader: checks ride through a failover under it.
HOLDS_S: Final = (5.0, 40.0)
PATIENCE_S: Final = 180.0


class Run:
    """What goes on at both servers, and what is written down of it."""

    def __init__(self, patronis: Patronis, checks: list[Checks], mutations: list[Mutations]) -> None:
        self._patronis = patronis
        self._checks = checks
        self._mutations = mutations
        self.rows: list[str] = []

    def event(self, name: str, happen: Callable[[], None]) -> None:
        """Does it, and waits until there is another primary, and every server decides and changes things again."""
        leader, since_ns = self._patronis.leader(), now_ns()
        happen()
        self._patronis.await_leader(but=leader)
        there = now_ns()
        done = [mutations.acknowledged for mutations in self._mutations]
        for checks in self._checks:
            eventually(lambda checks=checks: checks.made[-1].is_decided, PATIENCE_S)  # type: ignore[misc]
        eventually(
            lambda: all(now.acknowledged > before for now, before in zip(self._mutations, done, strict=True)),
            PATIENCE_S,
        )
        for hold_s, checks in zip(HOLDS_S, self._checks, strict=True):
            self.rows.append(
                f"| {name} | {(there - since_ns) / 1e9:.1f} | {hold_s:g} | {checks.undecided_s(since_ns):.1f} "
                f"| {checks.unavailable(since_ns)} |"
            )

    def tell(self) -> str:
        """The figures, as a table."""
        head = "| event | new primary after s | hold s | longest without a decision s | checks UNAVAILABLE |"
        acknowledged = sum(mutations.acknowledged for mutations in self._mutations)
        checks = sum(len(checks.made) for checks in self._checks)
        told = f"{acknowledged} acknowledged mutations and {checks} checks; none lost, no answer wrong."
        return "\n".join(["", head, "| --- | --- | --- | --- | --- |", *self.rows, "", told, ""])


@pytest.mark.timeout(900)
def test_a_switchover_and_a_failover_lose_nothing_and_checks_come_back_by_themselves(
    patronis: Patronis, background: Background, capsys: pytest.CaptureFixture[str]
) -> None:
    credentials = patronis.directory / "credentials"
    credentials.mkdir(mode=0o700)
    asyncio.run(begin_deployment(patronis.url_of_leader(), credentials))
    servers = Servers(background, credentials, patronis.directory)
    try:
        clients = [servers.serve(1, patronis.url, hold_s=hold_s)[0] for hold_s in HOLDS_S]
        subject = clients[0].subject()
        with contextlib.ExitStack() as stack:
            checks = [stack.enter_context(Checks(client, subject)) for client in clients]
            mutations = [stack.enter_context(Mutations(client, subject)) for client in clients]
            run = Run(patronis, checks, mutations)
            eventually(lambda: all(one.acknowledged > 20 for one in mutations), PATIENCE_S)
            run.event("switchover", patronis.switch_over)
            patronis.await_whole()
            killed = patronis.leader()
            run.event("kill -9 of the primary and its Patroni", lambda: patronis.kill(killed))
            patronis.start(patronis.members[killed])
            patronis.await_whole()
        for client in clients:
            for made in mutations:
                assert {first_decision(client, revoked) for revoked in made.revoked} == {"TOKEN_REVOKED"}
        assert all(server.process.poll() is None for server in servers.processes.values())
        servers.verify(patronis.url_of_leader())
        with capsys.disabled():
            sys.stdout.write(run.tell())
    finally:
        servers.close()
