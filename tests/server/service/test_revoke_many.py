"""Revoking in several transactions: each reads the caller anew, what was committed stands, and a repeat takes the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from doorward.v1 import token_admin_pb2 as pb
from doorward_server import failpoints
from doorward_server.failpoints import Failpoint
from doorward_server.model import Grant
from doorward_server.service.revoke_many import MOST_AT_ONCE
from tests.support.database import issue_token
from tests.support.inprocess import Surface, served
from tests.support.issuing import issue, revoke
from tests.support.populations import a_population, copy_population, seeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from doorward_server.storage.pool import Database

BY_FILTER = "TokenAdmin.RevokeTokensByFilter"
ALL = pb.RevokeTokensByFilterRequest(account_id="acme", all_tokens=True)
ADMIN = (Grant("account_admin", None),)
PARTS = 3


@pytest.fixture
async def surface(database: Database, tmp_path: Path) -> AsyncIterator[Surface]:
    """An account whose live tokens take PARTS transactions."""
    async with database.reading() as connection:
        population = a_population(seeded("many"), {"acme": PARTS * MOST_AT_ONCE - 500}, live=1.0)
        await copy_population(connection, population)
    async with served(database, tmp_path) as surface:
        yield surface


@pytest.fixture
def committed() -> Iterator[Callable[[Callable[[int], Awaitable[None]]], None]]:
    """Arms what happens between the COMMIT of one transaction and the next one; it is told how many there were."""

    def arm(then: Callable[[int], Awaitable[None]]) -> None:
        count = 0

        async def stop() -> None:
            nonlocal count
            count += 1
            await then(count)

        failpoints.arm(Failpoint.MUTATION_ACK_LOST, stop)

    yield arm
    failpoints.disarm(Failpoint.MUTATION_ACK_LOST)


async def live(database: Database) -> int:
    async with database.reading() as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM tokens WHERE revoke_time IS NULL")
        counted: int = await connection.fetchval("SELECT sum(live_tokens) FROM accounts")
    assert count == counted
    return count


async def test_a_caller_that_is_revoked_in_the_middle_gets_no_further(
    surface: Surface, committed: Callable[[Callable[[int], Awaitable[None]]], None]
) -> None:
    caller = await issue(surface.database, surface.ring, "acme", grants=ADMIN)
    before = await live(surface.database)

    async def revoke_caller(count: int) -> None:
        if count == 1:
            await revoke(surface.database, "acme", caller.subject_id)

    committed(revoke_caller)
    refusal = await surface.refused(BY_FILTER, ALL, caller.reveal())

    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert await live(surface.database) == before - MOST_AT_ONCE - 1, "what was committed stands"
    failpoints.disarm(Failpoint.MUTATION_ACK_LOST)
    another = await issue(surface.database, surface.ring, "acme", grants=ADMIN)
    answer = await surface.ask(BY_FILTER, ALL, another.reveal())
    assert len(answer.token_ids) == before - MOST_AT_ONCE, "and a repeat takes the rest"
    assert await live(surface.database) == 0


async def test_what_is_issued_meanwhile_is_not_missed_by_the_transaction_that_comes_after(
    surface: Surface, committed: Callable[[Callable[[int], Awaitable[None]]], None]
) -> None:
    caller = await issue(surface.database, surface.ring, "acme", grants=ADMIN)

    async def issue_one(count: int) -> None:
        if count == 1:
            await issue_token(surface.database, "meanwhile", "acme")

    committed(issue_one)
    answer = await surface.ask(BY_FILTER, ALL, caller.reveal())

    assert answer.token_ids[0] == "meanwhile", "the newest"
    assert await live(surface.database) == 0


async def test_a_transaction_whose_answer_is_lost_ends_the_call_and_a_repeat_takes_the_rest(
    surface: Surface, committed: Callable[[Callable[[int], Awaitable[None]]], None]
) -> None:
    caller = await issue(surface.database, surface.ring, "acme", grants=ADMIN)
    before = await live(surface.database)

    async def lose(count: int) -> None:
        if count == 2:
            raise asyncpg.InterfaceError("the line broke")

    committed(lose)
    refusal = await surface.refused(BY_FILTER, ALL, caller.reveal())

    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "COMMIT_UNKNOWN")
    assert await live(surface.database) == before - 2 * MOST_AT_ONCE
    answer = await surface.ask(BY_FILTER, ALL, caller.reveal())
    assert len(answer.token_ids) == before - 2 * MOST_AT_ONCE
