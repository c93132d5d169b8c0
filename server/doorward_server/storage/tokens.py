"""The rows of a token: the record, its secrets, grants and labels (design section 6).

`load` is what a replica decides from: everything about a token and the log's position, in one snapshot. Functions that
take a `Transaction` write, inside the door; the others read, each statement in a snapshot of its own. Called by
`replica/caches.py` (load) and `service/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from doorward_server.model import AccountState, Grant, Token
from doorward_server.storage.accounts import STATES
from doorward_server.storage.failures import unseeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from doorward_server.model import StoredSecret
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = [
    "LoadedToken",
    "StoredToken",
    "count_live",
    "flatten",
    "insert",
    "load",
    "read",
    "read_hash",
    "read_many",
    "revoke",
    "revoke_many",
    "write_back_digest",
]

ALL_PROJECTS: Final = "*"

# ONE statement, hence one snapshot (READ COMMITTED): token, secrets, grants, account and the log's position are of the
# same moment. Read in two, a revocation committed in between would come with a position that contains it.
LOAD = """
SELECT state.epoch, state.revision, state.nonce,
       tokens.token_id, tokens.account_id, tokens.disabled,
       tokens.revoke_time IS NOT NULL AS revoked,
       (extract(epoch FROM tokens.expire_time) * 1000000)::bigint AS expire_us,
       accounts.plan, accounts.state AS account_state,
       secrets.versions, secrets.digests, secrets.pepper_ids, secrets.not_after_us,
       held.permission_sets, held.scopes
FROM state
LEFT JOIN tokens ON tokens.token_id = $1
LEFT JOIN accounts ON accounts.account_id = tokens.account_id
LEFT JOIN LATERAL (
    SELECT array_agg(version ORDER BY version) AS versions,
           array_agg(digest ORDER BY version) AS digests,
           array_agg(pepper_id ORDER BY version) AS pepper_ids,
           array_agg((extract(epoch FROM not_after) * 1000000)::bigint ORDER BY version) AS not_after_us
    -- What has ended by the database's own clock is gone whatever a replica's clock says: "at once" means at once.
    FROM token_secrets
    WHERE token_secrets.token_id = tokens.token_id AND (not_after IS NULL OR not_after > clock_timestamp())
) AS secrets ON true
LEFT JOIN LATERAL (
    SELECT array_agg(permission_set ORDER BY permission_set) AS permission_sets,
           array_agg(scopes ORDER BY permission_set) AS scopes
    FROM (
        SELECT permission_set, string_agg(scope, ',' ORDER BY scope) AS scopes
        FROM grants WHERE grants.token_id = tokens.token_id GROUP BY permission_set
    ) AS by_set
) AS held ON true
"""

READ_HASH = "SELECT bcrypt_hash FROM token_secrets WHERE token_id = $1 AND version = $2"

# Around the rows of a page, so that activity and grants are looked up for these and no others.
RECORDS_OF = """
SELECT tokens.token_id, tokens.account_id, display_name, description, labels, allow_self_rotation, disabled,
       create_time, update_time, expire_time, revoke_time, revoke_reason, created_by, ordinal, revision,
       last_used_time, held.permission_sets, held.scopes
FROM ("""
WITH_GRANTS = """
) AS tokens
LEFT JOIN LATERAL (
    SELECT last_used_time FROM token_activity WHERE token_activity.token_id = tokens.token_id OFFSET 0
) AS activity ON true
LEFT JOIN LATERAL (
    SELECT array_agg(permission_set ORDER BY permission_set) AS permission_sets,
           array_agg(scopes ORDER BY permission_set) AS scopes
    FROM (
        SELECT permission_set, string_agg(scope, ',' ORDER BY scope) AS scopes
        FROM grants WHERE grants.token_id = tokens.token_id GROUP BY permission_set
    ) AS by_set
) AS held ON true
"""

ONE = "SELECT * FROM tokens WHERE token_id = $1"
THESE = "SELECT * FROM tokens WHERE token_id = ANY($1::text[])"
READ: Final = RECORDS_OF + ONE + WITH_GRANTS
READ_MANY: Final = RECORDS_OF + THESE + WITH_GRANTS

# One round trip for all of a token's rows; the foreign keys are checked at the statement's end. The revision is 0 until the
# door's last statement stamps it.
INSERT = """
WITH account AS (
    UPDATE accounts SET live_tokens = live_tokens + 1, issued_tokens = issued_tokens + 1 WHERE account_id = $2
    RETURNING issued_tokens AS ordinal
), token AS (
    INSERT INTO tokens
        (token_id, account_id, display_name, description, labels, allow_self_rotation, disabled, create_time,
         update_time, expire_time, created_by, ordinal, revision)
    SELECT $1, $2, $3::text, $4::text, $5::jsonb, $6::boolean, $7::boolean, $8::timestamptz, $9::timestamptz,
           $10::timestamptz, $11::text, ordinal, 0
    FROM account
), secret AS (
    INSERT INTO token_secrets (token_id, version, bcrypt_hash, digest, pepper_id, not_after, issued_to)
    VALUES ($1, $12, $13, $14, $15, $16, $17)
), granted AS (
    INSERT INTO grants (token_id, account_id, permission_set, scope, ordinal)
    SELECT $1, $2, permission_set, scope, ordinal
    FROM account, unnest($18::text[], $19::text[]) AS given (permission_set, scope)
), labelled AS (
    INSERT INTO token_labels (account_id, key, value, ordinal, token_id)
    SELECT $2, key, value, ordinal, $1 FROM account, unnest($20::text[], $21::text[]) AS given (key, value)
)
INSERT INTO token_activity (token_id, account_id, idle_since, ordinal)
SELECT $1, $2, $8::timestamptz, ordinal FROM account
"""

# Those that were revoked before keep their time and reason, and are not counted again.
REVOKE = """
WITH revoked AS (
    UPDATE tokens SET revoke_time = $2, update_time = $2, revoke_reason = $3
    WHERE token_id = ANY($1::text[]) AND revoke_time IS NULL
    RETURNING account_id, token_id
), idle AS (
    UPDATE token_activity SET idle_since = NULL FROM revoked WHERE token_activity.token_id = revoked.token_id
), counted AS (
    UPDATE accounts SET live_tokens = live_tokens - gone.tokens
    FROM (SELECT account_id, count(*) AS tokens FROM revoked GROUP BY account_id) AS gone
    WHERE accounts.account_id = gone.account_id
)
SELECT token_id FROM revoked
"""

COUNT_LIVE = "SELECT live_tokens FROM accounts WHERE account_id = $1"

# Only for the version that was proved: a version's secret never changes, and a number is never used again. What was rotated
# out while bcrypt looked at it proves nothing any more.
WRITE_BACK_DIGEST = """
UPDATE token_secrets SET digest = $3, pepper_id = $4
WHERE token_id = $1 AND version = $2 AND (not_after IS NULL OR not_after > clock_timestamp())
RETURNING true
"""


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as a replica decides from it, not yet compiled. Times: microseconds since the Unix epoch, None = never.

    `secrets` and `grants` have the form of `core.matrix`'s TokenEntry.
    """

    token_id: str
    account_id: str
    revoked: bool
    disabled: bool
    expire_us: int | None
    secrets: tuple[tuple[int, bytes | None, str | None, int | None], ...] = field(repr=False)
    grants: tuple[tuple[str, tuple[str, ...] | None], ...]
    plan: str
    account_state: AccountState


@dataclass(frozen=True, slots=True)
class LoadedToken:
    """What was found (None: no such token), and the log's position of the same moment."""

    epoch: int
    number: int
    nonce: bytes
    token: StoredToken | None


async def load(connection: Connection, token_id: str) -> LoadedToken:
    """The token with its account's plan and state, and the log's position, in one snapshot; "not found" has one too."""
    row = await connection.fetchrow(LOAD, token_id)
    if row is None:
        raise unseeded()
    token = None if row["token_id"] is None else _stored(row)
    return LoadedToken(row["epoch"], row["revision"], row["nonce"], token)


async def read_hash(connection: Connection, token_id: str, version: int) -> str | None:
    """The bcrypt hash of one version of a token's secret, for when no digest of it under a present pepper exists."""
    found: str | None = await connection.fetchval(READ_HASH, token_id, version)
    return found


async def read(connection: Connection, token_id: str) -> Token | None:
    """The token's record; under the lock of its account (`tx.connection`) it stays as read until COMMIT."""
    row = await connection.fetchrow(READ, token_id)
    return None if row is None else _token(row)


async def read_many(connection: Connection, token_ids: Sequence[str]) -> list[Token]:
    """The records of these tokens in this order, without those that do not exist."""
    found = {row["token_id"]: _token(row) for row in await connection.fetch(READ_MANY, token_ids)}
    return [found[token_id] for token_id in token_ids if token_id in found]


async def insert(tx: Transaction, token: Token, secret: StoredSecret, issued_to: str) -> None:
    """Writes a new token with its first secret, which `issued_to` (an actor) receives. Its account's row is locked."""
    sets, scopes = flatten(token.grants)
    labels = dict(token.labels)
    await tx.connection.execute(
        INSERT,
        token.token_id,
        token.account_id,
        token.display_name,
        token.description,
        json.dumps(labels, sort_keys=True),
        token.allow_self_rotation,
        token.disabled,
        token.create_time,
        token.update_time,
        token.expire_time,
        token.created_by,
        secret.version,
        secret.bcrypt_hash,
        secret.digest,
        secret.pepper_id,
        secret.not_after,
        issued_to,
        sets,
        scopes,
        list(labels),
        list(labels.values()),
    )
    tx.wrote_token(token.token_id)


async def revoke(tx: Transaction, token_id: str, reason: str) -> bool:
    """Revokes the token at `tx.now`; False if it was revoked before (then nothing is written). Its account's row is locked."""
    return bool(await revoke_many(tx, [token_id], reason))


async def revoke_many(tx: Transaction, token_ids: Sequence[str], reason: str) -> frozenset[str]:
    """Revokes those of these tokens that were not revoked before, and returns which. Their accounts' rows are locked."""
    revoked = frozenset(row["token_id"] for row in await tx.connection.fetch(REVOKE, token_ids, tx.now, reason))
    for token_id in revoked:
        tx.wrote_token(token_id)
    return revoked


async def count_live(connection: Connection, account_id: str) -> int:
    """How many tokens of the account are not revoked; 0 for an unknown account."""
    return await connection.fetchval(COUNT_LIVE, account_id) or 0


async def write_back_digest(connection: Connection, token_id: str, version: int, digest: bytes, pepper_id: str) -> bool:
    """Keeps the digest of a secret that was proved to be `version`; False if that version is gone or has ended.

    Not through the door: it changes no decision, only what the next one costs.
    """
    return bool(await connection.fetchval(WRITE_BACK_DIGEST, token_id, version, digest, pepper_id))


def flatten(grants: Sequence[Grant]) -> tuple[list[str], list[str]]:
    """The rows of these grants, as columns: permission sets and scopes."""
    pairs = [
        (grant.permission_set, scope)
        for grant in grants
        for scope in ((ALL_PROJECTS,) if grant.project_ids is None else grant.project_ids)
    ]
    return [permission_set for permission_set, _ in pairs], [scope for _, scope in pairs]


def _scope(scopes: str) -> tuple[str, ...] | None:
    """The project ids that SQL joined with commas, which no id contains; None for all projects."""
    project_ids = tuple(scopes.split(","))
    return None if ALL_PROJECTS in project_ids else project_ids


def _pairs(row: asyncpg.Record) -> list[tuple[str, tuple[str, ...] | None]]:
    return [
        (permission_set, _scope(scopes))
        for permission_set, scopes in zip(row["permission_sets"] or (), row["scopes"] or (), strict=True)
    ]


def _stored(row: asyncpg.Record) -> StoredToken:
    columns = (row["versions"] or (), row["digests"] or (), row["pepper_ids"] or (), row["not_after_us"] or ())
    return StoredToken(
        token_id=row["token_id"],
        account_id=row["account_id"],
        revoked=row["revoked"],
        disabled=row["disabled"],
        expire_us=row["expire_us"],
        secrets=tuple(zip(*columns, strict=True)),
        grants=tuple(_pairs(row)),
        plan=row["plan"],
        account_state=STATES[row["account_state"]],
    )


def _token(row: asyncpg.Record) -> Token:
    return Token(
        token_id=row["token_id"],
        account_id=row["account_id"],
        display_name=row["display_name"],
        description=row["description"],
        labels=json.loads(row["labels"]),
        grants=tuple(Grant(permission_set, project_ids) for permission_set, project_ids in _pairs(row)),
        allow_self_rotation=row["allow_self_rotation"],
        disabled=row["disabled"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        expire_time=row["expire_time"],
        revoke_time=row["revoke_time"],
        revoke_reason=row["revoke_reason"],
        created_by=row["created_by"],
        ordinal=row["ordinal"],
        revision=row["revision"],
        last_used_time=row["last_used_time"],
    )
