"""Fills a database with tokens by COPY: accounts, projects, tokens, secrets, grants and activity, as IssueToken writes them.

The digests are real, made under the deployment's own pepper; the bcrypt hash is one for all. Secrets are derived from a
random key of the run: a million of them need not be kept. The server must not run meanwhile: rows come past its
one door, and the revision is moved on behind them, as if the changes that made them had been retired since. Called by
the parts that measure a server.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
import bcrypt

from bench import harness
from doorward.core.secret import ALPHABET, SecretKind, find_secret
from doorward_server.credentials import pepper
from doorward_server.embedded.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from doorward_server.credentials.pepper import PepperRing

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
# Name, columns, rows.
Table: TypeAlias = "tuple[str, tuple[str, ...], Iterable[tuple[Any, ...]]]"

TOKENS_IN_ACCOUNT: Final = 1_000
PROJECTS_IN_ACCOUNT: Final = 4
# Every token holds these two: one on all projects, one on a project of its account.
SET_ON_ALL: Final = "metadata_only"
SET_ON_ONE: Final = "job_admin"
# What they permit: at the account, on every project, on the one.
PERMISSION_AT_ACCOUNT: Final = "public_models:read"
PERMISSION_ON_ALL: Final = "metadata:read"
PERMISSION_ON_ONE: Final = "jobs:write"
BY: Final = "operator:bench"

MOVE_REVISION: Final = "UPDATE state SET revision = revision + $1 RETURNING revision, nonce"
RETIRED: Final = """
INSERT INTO changes (revision, nonce, kind, account_id, subjects, commit_time)
VALUES ($1, $2, 'bench', NULL, ARRAY['token:bench'], now())
"""
COUNT: Final = """
SELECT (SELECT count(*) FROM tokens JOIN accounts USING (account_id)),
       (SELECT sum(live_tokens) FROM accounts),
       (SELECT count(*) FROM token_secrets JOIN tokens USING (token_id)),
       (SELECT count(*) FROM grants JOIN tokens USING (token_id, account_id))
"""


class Population:
    """`count` tokens, by index: what each is, and its secret. Equal indices are equal tokens."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._key = secrets.token_bytes(32)
        # Ascending, so that indexes fill from left to right; 16 hex digits are base62 too.
        self.token_ids = [f"{index:08x}{secrets.token_hex(4)}" for index in range(count)]

    def secret(self, index: int) -> str:
        """Its random part is derived from a random key of the run."""
        digits = hashlib.blake2b(index.to_bytes(8, "big"), key=self._key, digest_size=16).hexdigest()
        body = f"dwst_{self.token_ids[index]}_{digits}"
        rest, checksum = zlib.crc32(body.encode()), ""
        for _ in range(6):
            rest, digit = divmod(rest, 62)
            checksum = ALPHABET[digit] + checksum
        return body + checksum

    def account_id(self, index: int) -> str:
        return f"account_{index // TOKENS_IN_ACCOUNT:06d}"

    @staticmethod
    def ordinal(index: int) -> int:
        """The how-manieth token of its account."""
        return index % TOKENS_IN_ACCOUNT + 1

    def live_tokens(self, index: int) -> int:
        """Of the account whose first token has this index."""
        return min(TOKENS_IN_ACCOUNT, self.count - index)

    def project_id(self, index: int) -> str:
        """The project that the token may write jobs of."""
        return f"project_{index // TOKENS_IN_ACCOUNT:06d}_{index % PROJECTS_IN_ACCOUNT}"


def deployment(data_dir: Path, count: int, cores: frozenset[int]) -> Population:
    """A new deployment in `data_dir` with `count` tokens, not running."""
    with harness.doorward(data_dir, cores):
        pass  # the first start makes the schema, the keys and the first credentials
    population = Population(count)
    if find_secret(population.secret(0), SecretKind.TOKEN) is None:
        raise RuntimeError("the secrets made here have not the form of a secret")
    asyncio.run(_fill(data_dir, population))
    return population


async def _fill(data_dir: Path, population: Population) -> None:
    embedded = EmbeddedPostgres(data_dir)
    await embedded.start()
    try:
        connections = [await asyncpg.connect(embedded.url) for _ in range(2)]
        try:
            await _copy(connections, population, pepper.load(data_dir / "pepper.keys"))
        finally:
            for connection in connections:
                await connection.close()
    finally:
        await embedded.stop()


async def _copy(connections: list[Connection], population: Population, ring: PepperRing) -> None:
    now, count = datetime.now(UTC), population.count
    ((revision, nonce),) = await connections[0].fetch(MOVE_REVISION, count)
    await connections[0].execute(RETIRED, revision, nonce)
    tables = [
        *(_accounts(population, now), _projects(population, now)),
        *(_tokens(population, now, revision - count), _grants(population)),
        *(_secrets(population, ring), _activity(population, now)),
    ]
    # Every other table over each connection, since two cores fill two tables at once.
    await asyncio.gather(*(_copy_tables(connection, tables[start::2]) for start, connection in enumerate(connections)))
    ((tokens, live, secret_rows, grants),) = await connections[0].fetch(COUNT)
    if (tokens, live, secret_rows, grants) != (count, count, count, 2 * count):
        raise RuntimeError(f"the rows do not fit together: {tokens}, {live}, {secret_rows}, {grants}")
    await connections[0].execute("VACUUM (ANALYZE)")


async def _copy_tables(connection: Connection, tables: list[Table]) -> None:
    # The rows fit together by construction, and are counted in the end: no trigger for each of five million references.
    await connection.execute("SET session_replication_role = replica")
    for name, columns, rows in tables:
        await connection.copy_records_to_table(name, columns=columns, records=rows)


def _accounts(population: Population, now: datetime) -> Table:
    columns = (
        *("account_id", "display_name", "plan", "state", "create_time", "update_time"),
        *("live_tokens", "issued_tokens", "revision"),
    )
    return (
        "accounts",
        columns,
        (
            (population.account_id(i), "Bench", "enterprise", "active", now, now, live, live, 1)
            for i in range(0, population.count, TOKENS_IN_ACCOUNT)
            for live in (population.live_tokens(i),)
        ),
    )


def _projects(population: Population, now: datetime) -> Table:
    return (
        "projects",
        ("project_id", "account_id", "display_name", "create_time"),
        (
            (population.project_id(i + k), population.account_id(i), "Bench", now)
            for i in range(0, population.count, TOKENS_IN_ACCOUNT)
            for k in range(PROJECTS_IN_ACCOUNT)
        ),
    )


def _tokens(population: Population, now: datetime, first_revision: int) -> Table:
    columns = (
        *("token_id", "account_id", "display_name", "description", "labels", "allow_self_rotation", "disabled"),
        *("create_time", "update_time", "created_by", "ordinal", "revision"),
    )
    return (
        "tokens",
        columns,
        (
            (token_id, population.account_id(i), "Bench", "", "{}", False, False, now, now, BY, ordinal, revision)
            for i, token_id in enumerate(population.token_ids)
            for ordinal, revision in ((population.ordinal(i), first_revision + 1 + i),)
        ),
    )


def _secrets(population: Population, ring: PepperRing) -> Table:
    bcrypt_hash = bcrypt.hashpw(secrets.token_bytes(32), bcrypt.gensalt(10)).decode()
    return (
        "token_secrets",
        ("token_id", "version", "bcrypt_hash", "digest", "pepper_id", "issued_to"),
        (
            (token_id, 1, bcrypt_hash, digest, pepper_id, BY)
            for i, token_id in enumerate(population.token_ids)
            for pepper_id, digest in (ring.digest(population.secret(i)),)
        ),
    )


def _grants(population: Population) -> Table:
    return (
        "grants",
        ("token_id", "account_id", "permission_set", "scope", "ordinal"),
        (
            (token_id, population.account_id(i), name, scope, population.ordinal(i))
            for i, token_id in enumerate(population.token_ids)
            for name, scope in ((SET_ON_ONE, population.project_id(i)), (SET_ON_ALL, "*"))
        ),
    )


def _activity(population: Population, now: datetime) -> Table:
    return (
        "token_activity",
        ("token_id", "account_id", "idle_since", "ordinal"),
        (
            (token_id, population.account_id(i), now, population.ordinal(i))
            for i, token_id in enumerate(population.token_ids)
        ),
    )
