"""The rows of operators: who they are, and what proves it (design sections 5 and 6).

`load` is what a replica decides from, with the log's position in the same snapshot. `insert` and `revoke` write, inside
the door.
Called by `replica/` (load) and `service/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from doorward_server.model import Operator, OperatorRole
from doorward_server.storage.failures import unseeded

if TYPE_CHECKING:
    import asyncpg

    from doorward_server.model import Page, StoredSecret
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = [
    "LoadedOperator",
    "StoredOperator",
    "active_admin_exists",
    "exists",
    "insert",
    "list_page",
    "load",
    "read",
    "read_hash",
    "revoke",
    "write_back_digest",
]

ROLES: Final = {"admin": OperatorRole.ADMIN, "auditor": OperatorRole.AUDITOR, "caller": OperatorRole.CALLER}
NAMES: Final = {role: name for name, role in ROLES.items()}

LOAD = """
SELECT state.epoch, state.revision, state.nonce, operators.operator_id, operators.role, operators.digest,
       operators.pepper_id, operators.revoke_time IS NOT NULL AS revoked,
       (extract(epoch FROM operators.expire_time) * 1000000)::bigint AS expire_us
FROM state LEFT JOIN operators ON operators.operator_id = $1
"""

READ_HASH = "SELECT bcrypt_hash FROM operators WHERE operator_id = $1"

READ = """
SELECT operator_id, role, display_name, create_time, expire_time, revoke_time, revision
FROM operators WHERE operator_id = $1
"""

# operators_by_age, from where the last page ended.
LIST = """
SELECT operator_id, role, display_name, create_time, expire_time, revoke_time, revision
FROM operators
WHERE ($1::timestamptz IS NULL OR (create_time, operator_id) < ($1, $2))
  AND ($3::text IS NULL OR role = $3)
  AND ($4 OR (revoke_time IS NULL AND (expire_time IS NULL OR expire_time > clock_timestamp())))
ORDER BY create_time DESC, operator_id DESC LIMIT $5
"""

EXISTS = "SELECT EXISTS (SELECT FROM operators)"

INSERT = """
INSERT INTO operators
    (operator_id, role, display_name, bcrypt_hash, digest, pepper_id, create_time, expire_time, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0)
"""

REVOKE = "UPDATE operators SET revoke_time = $2 WHERE operator_id = $1 AND revoke_time IS NULL RETURNING true"

ACTIVE_ADMIN_EXISTS = """
SELECT EXISTS (
    SELECT FROM operators
    WHERE role = 'admin' AND revoke_time IS NULL AND (expire_time IS NULL OR expire_time > clock_timestamp())
)
"""

# An operator's secret never changes, so there is no version that the proof could be of another.
WRITE_BACK_DIGEST = "UPDATE operators SET digest = $2, pepper_id = $3 WHERE operator_id = $1 RETURNING true"


@dataclass(frozen=True, slots=True)
class StoredOperator:
    """An operator as a replica decides from it. `expire_us`: microseconds since the Unix epoch, None = never."""

    operator_id: str
    role: OperatorRole
    revoked: bool
    expire_us: int | None
    digest: bytes | None = field(repr=False)
    pepper_id: str | None


@dataclass(frozen=True, slots=True)
class LoadedOperator:
    """What was found (None: no such operator), and the log's position of the same moment."""

    epoch: int
    number: int
    nonce: bytes
    operator: StoredOperator | None


async def load(connection: Connection, operator_id: str) -> LoadedOperator:
    """The operator and the log's position, in one snapshot."""
    row = await connection.fetchrow(LOAD, operator_id)
    if row is None:
        raise unseeded()
    operator = None
    if row["operator_id"] is not None:
        operator = StoredOperator(
            row["operator_id"], ROLES[row["role"]], row["revoked"], row["expire_us"], row["digest"], row["pepper_id"]
        )
    return LoadedOperator(row["epoch"], row["revision"], row["nonce"], operator)


async def read_hash(connection: Connection, operator_id: str) -> str | None:
    """The bcrypt hash of the operator's secret, for when no digest of it under a present pepper exists."""
    found: str | None = await connection.fetchval(READ_HASH, operator_id)
    return found


async def read(connection: Connection, operator_id: str) -> Operator | None:
    """The operator's record; under its lock (`tx.connection`) it stays as read until COMMIT."""
    row = await connection.fetchrow(READ, operator_id)
    return None if row is None else _operator(row)


async def list_page(
    connection: Connection, page: Page, *, role: OperatorRole | None = None, include_inactive: bool = True
) -> list[Operator]:
    """A page of the operators, newest first; those with `role`, or all; those that are neither revoked nor expired, or all.

    The key of a row, for `Page.after`, is `(create_time.isoformat(), operator_id)`.
    """
    time, operator_id = (None, "") if page.after is None else (datetime.fromisoformat(page.after[0]), page.after[1])
    name = None if role is None else NAMES[role]
    return [
        _operator(row) for row in await connection.fetch(LIST, time, operator_id, name, include_inactive, page.size)
    ]


async def exists(connection: Connection) -> bool:
    """Whether any operator was ever made here."""
    return bool(await connection.fetchval(EXISTS))


async def insert(tx: Transaction, operator: Operator, secret: StoredSecret) -> None:
    """Writes a new operator with its secret."""
    await tx.connection.execute(
        INSERT,
        operator.operator_id,
        NAMES[operator.role],
        operator.display_name,
        secret.bcrypt_hash,
        secret.digest,
        secret.pepper_id,
        operator.create_time,
        operator.expire_time,
    )
    tx.wrote_operator(operator.operator_id)


async def revoke(tx: Transaction, operator_id: str) -> bool:
    """Revokes the operator at `tx.now`; False if it was revoked before (then nothing is written). Its row is locked."""
    if not await tx.connection.fetchval(REVOKE, operator_id, tx.now):
        return False
    tx.wrote_operator(operator_id)
    return True


async def active_admin_exists(connection: Connection) -> bool:
    """Whether anyone can administer this deployment: an admin that is neither revoked nor expired."""
    return bool(await connection.fetchval(ACTIVE_ADMIN_EXISTS))


async def write_back_digest(connection: Connection, operator_id: str, digest: bytes, pepper_id: str) -> bool:
    """Keeps the digest of a secret that was proved; False if there is no such operator."""
    return bool(await connection.fetchval(WRITE_BACK_DIGEST, operator_id, digest, pepper_id))


def _operator(row: asyncpg.Record) -> Operator:
    return Operator(
        operator_id=row["operator_id"],
        role=ROLES[row["role"]],
        display_name=row["display_name"],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        revoke_time=row["revoke_time"],
        revision=row["revision"],
    )
