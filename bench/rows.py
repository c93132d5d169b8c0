"""Fills a database with tokens by COPY: accounts, projects, tokens, secrets, grants and activity, as IssueToken writes them.

The digests are real, made under the deployment's own pepper; the bcrypt hash is one for all, since a thousand tokens a
minute would be made otherwise, and nothing reads it where a digest is. Secrets are derived from a random key of the
run, so that a million of them need not be kept. The server must not run meanwhile: rows come past its one door, and the
revision is moved on behind them, as if the changes that made them had been retired since. Called by the parts that
measure a server.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import bcrypt

from bench import harness
from doorward.core.secret import ALPHABET, SecretKind, find_secret
from doorward_server.credentials import pepper
from doorward_server.embedded.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from doorward_server.credentials.pepper import PepperRing

Row = tuple[Any, ...]

TOKENS_IN_ACCOUNT: Final = 1_000
PROJECTS_IN_ACCOUNT: Final = 4
# Every token holds these two: one on all projects, one on a project of its account.
SET_ON_ALL: Final = "metadata_only"
SET_ON_ONE: Final = "job_admin"
PERMISSION_ON_ALL: Final = "metadata:read"
PERMISSION_ON_ONE: Final = "jobs:write"

TOKEN_COLUMNS: Final = (
    *("token_id", "account_id", "display_name", "description", "labels", "allow_self_rotation", "disabled"),
    *("create_time", "update_time", "created_by", "create_revision", "revision"),
)
MOVE_REVISION: Final = "UPDATE state SET revision = revision + $1 RETURNING revision, nonce"
RETIRED: Final = """
INSERT INTO changes (revision, nonce, kind, account_id, subjects, commit_time)
VALUES ($1, $2, 'bench', NULL, ARRAY['token:bench'], now())
"""
COUNT: Final = """
SELECT (SELECT count(*) FROM tokens JOIN accounts USING (account_id)),
       (SELECT count(*) FROM token_secrets JOIN tokens USING (token_id)),
       (SELECT count(*) FROM grants JOIN tokens USING (token_id, account_id)),
       (SELECT sum(live_tokens) FROM accounts)
"""


class Population:
    """`count` tokens, by index: what each is, and its secret. Equal indices are equal tokens."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._key = secrets.token_bytes(32)

    def token_id(self, index: int) -> str:
        """Ascending ids, so that indexes fill from left to right; 16 hex digits are base62 too."""
        return f"{index:08x}{self._digits(index)[:8]}"

    def secret(self, index: int) -> str:
        digits = self._digits(index)
        body = f"dwst_{index:08x}{digits[:8]}_{digits[8:40]}"
        rest, checksum = zlib.crc32(body.encode()), ""
        for _ in range(6):
            rest, digit = divmod(rest, 62)
            checksum = ALPHABET[digit] + checksum
        return body + checksum

    def account_id(self, index: int) -> str:
        return f"account_{index // TOKENS_IN_ACCOUNT:06d}"

    def project_id(self, index: int) -> str:
        """The project that the token may write jobs of."""
        return f"project_{index // TOKENS_IN_ACCOUNT:06d}_{index % PROJECTS_IN_ACCOUNT}"

    def _digits(self, index: int) -> str:
        return hashlib.blake2b(index.to_bytes(8, "big"), key=self._key, digest_size=20).hexdigest()


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
        connection = await asyncpg.connect(embedded.url)
        try:
            await _copy(connection, population, pepper.load(data_dir / "pepper.keys"))
        finally:
            await connection.close()
    finally:
        await embedded.stop()


async def _copy(connection: asyncpg.Connection[asyncpg.Record], population: Population, ring: PepperRing) -> None:
    now, count = datetime.now(UTC), population.count
    # The rows are consistent by construction, and counted below: no trigger for each of six million references.
    await connection.execute("SET session_replication_role = replica")
    async with connection.transaction():
        (moved,) = await connection.fetch(MOVE_REVISION, count)
        revision, nonce = moved
        await connection.execute(RETIRED, revision, nonce)
        for table, columns, rows in _tables(population, ring, now, revision - count):
            await connection.copy_records_to_table(table, columns=columns, records=rows)
    (counted,) = await connection.fetch(COUNT)
    if tuple(counted) != (count, count, 2 * count, count):
        raise RuntimeError(f"the rows do not fit together: {counted}")
    await connection.execute("VACUUM (ANALYZE)")


def _tables(
    population: Population, ring: PepperRing, now: datetime, first_revision: int
) -> Iterator[tuple[str, tuple[str, ...], Iterable[Row]]]:
    indices = range(population.count)
    account_indices = range(0, population.count, TOKENS_IN_ACCOUNT)
    account_id, project_id, token_id = population.account_id, population.project_id, population.token_id
    yield (
        "accounts",
        ("account_id", "display_name", "plan", "state", "create_time", "update_time", "live_tokens", "revision"),
        (
            (account_id(i), "Bench", "enterprise", "active", now, now, min(TOKENS_IN_ACCOUNT, population.count - i), 1)
            for i in account_indices
        ),
    )
    yield (
        "projects",
        ("project_id", "account_id", "display_name", "create_time"),
        ((project_id(i + k), account_id(i), "Bench", now) for i in account_indices for k in range(PROJECTS_IN_ACCOUNT)),
    )
    yield (
        "tokens",
        TOKEN_COLUMNS,
        (
            (token_id(i), account_id(i), "Bench", "", "{}", False, False, now, now, "operator:bench", r, r)
            for i, r in zip(indices, range(first_revision + 1, first_revision + 1 + population.count), strict=True)
        ),
    )
    bcrypt_hash = bcrypt.hashpw(secrets.token_bytes(32), bcrypt.gensalt(10)).decode()
    yield (
        "token_secrets",
        ("token_id", "version", "bcrypt_hash", "digest", "pepper_id", "issued_to"),
        (
            (token_id(i), 1, bcrypt_hash, digest, pepper_id, "operator:bench")
            for i in indices
            for pepper_id, digest in [ring.digest(population.secret(i))]
        ),
    )
    yield (
        "grants",
        ("token_id", "account_id", "permission_set", "scope"),
        (
            (token_id(i), account_id(i), name, scope)
            for i in indices
            for name, scope in ((SET_ON_ONE, project_id(i)), (SET_ON_ALL, "*"))
        ),
    )
    yield (
        "token_activity",
        ("token_id", "account_id", "idle_since"),
        ((token_id(i), account_id(i), now) for i in indices),
    )
