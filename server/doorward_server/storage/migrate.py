"""Brings the schema up to date, and begins a deployment in it (design section 6).

Numbered files in `migrations/`, each applied once, all that are pending in one transaction under an advisory lock, so
that any number of servers may start at the same time. A file's first line says `-- needs code: N`: code that knows
migration N runs on the schema that it leaves, so that an older server can restart during an upgrade; older code refuses.
Called by `app.py` at the start and by `doorward db migrate`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

from doorward_server.storage import audit, state
from doorward_server.storage.connect import terminate
from doorward_server.storage.failures import DRIVER_ERRORS, DatabaseUnusable, translate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Migration", "migrate", "migrations", "seed"]

FILE_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
NEEDS_CODE: Final = re.compile(r"-- needs code: (\d+)\n")

# SET LOCAL: a migration may take longer than a statement of a server may.
BEGIN = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('doorward migrations', 0))"

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number       integer PRIMARY KEY,
    name         text NOT NULL,
    checksum     bytea NOT NULL,
    needs_code   integer NOT NULL,
    applied_time timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""

READ_APPLIED = "SELECT number, name, checksum, needs_code FROM schema_migrations ORDER BY number"

INSERT_APPLIED = "INSERT INTO schema_migrations (number, name, checksum, needs_code) VALUES ($1, $2, $3, $4)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file. `needs_code`: the newest migration that code must know to run on what this one leaves."""

    number: int
    name: str
    sql: str
    needs_code: int

    @property
    def checksum(self) -> bytes:
        """SHA-256 of the file's text."""
        return hashlib.sha256(self.sql.encode()).digest()


def migrations() -> tuple[Migration, ...]:
    """All files that this code brings, in order."""
    found = []
    for entry in resources.files("doorward_server.storage").joinpath("migrations").iterdir():
        if match := FILE_NAME.fullmatch(entry.name):
            sql = entry.read_text(encoding="utf-8")
            needs = NEEDS_CODE.match(sql)
            if needs is None:
                raise ValueError(f"{entry.name} does not begin with '-- needs code: N'.")
            found.append(Migration(int(match[1]), entry.name, sql, int(needs[1])))
    return tuple(sorted(found, key=lambda migration: migration.number))


async def migrate(database: Database, known: Sequence[Migration] | None = None) -> list[str]:
    """Applies what is pending; returns the names of what was applied, [] if nothing was. Safe at any time, by anyone.

    Raises: DatabaseUnusable, if the schema is newer than this code can use, or an applied file was changed afterwards.
    """
    known = migrations() if known is None else known
    connection = await database.connect()
    try:
        return await _migrate(connection, known)
    except DRIVER_ERRORS as error:
        raise translate(error) from None
    finally:
        terminate(connection)  # an unfinished transaction is rolled back with it


async def seed(database: Database, catalog_toml: str, fingerprints: Mapping[str, str] | None = None) -> bool:
    """Begins a deployment in an empty schema: epoch 1, revision 0, this catalog as version 1. False if there is one.

    Also makes the audit's partitions of the coming months, so that each start looks after them.
    """
    async with database.reading() as connection:
        await audit.ensure_partitions(connection)
        return await state.seed(connection, secrets.token_bytes(8), catalog_toml, dict(fingerprints or {}))


async def _migrate(connection: Connection, known: Sequence[Migration]) -> list[str]:
    await connection.execute(BEGIN)
    await connection.execute(LOCK)
    await connection.execute(CREATE_TABLE)
    applied = {row["number"]: row for row in await connection.fetch(READ_APPLIED)}
    newest = max((migration.number for migration in known), default=0)
    needed = max((row["needs_code"] for row in applied.values()), default=0)
    if needed > newest:
        raise DatabaseUnusable(
            f"The database's schema is newer than this server: it needs a server that knows migration {needed:04}, and "
            f"this one knows {newest:04} at most. Run the newer version."
        )
    for migration in known:
        row = applied.get(migration.number)
        if row is not None and row["checksum"] != migration.checksum:
            raise DatabaseUnusable(f"The migration {migration.name} is not the one that was applied to this database.")
    pending = [migration for migration in known if migration.number not in applied]
    for migration in pending:
        await connection.execute(migration.sql)
        await connection.execute(
            INSERT_APPLIED, migration.number, migration.name, migration.checksum, migration.needs_code
        )
    await connection.execute("COMMIT")
    return [migration.name for migration in pending]
