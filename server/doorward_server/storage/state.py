"""The one row of `state`: the log's position, the catalog, the fingerprints of the pepper keys (design section 6).

The position is moved by the door alone (`changes.py`), and the catalog within it (`apply_catalog`). Called by `app.py` at
the start, by `replica/caches.py` (load_catalog) and by `service/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward_server.storage.failures import unseeded

if TYPE_CHECKING:
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = [
    "LoadedCatalog",
    "State",
    "add_fingerprint",
    "apply_catalog",
    "load_catalog",
    "lock",
    "read_fingerprints",
    "read_state",
    "seed",
]

READ_STATE = "SELECT epoch, revision, nonce, catalog_version FROM state"

LOAD_CATALOG = "SELECT epoch, revision, nonce, catalog_version, catalog ->> 'toml' AS toml FROM state"

LOCK = "SELECT FROM state FOR UPDATE"

APPLY_CATALOG = """
UPDATE state SET catalog = jsonb_build_object('toml', $1::text), catalog_version = catalog_version + 1
RETURNING catalog_version
"""

SEED = """
INSERT INTO state (epoch, revision, nonce, catalog_version, catalog, audit_head, pepper_fingerprints)
VALUES (1, 0, $1, 1, jsonb_build_object('toml', $2::text), decode(repeat('00', 32), 'hex'), $3::jsonb)
ON CONFLICT (one) DO NOTHING
RETURNING true
"""

READ_FINGERPRINTS = "SELECT pepper_fingerprints FROM state"

# A fingerprint never changes: another key under a known id is another key file.
ADD_FINGERPRINT = """
UPDATE state SET pepper_fingerprints = pepper_fingerprints || jsonb_build_object($1::text, $2::text)
WHERE NOT pepper_fingerprints ? $1 OR pepper_fingerprints ->> $1 = $2
RETURNING true
"""


@dataclass(frozen=True, slots=True)
class State:
    """The log's position and the catalog's version, of one moment."""

    epoch: int
    number: int
    nonce: bytes
    catalog_version: int


@dataclass(frozen=True, slots=True)
class LoadedCatalog:
    """The catalog's text, the counter of its applies, and the log's position of the same moment."""

    epoch: int
    number: int
    nonce: bytes
    version: int
    toml: str


async def read_state(connection: Connection) -> State | None:
    """The row's small columns; None before the deployment was seeded."""
    row = await connection.fetchrow(READ_STATE)
    return None if row is None else State(row["epoch"], row["revision"], row["nonce"], row["catalog_version"])


async def load_catalog(connection: Connection) -> LoadedCatalog:
    """The catalog as it was applied, and the log's position, in one snapshot."""
    row = await connection.fetchrow(LOAD_CATALOG)
    if row is None:
        raise unseeded()
    return LoadedCatalog(row["epoch"], row["revision"], row["nonce"], row["catalog_version"], row["toml"])


async def lock(tx: Transaction) -> None:
    """Keeps every other change from committing until this one ends; what is read from here on contains all before it.

    The last lock of the door's order (`changes.py`): whoever takes it early must take none after it.
    """
    await tx.connection.execute(LOCK)


async def apply_catalog(tx: Transaction, catalog_toml: str) -> int:
    """Replaces the catalog; its new version."""
    version: int = await tx.connection.fetchval(APPLY_CATALOG, catalog_toml)
    tx.wrote = True
    return version


async def seed(connection: Connection, nonce: bytes, catalog_toml: str, fingerprints: dict[str, str]) -> bool:
    """Begins a deployment at revision 1.0 with catalog version 1; False if it was begun before."""
    return bool(await connection.fetchval(SEED, nonce, catalog_toml, json.dumps(fingerprints, sort_keys=True)))


async def read_fingerprints(connection: Connection) -> dict[str, str]:
    """Each pepper key's id and fingerprint."""
    text = await connection.fetchval(READ_FINGERPRINTS)
    if text is None:
        raise unseeded()
    fingerprints: dict[str, str] = json.loads(text)
    return fingerprints


async def add_fingerprint(connection: Connection, key_id: str, fingerprint: str) -> bool:
    """Keeps a key's fingerprint; False, and nothing is written, if another one is known under that id."""
    return bool(await connection.fetchval(ADD_FINGERPRINT, key_id, fingerprint))
