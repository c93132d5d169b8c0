"""What is under way of one stream is bounded, whatever its caller does: a transport of the test's own, everything else real."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest, StreamChecksRequest, StreamChecksResponse
from doorward_server.api.asking import Asking
from doorward_server.api.authorizer import AuthorizerApi
from doorward_server.api.methods import CallerGone, Peer, StreamEnds
from doorward_server.api.stream_checks import MOST_MESSAGES, MOST_WEIGHT, StreamChecks
from doorward_server.api.wrapper import shutting_down
from doorward_server.failpoints import Failpoint
from doorward_server.model import OperatorRole
from doorward_server.service.authorize import Authorizer
from doorward_server.service.callers import Callers
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.freshness import Freshness
from doorward_server.service.operators import create_operators, new_operator
from doorward_server.service.tokens import Tokens
from tests.support.replica import paused, running
from tests.support.stepped import eventually, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from doorward_server.api.errors import Status
    from doorward_server.storage.pool import Database

KNOWN = generate(SecretKind.TOKEN, new_id()).reveal()


class Line:
    """A stream whose caller sends these messages, and reads only while `reads` is set."""

    def __init__(self, credential: str, messages: Iterable[StreamChecksRequest]) -> None:
        self.peer = Peer(credential, "test", "", None)
        self.taken = 0
        self.answers: list[StreamChecksResponse] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.is_gone = False
        self._messages = iter(messages)
        self._ends: Status | None = None

    async def read(self) -> bytes | None:
        await asyncio.sleep(0)
        if self._ends is not None:
            raise StreamEnds(self._ends)
        message = next(self._messages, None)
        self.taken += message is not None
        return None if message is None else message.SerializeToString()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        if self.is_gone:
            raise CallerGone
        self.answers.append(StreamChecksResponse.FromString(message))

    def end(self, status: Status) -> None:
        self._ends = status

    def keep(self) -> None:
        raise AssertionError("a server that stops ends these streams")


class Streams:
    """The RPC at a replica, and the credential of somebody who may call it."""

    def __init__(self, rpc: StreamChecks, credential: str) -> None:
        self.rpc = rpc
        self.credential = credential

    def line(self, messages: Iterable[StreamChecksRequest]) -> Line:
        return Line(self.credential, messages)


@pytest.fixture
async def streams(database: Database, tmp_path: Path) -> AsyncIterator[Streams]:
    async with running(database, tmp_path) as replica:
        caller = new_operator(replica.ring, OperatorRole.CALLER, "caller")
        await replica.applied((await create_operators(database, [caller])).number)
        await replica.usable()
        authorizer = Authorizer(replica.holding, replica.caches, replica.recognition)
        catalogs = Catalogs()
        callers = Callers(replica.holding, replica.recognition, database, catalogs)
        batches = AuthorizerApi(
            replica.holding,
            authorizer,
            callers,
            replica.recognition,
            Freshness(replica.holding, replica.keeper, database),
            Tokens(database, catalogs),
            max_batch=1000,
        )
        rpc = StreamChecks(Asking(authorizer, callers), batches, most_streams=2)
        streams = Streams(rpc, f"Bearer {caller.secret.reveal()}")
        # Who calls, the catalog, and that nobody holds this secret, are in memory from here on.
        await rpc.stream_checks(streams.line([a_message(0, KNOWN)]))
        yield streams


def a_message(message_id: int, secret: str = "", count: int = 1) -> StreamChecksRequest:
    """A batch that asks for a token of its own, so that it must be loaded; or for this secret's."""
    secret = secret or generate(SecretKind.TOKEN, new_id()).reveal()
    items = [BatchCheckItem(permission="jobs:read", project_id="p1")] * count
    return StreamChecksRequest(id=message_id, request=BatchCheckRequest(secret=secret, items=items))


async def at_rest(line: Line) -> int:
    """How many messages it has taken, once it takes no more."""
    while True:
        before = line.taken
        for _ in range(10):
            await settled()
        if line.taken == before:
            return before


@contextlib.asynccontextmanager
async def answering(streams: Streams, line: Line) -> AsyncIterator[asyncio.Future[None]]:
    work = asyncio.ensure_future(streams.rpc.stream_checks(line))
    try:
        yield work
    finally:
        work.cancel()
        await asyncio.wait({work})


async def test_at_most_256_messages_are_under_way(streams: Streams) -> None:
    line = streams.line(a_message(number) for number in range(600))
    with paused(Failpoint.LOAD_BEFORE_SNAPSHOT) as pause:
        async with answering(streams, line) as work:
            await pause.reached.wait()
            assert await at_rest(line) == MOST_MESSAGES
            assert line.answers == []
            pause.release()
            await work

    assert Counter(answer.id for answer in line.answers) == Counter(range(600))


async def test_large_messages_are_fewer(streams: Streams) -> None:
    line = streams.line(a_message(number, count=1000) for number in range(100))
    with paused(Failpoint.LOAD_BEFORE_SNAPSHOT) as pause:
        async with answering(streams, line):
            await pause.reached.wait()
            taken = await at_rest(line)
            pause.release()

    # A thousand items weigh a quarter of a MiB for their answers, besides themselves.
    assert 2 <= taken <= MOST_WEIGHT // (256 * 1000) + 1


async def test_nothing_is_read_while_the_caller_reads_nothing(streams: Streams) -> None:
    line = streams.line(a_message(number, KNOWN) for number in range(600))
    line.reads.clear()
    async with answering(streams, line) as work:
        await eventually(lambda: line.taken > 0)
        assert await at_rest(line) == 1
        line.reads.set()
        await work

    assert [answer.id for answer in line.answers] == list(range(600))


async def test_what_must_be_loaded_is_bounded_too_while_the_caller_reads_nothing(streams: Streams) -> None:
    line = streams.line(a_message(number) for number in range(600))
    line.reads.clear()
    async with answering(streams, line) as work:
        await eventually(lambda: line.taken == MOST_MESSAGES)
        assert await at_rest(line) == MOST_MESSAGES
        line.reads.set()
        await work

    assert Counter(answer.id for answer in line.answers) == Counter(range(600))


async def test_a_stream_that_is_to_end_answers_what_it_has_read(streams: Streams) -> None:
    line = streams.line(a_message(number) for number in range(600))
    with paused(Failpoint.LOAD_BEFORE_SNAPSHOT) as pause:
        async with answering(streams, line) as work:
            await pause.reached.wait()
            await at_rest(line)
            line.end(shutting_down())
            pause.release()
            with pytest.raises(StreamEnds) as ends:
                await work

    assert ends.value.status.reason == "SHUTTING_DOWN"
    assert Counter(answer.id for answer in line.answers) == Counter(range(line.taken))


async def test_a_caller_that_has_gone_is_no_failure(streams: Streams) -> None:
    line = streams.line(a_message(number, KNOWN if number % 2 else "") for number in range(600))
    line.is_gone = True

    await streams.rpc.stream_checks(line)

    assert line.answers == []
    assert line.taken < 600


async def test_a_stream_that_is_cancelled_leaves_no_message_running(streams: Streams) -> None:
    line = streams.line(a_message(number) for number in range(600))
    before = asyncio.all_tasks()
    with paused(Failpoint.LOAD_BEFORE_SNAPSHOT) as pause:
        async with answering(streams, line):
            await pause.reached.wait()
            await at_rest(line)
        names = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}  # type: ignore[union-attr]
        pause.release()

    assert not [name for name in names if "_answer_cold" in name]


async def test_a_stream_that_has_ended_makes_room_for_another(streams: Streams) -> None:
    for _ in range(5):
        line = streams.line([a_message(1, KNOWN)])
        await streams.rpc.stream_checks(line)

        assert len(line.answers) == 1
