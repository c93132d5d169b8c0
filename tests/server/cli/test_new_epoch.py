"""`db new-epoch`: on a restored database, with no server."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.server.cli.conftest import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgres import PostgresServer

NEW_EPOCH = ("db", "new-epoch", "--hold", "0.5")
A_ROW = """
INSERT INTO replicas (replica_id, epoch, hold_ms, applied_revision, renewed_time, started_time, address)
VALUES (gen_random_uuid(), 1, 600, 0, now(), now(), 'test')
"""


@pytest.fixture
def restored_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """The URL of a database with a deployment and one replica's row in it."""

    async def execute(url: str, sql: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    name = asyncio.run(postgres_server.create_database(template=migrated_template))
    url = postgres_server.url(name)
    asyncio.run(execute(url, A_ROW))
    yield url
    asyncio.run(postgres_server.drop_database(name))


def test_it_prints_the_revision_and_what_to_do_next(restored_url: str) -> None:
    result = run(*NEW_EPOCH, "--database-url", restored_url)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("A new epoch has begun, at revision 2.0.\n")
    assert "revoke it anew" in result.stdout
    assert result.stderr.startswith("Waiting 0.6 s"), "the hold in the row, which is longer than --hold"


def test_a_repeat_begins_one_more_and_says_so_to_programs(restored_url: str) -> None:
    first = run(*NEW_EPOCH, "--json", DOORWARD_DATABASE_URL=restored_url)
    again = run(*NEW_EPOCH, "--json", DOORWARD_DATABASE_URL=restored_url)
    assert (first.exit_code, again.exit_code) == (0, 0), first.stderr + again.stderr
    assert json.loads(first.stdout) == {"revision": "2.0", "replicas_forgotten": 1, "waited_ms": 600}
    assert json.loads(again.stdout) == {"revision": "3.0", "replicas_forgotten": 0, "waited_ms": 500}


def test_an_empty_database_is_refused_with_what_to_do(postgres_server: PostgresServer) -> None:
    url = postgres_server.url(asyncio.run(postgres_server.create_database()))
    result = run(*NEW_EPOCH, "--database-url", url)
    assert result.exit_code == 2
    assert "restore the backup into it first" in result.stderr
