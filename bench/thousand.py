"""A thousand watchers on three replicas, and a hundred changes a second: who falls behind, what it takes, what checks see.

Each watcher (`LocalAuthorizer` of asyncio, a stream each) holds one of a hundred tokens. UpdateToken gives and takes
grants, at two replicas, every tenth time of a token that is held; checks go to the third. First the same without
watchers, for the checks to be compared with. In the end each watcher is asked about its token, and must answer as the
last change has it.
Not among the parts that run when none is named: `make bench ARGS="thousand --watchers 300 --changes 30"`.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc.aio

from bench import fleet, harness, rows
from bench.propagation import percentile
from bench.report import Table
from bench.watchers import watching
from doorward.aio import TokenAdminClient, on_all_projects, on_projects
from doorward.errors import DoorwardError
from doorward.v1 import authorizer_pb2_grpc

if TYPE_CHECKING:
    from bench.fleet import Fleet
    from bench.harness import Cores
    from bench.watchers import Watchers

HELD: Final = 100
OTHERS: Final = 400
TOKENS: Final = HELD + OTHERS + 1
BEFORE_S: Final = 20.0
DURING_S: Final = 60.0
CHECKS_A_SECOND: Final = 40
# Changes under way at once, and how long each may take.
MOST_AT_ONCE: Final = 64
CHANGE_S: Final = 30.0
P99_LIMIT: Final = 2.0


@dataclass
class Spell:
    """What happened in a while: changes begun, how long each took, those that failed, the latencies of checks, in seconds."""

    seconds: float = 0.0
    changes_s: list[float] = field(default_factory=list)
    confirmed: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    checks_s: list[float] = field(default_factory=list)


class Changes:
    """Gives and takes `job_admin` on a token's project, in turn."""

    def __init__(self, running: Fleet) -> None:
        self._fleet = running
        credential = dict(running.waiting.admin)["authorization"].removeprefix("Bearer ")
        addresses = (running.waiting.server.address, running.third.server.address)
        self._clients = [TokenAdminClient(address, credential=lambda: credential) for address in addresses]
        self._locks = [asyncio.Lock() for _ in range(TOKENS)]
        # Token by index: whether it may write jobs, by the last change that has returned.
        self.allowed = [True] * TOKENS

    async def change(self, index: int, spell: Spell) -> None:
        """The next change of this token."""
        population = self._fleet.population
        async with self._locks[index]:
            allowed = not self.allowed[index]
            grants = [on_all_projects(rows.SET_ON_ALL)]
            if allowed:
                grants.append(on_projects(rows.SET_ON_ONE, population.project_id(index)))
            client = self._clients[index % len(self._clients)]
            began = time.perf_counter()
            try:
                answer = await client.update_token(population.token_ids[index], grants=grants, timeout=CHANGE_S)
            except DoorwardError as error:
                spell.failed.append(type(error).__name__)
                return
            spell.changes_s.append(time.perf_counter() - began)
            spell.confirmed.append(answer.propagation.watchers_confirmed)
            self.allowed[index] = allowed

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def run(_cores: Cores, watchers: int, changes: int) -> list[Table]:
    """Measures both spells."""
    with (
        tempfile.TemporaryDirectory(prefix="doorward-bench-") as directory,
        fleet.running(Path(directory), TOKENS, is_hasty=False) as running,
        watching(running, watchers) as told,
        asyncio.Runner() as runner,
    ):
        return [runner.run(_measured(running, told, watchers, changes))]


async def _measured(running: Fleet, told: Watchers, watchers: int, rate: int) -> Table:
    changes = Changes(running)
    try:
        before = await _spell(running, changes, BEFORE_S, rate)
        rss = _resident(running)
        connected = await asyncio.to_thread(told.count, "open", do="open")
        asks = _asks(running)
        await asyncio.to_thread(told.tell, {"do": "hold", "asks": asks})
        rss_held = _resident(running)
        during = await _spell(running, changes, DURING_S, rate)
        rss_after = _resident(running)
        answers = await asyncio.to_thread(told.tell, {"do": "check", "asks": asks})
        # Each process begins anew with the first of the questions.
        share = watchers // len(answers)
        expected = sum(
            allowed for allowed, _ in zip(itertools.cycle(changes.allowed[:HELD]), range(share), strict=False)
        )
        table = _table(before, during, (rss, rss_held, rss_after))
        for answer in answers:
            right = answer["allowed"] == expected
            table.require(right, f"{answer['allowed']} watchers of a process say yes; it should be {expected}")
        here = sum(answer["here"] for answer in answers)
        table.add("decided in-process in the end", "", f"{here} of {connected}")
        lags = running.waiting.lags()
        table.add("changes that replicas have not reported", "", str(lags))
        table.require(connected == watchers, f"{connected} of {watchers} watchers were connected")
        table.require(not during.failed, f"{len(during.failed)} changes failed: {sorted(set(during.failed))}")
        await asyncio.to_thread(told.tell, {"do": "close"})
        return table
    finally:
        await changes.close()


def _asks(running: Fleet) -> list[list[str]]:
    population = running.population
    return [[population.secret(index), rows.PERMISSION_ON_ONE, population.project_id(index)] for index in range(HELD)]


def _resident(running: Fleet) -> float:
    return max(harness.resident_mib(replica.server.pid) for replica in running.replicas)


async def _spell(running: Fleet, changes: Changes, seconds: float, rate: int) -> Spell:
    """Changes at the rate, never more than so many at once, and checks beside them."""
    spell, room = Spell(), asyncio.Semaphore(MOST_AT_ONCE)
    held, others = itertools.cycle(range(HELD)), itertools.cycle(range(HELD, HELD + OTHERS))
    began = time.perf_counter()

    async def one(index: int) -> None:
        try:
            await changes.change(index, spell)
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        asking = group.create_task(_check(running, spell))
        for number in itertools.count():
            due = began + number / rate
            if due > began + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if time.perf_counter() > began + seconds:
                break
            await room.acquire()
            group.create_task(one(next(held) if number % 10 == 0 else next(others)))
        asking.cancel()
    spell.seconds = time.perf_counter() - began
    return spell


async def _check(running: Fleet, spell: Spell) -> None:
    """Asks the third replica about a token that nobody changes."""
    async with grpc.aio.insecure_channel(running.third.server.address) as channel:
        stub = authorizer_pb2_grpc.AuthorizerStub(channel)
        request = running.check_request(TOKENS - 1)
        while True:
            began = time.perf_counter()
            await stub.Check(request, metadata=running.third.caller, timeout=fleet.TIMEOUT_S)
            spell.checks_s.append(time.perf_counter() - began)
            await asyncio.sleep(max(0.0, 1 / CHECKS_A_SECOND - (time.perf_counter() - began)))


def _table(before: Spell, during: Spell, rss: tuple[float, float, float]) -> Table:
    table = Table(
        f"UpdateToken at two of three replicas, checks at the third, for {BEFORE_S:.0f} and {DURING_S:.0f} s",
        ("what", "without watchers", "with them"),
    )
    both = (before, during)
    table.add("changes a second", *(f"{len(one.changes_s) / one.seconds:.0f}" for one in both))
    for share in (0.5, 0.99):
        cells = (f"{percentile(one.changes_s, share) * 1000:.1f}" for one in both)
        table.add(f"UpdateToken, p{share * 100:.0f}, ms", *cells)
    table.add("watchers that confirmed", *(f"{min(one.confirmed)} to {max(one.confirmed)}" for one in both))
    for share in (0.5, 0.99):
        cells = (f"{percentile(one.checks_s, share) * 1000:.1f}" for one in both)
        table.add(f"Check, p{share * 100:.0f}, ms", *cells)
    table.add("largest replica, MiB", f"{rss[0]:.1f}", f"{rss[1]:.1f}, after the changes {rss[2]:.1f}")
    ratio = percentile(during.checks_s, 0.99) / percentile(before.checks_s, 0.99)
    table.require(ratio <= P99_LIMIT, f"checks took {ratio:.2f} × the p99 of those without watchers")
    return table
