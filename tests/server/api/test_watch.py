"""What happens in a session whatever is slow: a transport of the test's own, everything else real."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from doorward.core.entries import SECRET_DIGEST, TOKEN_SECRETS
from doorward.core.secret import SecretKind, find_secret
from doorward.core.token_table import UNKNOWN
from doorward.v1.authorizer_pb2 import WatchRequest, WatchResponse
from doorward_server.api import watch_answers
from doorward_server.api.asking import Asking
from doorward_server.api.methods import CallerGone, Peer, StreamEnds
from doorward_server.api.server import channel_options
from doorward_server.api.watch import MOST_RESOLVES, WatchApi
from doorward_server.api.watch_encoding import WatchEncoder
from doorward_server.app import MAX_MESSAGE
from doorward_server.errors import Exhausted, Refused
from doorward_server.failpoints import Failpoint
from doorward_server.model import Grant, OperatorRole
from doorward_server.replica.watch_messages import Taken, TokenSnapshot, UnrecognizedSnapshot
from doorward_server.replica.watchers import LONGEST_SESSION_NS
from doorward_server.service.authorize import Authorizer
from doorward_server.service.callers import Callers
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.operators import create_operators, new_operator
from tests.support.database import put_account
from tests.support.issuing import issue, put_project
from tests.support.replica import paused, running
from tests.support.stepped import eventually, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from doorward.core.entries import TokenEntry
    from doorward_server.api.errors import Status
    from doorward_server.storage.pool import Database
    from tests.support.replica import Parts


class Line:
    """A stream to a watcher that a test acts, and that takes messages only while `reads` is set."""

    def __init__(self, credential: str) -> None:
        self.peer = Peer(credential, "test", "", None)
        self.taken: list[WatchResponse] = []
        self.read_count = 0
        self.reads = asyncio.Event()
        self.reads.set()
        self.is_kept = False
        self._sent: asyncio.Queue[WatchRequest | None] = asyncio.Queue()
        self._ends: Status | None = None

    def send(self, **body: object) -> None:
        self._sent.put_nowait(WatchRequest(**body))  # type: ignore[arg-type]

    async def read(self) -> bytes | None:
        message = None if self._ends is not None else await self._sent.get()
        if self._ends is not None:
            raise StreamEnds(self._ends)
        self.read_count += 1
        return None if message is None else message.SerializeToString()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        if self._ends is not None:
            raise CallerGone
        self.taken.append(WatchResponse.FromString(message))

    def end(self, status: Status) -> None:
        self._ends = self._ends or status
        # Whoever waits for a message looks again.
        self._sent.put_nowait(None)

    def keep(self) -> None:
        self.is_kept = True

    def of(self, body: str) -> list[WatchResponse]:
        """The messages of one kind that were taken."""
        return [message for message in self.taken if message.WhichOneof("body") == body]


class Watched:
    """The RPC at a replica, and a stream of somebody who may call it."""

    def __init__(self, replica: Parts, rpc: WatchApi, operator_id: str, line: Line) -> None:
        self.replica = replica
        self.rpc = rpc
        self.operator_id = operator_id
        self.line = line
        self.how_it_ended = ""

    async def serve(self) -> None:
        try:
            await self.rpc.watch(self.line)
        except StreamEnds as ends:
            self.how_it_ended = ends.status.reason
        except Refused as refused:
            self.how_it_ended = refused.reason


@contextlib.asynccontextmanager
async def served(database: Database, directory: Path, hold_ms: int = 5000) -> AsyncIterator[Watched]:
    """A stream that says nothing yet."""
    async with running(database, directory, hold_ms=hold_ms) as replica:
        new = new_operator(replica.ring, OperatorRole.CALLER, "caller")
        await replica.applied((await create_operators(database, [new])).number)
        await replica.usable()
        authorizer = Authorizer(replica.holding, replica.caches, replica.recognition)
        callers = Callers(replica.holding, replica.recognition, database, Catalogs())
        rpc = WatchApi(Asking(authorizer, callers), authorizer, callers, replica.recognition, replica.holding)
        line = Line(f"Bearer {new.secret.reveal()}")
        found = find_secret(new.secret.reveal(), SecretKind.OPERATOR)
        assert found is not None
        watched = Watched(replica, rpc, found.subject_id, line)
        serving = asyncio.ensure_future(watched.serve())
        yield watched
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


@contextlib.asynccontextmanager
async def greeted(database: Database, directory: Path) -> AsyncIterator[Watched]:
    """A session that has its start and its catalog."""
    async with served(database, directory) as watched:
        watched.line.send(hello=WatchRequest.Hello())
        await eventually(lambda: bool(watched.line.of("catalog")))
        yield watched


@pytest.fixture
async def watched(database: Database, tmp_path: Path) -> AsyncIterator[Watched]:
    """One that has acknowledged them."""
    async with greeted(database, tmp_path) as watched:
        acknowledge(watched.line)
        (session,) = watched.replica.holding.watchers._open
        await eventually(lambda: session.has_acknowledged)
        # The two messages of the opening count as one.
        watched.line.read_count = 1
        yield watched


def acknowledge(line: Line) -> None:
    line.send(ack=WatchRequest.Ack(position=line.taken[-1].position))


async def test_a_resolve_that_is_paused_across_a_change_contains_it(watched: Watched, database: Database) -> None:
    await watched.replica.applied((await put_account(database, "acme")).number)
    with paused(Failpoint.LOAD_AFTER_SNAPSHOT, times=1) as pause:
        watched.line.send(resolve_project=WatchRequest.ResolveProject(id=1, project_id="p1"))
        await pause.reached.wait()
        await watched.replica.applied(await put_project(database, "acme", "p1"))
        pause.release()
        await eventually(lambda: bool(watched.line.of("snapshot")))

    (answer,) = watched.line.of("snapshot")
    assert (answer.snapshot.project.project_id, answer.snapshot.project.account_id) == ("p1", "acme")


async def test_only_the_newest_ask_is_answered(watched: Watched) -> None:
    with paused(Failpoint.WATCH_BEFORE_GRANT) as pause:
        for ask in (1, 2, 3):
            watched.line.send(ask=WatchRequest.Ask(ask=ask))
        await pause.reached.wait()
        await eventually(lambda: watched.line.read_count == 4)
        pause.release()
        await eventually(lambda: bool(watched.line.of("lease_grant")))
    await settled()
    assert [message.lease_grant.ask for message in watched.line.of("lease_grant")] == [3]


async def test_a_caller_that_is_revoked_while_it_asks_is_granted_nothing(watched: Watched) -> None:
    holding = watched.replica.holding
    with paused(Failpoint.WATCH_BEFORE_GRANT) as pause:
        watched.line.send(ask=WatchRequest.Ask(ask=1))
        await pause.reached.wait()
        async with watched.replica.database.reading() as connection:
            await connection.execute(
                "UPDATE operators SET revoke_time = now() WHERE operator_id = $1", watched.operator_id
            )
        holding.tables.apply((f"operator:{watched.operator_id}",))
        holding.operator_proofs.forget(watched.operator_id)
        pause.release()
        await eventually(lambda: watched.how_it_ended == "CREDENTIAL_UNRECOGNIZED")
    assert watched.line.of("lease_grant") == []
    assert holding.watchers.counted() == 0


async def test_an_ask_without_a_usable_lease_stays_unanswered(watched: Watched) -> None:
    watched.replica.holding.lease.drop()
    with paused(Failpoint.RENEW_BEFORE_SEND):
        watched.line.send(ask=WatchRequest.Ask(ask=1))
        watched.line.send(resolve=WatchRequest.Resolve(id=1, secret="nonsense"))
        await eventually(lambda: bool(watched.line.of("failure")))
        assert watched.line.of("lease_grant") == []


async def test_at_most_256_resolves_are_under_way(watched: Watched) -> None:
    watched.line.reads.clear()
    for number in range(2 * MOST_RESOLVES):
        watched.line.send(resolve=WatchRequest.Resolve(id=number, secret="nonsense"))
    await eventually(lambda: watched.line.read_count == 1 + MOST_RESOLVES)
    await settled()
    assert watched.line.read_count == 1 + MOST_RESOLVES
    watched.line.reads.set()
    await eventually(lambda: len(watched.line.of("snapshot")) == 2 * MOST_RESOLVES)


async def test_dropped_acknowledgements_are_none(database: Database, tmp_path: Path) -> None:
    async with greeted(database, tmp_path) as watched:
        session = next(iter(watched.replica.holding.watchers._open))
        with paused(Failpoint.WATCH_DROP_ACKS):
            acknowledge(watched.line)
            await eventually(lambda: watched.line.read_count == 2)
            await settled()
            assert session.unacknowledged_since_ns() is not None
        acknowledge(watched.line)
        await eventually(lambda: session.unacknowledged_since_ns() is None)


async def test_a_session_that_the_replica_ends_ends_its_stream(watched: Watched) -> None:
    assert watched.line.is_kept
    watched.replica.holding.begin_anew("test")
    await eventually(lambda: watched.how_it_ended == "NO_LEASE")
    assert watched.replica.holding.watchers.count == 0


async def test_a_change_of_the_catalog_is_followed_by_the_new_one(watched: Watched) -> None:
    holding = watched.replica.holding
    acknowledge(watched.line)
    holding.watchers.apply(holding.applied, ("catalog:",))
    await eventually(lambda: len(watched.line.of("catalog")) == 2)
    kinds = [message.WhichOneof("body") for message in watched.line.taken]
    assert kinds == ["start", "catalog", "evict", "catalog"]
    assert watched.line.of("evict")[0].evict.catalog


async def test_whoever_says_nothing_keeps_its_place_no_longer_than_a_hold(database: Database, tmp_path: Path) -> None:
    async with served(database, tmp_path, hold_ms=500) as watched:
        await eventually(lambda: watched.how_it_ended == "INVALID_FIELDS")
    assert watched.line.taken == []


async def test_two_resolves_of_one_number_end_the_session(watched: Watched) -> None:
    watched.line.reads.clear()
    for _ in range(2):
        watched.line.send(resolve=WatchRequest.Resolve(id=1, secret="nonsense"))
    watched.line.reads.set()
    await eventually(lambda: watched.how_it_ended == "INVALID_FIELDS")


async def test_an_acknowledgement_behind_the_end_of_the_session_counts_no_more(watched: Watched) -> None:
    watchers = watched.replica.holding.watchers
    session = next(iter(watchers._open))
    watchers.snapshot(session, UnrecognizedSnapshot(1, ""), ("token:x",))
    assert watchers.grant(session, 1)
    watchers.apply(watched.replica.holding.applied, ("token:x",))
    await eventually(lambda: bool(watched.line.of("evict")))
    # Both in one turn of the loop: it is read before anything else can end the stream.
    acknowledge(watched.line)
    watchers.end(session, Exhausted("TOO_MANY_REQUESTS", "too late"))
    await eventually(lambda: watched.how_it_ended == "TOO_MANY_REQUESTS")
    assert watchers.owing() == 1


async def test_a_token_that_no_message_has_room_for_fails(
    watched: Watched, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_account(database, "acme")
    await put_project(database, "acme", "p1")
    replica = watched.replica
    secret = await issue(database, replica.ring, "acme", grants=(Grant("job_admin", ("p1",)),))
    monkeypatch.setattr(watch_answers, "MOST_PROJECT_BYTES", 3)
    watched.line.send(resolve=WatchRequest.Resolve(id=1, secret=secret.reveal()))
    await eventually(lambda: bool(watched.line.of("failure")))
    assert watched.line.of("snapshot") == []
    monkeypatch.setattr(watch_answers, "MOST_PROJECT_BYTES", 4)
    watched.line.send(resolve=WatchRequest.Resolve(id=2, secret=secret.reveal()))
    await eventually(lambda: bool(watched.line.of("snapshot")))


async def test_the_largest_snapshot_fits_a_message() -> None:
    """Every grant of the most that there may be, with ids of the longest, up to the bound."""
    project_id = "p" * 64
    count = watch_answers.MOST_PROJECT_BYTES // (len(project_id) + watch_answers.ID_BYTES)
    grants = [(f"{number:064}", ()) for number in range(99)] + [("x" * 64, (project_id,) * count)]
    token: TokenEntry = ("t" * 16, "a" * 64, False, False, None, (), tuple(grants), None)  # type: ignore[assignment]
    account = ("a" * 64, "p" * 64, 1)
    taken = Taken(1, 1, TokenSnapshot(1, token, account, 1))
    assert len(WatchEncoder(5000, 1).encode(taken, 1)) < MAX_MESSAGE


async def test_a_snapshot_shows_no_digest_to_whoever_prints_it(watched: Watched, database: Database) -> None:
    await put_account(database, "acme")
    replica = watched.replica
    secret = await issue(database, replica.ring, "acme")
    watched.line.send(resolve=WatchRequest.Resolve(id=1, secret=secret.reveal()))
    await eventually(lambda: bool(watched.line.of("snapshot")))
    token = replica.holding.tables.tokens.get(secret.subject_id)
    assert token is not None
    assert token is not UNKNOWN
    printed = repr(Taken(1, 1, TokenSnapshot(1, token, ("acme", "team", 1), 1)))
    assert secret.subject_id in printed
    digest = token[TOKEN_SECRETS][0][SECRET_DIGEST]
    assert digest is not None
    assert repr(digest) not in printed


def test_no_connection_is_cut_off_under_a_session() -> None:
    """Not even under one that was opened just before it was too old for another call, with the longest hold."""
    options = dict(channel_options(max_message_bytes=1, max_metadata_bytes=1))
    longest_hold_ms = 300_000
    grace_ms = options["grpc.max_connection_age_grace_ms"]
    assert grace_ms >= LONGEST_SESSION_NS // 1_000_000 + longest_hold_ms
