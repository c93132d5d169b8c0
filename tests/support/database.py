"""Fixtures: a database of the test's own with the schema and a deployment in it, copied from one that was made once.

    async def test_…(database: Database): ...           # opened, hold 5 s, closed afterwards
    async def test_…(database_url: str): ...            # its URL alone
    async def test_…(database_proxy: DatabaseProxy):    # a line to it that can be stalled and cut, and counts cancel requests

And factories that write through the one door: `put_account`, `issue_token`, `event_of`, `change_of`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import struct
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from doorward_server.model import AuditEvent, Change, Grant, StoredSecret, Token
from doorward_server.storage import accounts, changes, tokens, url
from doorward_server.storage.migrate import migrate, seed
from doorward_server.storage.pool import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime

    from doorward.core.revision import Revision
    from doorward_server.storage.changes import Decided, Transaction
    from tests.support.postgres import PostgresServer

HOLD_MS = 5000
PEPPER_ID = "pepper-1"
CANCEL_REQUEST = struct.pack("!ll", 16, 80877102)


async def _prepare(server: PostgresServer) -> str:
    name = await server.create_database()
    database = Database(server.url(name), hold_ms=HOLD_MS)
    await migrate(database)
    await database.open()
    try:
        catalog = resources.files("doorward_server.catalog").joinpath("permission_sets.toml")
        await seed(database, catalog.read_text(encoding="utf-8"))
    finally:
        await database.close()
    return name


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a database with the schema and the built-in catalog at revision 1.0; nobody is connected to it."""
    with asyncio.Runner() as runner:
        name = runner.run(_prepare(postgres_server))
        yield name
        runner.run(postgres_server.drop_database(name))


@pytest.fixture
async def empty_database_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of a database without a schema."""
    async with postgres_server.database() as empty:
        yield empty


@pytest.fixture
async def database_url(postgres_server: PostgresServer, migrated_template: str) -> AsyncIterator[str]:
    """The URL of a database that begins as a copy of the template."""
    async with postgres_server.database(template=migrated_template) as migrated:
        yield migrated


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An opened Database on it."""
    async with opened(database_url) as database:
        yield database


@contextlib.asynccontextmanager
async def opened(database_url: str, hold_ms: int = HOLD_MS, pool_size: int = 10) -> AsyncIterator[Database]:
    """A Database on `database_url`, closed at the end of the block."""
    database = Database(database_url, hold_ms=hold_ms, pool_size=pool_size)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


class DatabaseProxy:
    """Stands between Doorward and its database: forwards both ways, until the test says otherwise."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._healthy = asyncio.Event()
        self._healthy.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.cancel_requests = 0
        self.accepted = 0
        self.url = ""

    def stall_answers(self) -> None:
        """From now on nothing that the database says arrives; what it is told still does."""
        self._healthy.clear()

    def heal(self) -> None:
        """Answers arrive again, those held back first."""
        self._healthy.set()

    def cut(self) -> None:
        """Breaks every connection that exists now."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        there, back = await asyncio.open_unix_connection(self._target)
        pair = {writer, back}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, back, answers=False))
                group.create_task(self._forward(there, writer, answers=True))
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        first = not answers
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if first and data.startswith(CANCEL_REQUEST):
                    self.cancel_requests += 1
                first = False
                if answers:
                    await self._healthy.wait()
                sink.write(data)
                await sink.drain()
            sink.write_eof()


@pytest.fixture
async def database_proxy(database_url: str) -> AsyncIterator[DatabaseProxy]:
    """A proxy in front of the test's database; `.url` leads through it."""
    target = url.parse(database_url)
    (host, port), *_ = target.hosts
    with tempfile.TemporaryDirectory(prefix="doorward-proxy-") as directory:
        proxy = DatabaseProxy(f"{host}/.s.PGSQL.{port}")
        proxy.url = f"postgresql:///{target.database}?host={quote(directory, safe='')}&port=5432&user={target.user}"
        async with asyncio.TaskGroup() as connections:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                running.add(connections.create_task(proxy.serve(reader, writer)))

            running: set[asyncio.Task[None]] = set()
            server = await asyncio.start_unix_server(accept, str(Path(directory, ".s.PGSQL.5432")))
            try:
                yield proxy
            finally:
                server.close()
                proxy.heal()
                proxy.cut()
                for connection in running:
                    connection.cancel()


def event_of(subject: str, *, action: str = "Test", account_id: str | None = None) -> AuditEvent:
    """An audit event of an operator."""
    return AuditEvent(actor="operator:tester", action=action, subject=subject, account_id=account_id)


def change_of(subject: str, account_id: str | None = None) -> Change:
    """A change that touches one subject."""
    return Change(kind="test", account_id=account_id, subjects=(subject,))


async def put_account(database: Database, account_id: str, plan: str = "team") -> Revision:
    """Makes the account or sets its plan."""

    async def decide(tx: Transaction) -> Decided[None]:
        before = await accounts.read(tx.connection, account_id)
        await accounts.upsert_account(tx, before, account_id, account_id.title(), plan)
        subject = f"account:{account_id}"
        return changes.Decided(None, change_of(subject, account_id), event_of(subject, account_id=account_id))

    return (await changes.commit(database, decide, accounts=[account_id])).revision


def a_token(token_id: str, account_id: str, now: datetime) -> Token:
    """A live token with one grant on all projects."""
    return Token(
        token_id=token_id,
        account_id=account_id,
        display_name="A token",
        description="",
        labels={},
        grants=(Grant("job_admin", None),),
        allow_self_rotation=False,
        disabled=False,
        create_time=now,
        update_time=now,
        expire_time=None,
        revoke_time=None,
        revoke_reason="",
        created_by="operator:tester",
        ordinal=0,
        revision=0,
    )


def a_stored_secret(version: int = 1) -> StoredSecret:
    """What would be stored of a random secret; nothing proves it."""
    text = secrets.token_bytes(24)
    return StoredSecret(version, "bcrypt:" + hashlib.sha256(text).hexdigest(), hashlib.sha256(text).digest(), PEPPER_ID)


async def issue_token(database: Database, token_id: str, account_id: str, **fields: object) -> Revision:
    """Issues a token in an account that exists; `fields` replace those of `a_token`."""

    async def decide(tx: Transaction) -> Decided[None]:
        token = replace(a_token(token_id, account_id, tx.now), **fields)  # type: ignore[arg-type]
        await tokens.insert(tx, token, a_stored_secret(), "operator:tester")
        subject = f"token:{token_id}"
        return changes.Decided(None, change_of(subject, account_id), event_of(subject, account_id=account_id))

    return (await changes.commit(database, decide, accounts=[account_id])).revision
