"""The whole method table in the test's own process, without a socket: every RPC as bytes, and failpoints to arm beside it.

    async with served(database, tmp_path) as surface:
        answer = await surface.ask("TokenAdmin.GetToken", pb.GetTokenRequest(token_id=…), credential)
        refusal = await surface.refused("TokenAdmin.GetToken", …)

No replica runs: nothing has a lease, and no change waits for anybody. What a caller may do is read from the database all
the same (design section 5), and that is what this is for.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from google.rpc import status_pb2

from doorward.clock import SystemClock
from doorward_server.api.errors import Status
from doorward_server.api.methods import Peer
from doorward_server.api.wrapper import answer_cold
from doorward_server.credentials import pepper
from doorward_server.model import Change
from doorward_server.parts import ReplicaParts, methods_of
from doorward_server.replica.tasks import Tasks
from doorward_server.replica.timing import Timing
from doorward_server.settings import Settings
from doorward_server.storage.changes import Decided, commit
from tests.support.database import event_of
from tests.support.rows import FOOTPRINT
from tests.support.wire import every_rpc, refusal_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

    from doorward_server.api.methods import Method
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.storage.pool import Database
    from doorward_server.storage.transaction import Transaction
    from tests.support.wire import Refusal

RPCS = {rpc.name: rpc for rpc in every_rpc()}


class Surface:
    """The RPCs of one process."""

    def __init__(self, methods: Sequence[Method], database: Database, ring: PepperRing) -> None:
        self._methods = {method.path: method for method in methods}
        self.database = database
        self.ring = ring

    def method(self, path: str) -> Method:
        """One row of the method table."""
        return self._methods[path]

    async def call(self, name: str, request: Message, credential: str, on_behalf_of: str = "") -> Any:
        """The answer, or the `Refusal`."""
        rpc = RPCS[name]
        peer = Peer(f"Bearer {credential}", "test", on_behalf_of, None)
        cold = self._methods[rpc.path].cold
        assert cold is not None, "a stream"
        answer = await answer_cold(rpc.path, cold, request.SerializeToString(), peer)
        if isinstance(answer, Status):
            return refusal_in(status_pb2.Status.FromString(answer.details))
        return rpc.response_type.FromString(answer)

    async def ask(self, name: str, request: Message, credential: str) -> Any:
        """The answer; that there is one is asserted."""
        answer = await self.call(name, request, credential)
        assert isinstance(answer, RPCS[name].response_type), answer
        return answer

    async def refused(self, name: str, request: Message, credential: str, on_behalf_of: str = "") -> Refusal:
        """The refusal; that there is one is asserted."""
        refusal: Refusal = await self.call(name, request, credential, on_behalf_of)
        assert not isinstance(refusal, RPCS[name].response_type), refusal
        return refusal


@contextlib.asynccontextmanager
async def served(database: Database, directory: Path) -> AsyncIterator[Surface]:
    """Every method over `database`; the pepper keys are in `directory`."""
    settings = Settings(data_dir=directory)
    ring = pepper.create(settings.pepper_path)
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        replica = ReplicaParts(settings, database, ring, Timing(SystemClock()), tasks)
        hashing = group.create_task(replica.hasher.run())
        try:
            yield Surface(methods_of(settings, database, ring, replica), database, ring)
        finally:
            await tasks.drain(5)
            hashing.cancel()
            await asyncio.wait([hashing])
            await replica.hasher.close()


async def altered(database: Database, sql: str, *arguments: object, accounts: Sequence[str] = ()) -> int:
    """Runs a statement through the one door, under the locks of these accounts; the change's number.

    For what no RPC does, such as an expiry that comes. Which subjects the change names matters to replicas alone.
    """

    async def decide(transaction: Transaction) -> Decided[None]:
        await transaction.connection.execute(sql, *arguments)
        transaction.wrote = True
        return Decided(None, Change("test", None, ("catalog:",)), event_of("catalog:"))

    return (await commit(database, decide, accounts=accounts)).revision.number


async def apply_catalog(database: Database, toml: str) -> int:
    """Puts another catalog in force; the change's number."""
    return await altered(
        database,
        "UPDATE state SET catalog = jsonb_build_object('toml', $1::text), catalog_version = catalog_version + 1",
        toml,
    )


async def footprint(database: Database) -> tuple[Any, ...]:
    """What any change would move (`rows.FOOTPRINT`)."""
    async with database.reading() as connection:
        return tuple(await connection.fetchrow(FOOTPRINT) or ())
