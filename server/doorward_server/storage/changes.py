"""The one door: the only writer of what a decision or an administrator reads (design section 6).

`commit` runs a decision under the door's locks and makes what it wrote, its revision, its row in `changes`, its audit
event and its NOTIFY one transaction. Revisions are gap-free and in commit order, since the `state` row is locked by the
last statement. Called by `service/`, one call a mutation; the feed reads back what was committed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import asyncpg
import structlog

from doorward.core.revision import Revision
from doorward_server import errors, failpoints, tracing
from doorward_server.failpoints import Failpoint
from doorward_server.storage import audit
from doorward_server.storage.failures import StartOver, is_retried, name_of, unseeded
from doorward_server.storage.transaction import Bounds, CommitUnknown, Transaction, lock, transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from doorward_server.model import AuditEvent, Change
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["CHANNEL", "ChangeRow", "Committed", "Decided", "LogEnd", "Transaction", "commit", "read_after", "read_end"]

T = TypeVar("T")

CHANNEL: Final = "doorward"
# Deadlocks and a moved catalog are rare; four in a row mean that waiting is better left to the caller.
ATTEMPTS: Final = 4
NONCE_BYTES: Final = 8

log = structlog.get_logger(__name__)

# One statement, and the last: it waits for the state row, and from there everything is in commit order, the audit's chain
# too (`audit.chained` says what it is made of). Rows written before get their revision here, where it is known.
CHANGE = """
WITH moved AS (
    UPDATE state
    SET revision = revision + 1, nonce = $1, last_event_id = last_event_id + 1,
        audit_head = sha256(
            audit_head || int8send(last_event_id + 1) || int8send(epoch) || int8send(revision + 1) || $2)
    WHERE $3::bigint IS NULL OR catalog_version = $3
    RETURNING epoch, revision, nonce, last_event_id, audit_head
), logged AS (
    INSERT INTO changes (revision, nonce, kind, account_id, subjects, commit_time)
    SELECT revision, $1, $4, $5, $6::text[], clock_timestamp() FROM moved
), tokens_stamped AS (
    UPDATE tokens SET revision = moved.revision FROM moved WHERE token_id = ANY($7::text[])
), accounts_stamped AS (
    UPDATE accounts SET revision = moved.revision FROM moved WHERE account_id = ANY($8::text[])
), operators_stamped AS (
    UPDATE operators SET revision = moved.revision FROM moved WHERE operator_id = ANY($9::text[])
), audited AS (
    INSERT INTO audit_events
        (time, event_id, epoch, revision, account_id, actor, on_behalf_of, action, subject, tokens, before, after, peer,
         chain)
    SELECT $10, last_event_id, epoch, revision, $11, $12, $13, $14, $15, $16::text[], $17::jsonb, $18::jsonb, $19,
           audit_head
    FROM moved
)
SELECT epoch, revision, nonce, pg_notify('doorward', revision::text) FROM moved
"""

# A call that found nothing to change writes all the same: a deposed primary cannot, and so cannot say "done before".
NO_CHANGE = """
WITH seen AS (
    UPDATE state
    SET last_event_id = last_event_id + 1,
        audit_head = sha256(audit_head || int8send(last_event_id + 1) || int8send(epoch) || int8send(revision) || $1)
    WHERE $2::bigint IS NULL OR catalog_version = $2
    RETURNING epoch, revision, nonce, last_event_id, audit_head
), audited AS (
    INSERT INTO audit_events
        (time, event_id, epoch, revision, account_id, actor, on_behalf_of, action, subject, tokens, before, after, peer,
         chain)
    SELECT $3, last_event_id, epoch, revision, $4, $5, $6, $7, $8, $9::text[], $10::jsonb, $11::jsonb, $12, audit_head
    FROM seen
)
SELECT epoch, revision, nonce FROM seen
"""

READ_AFTER = "SELECT revision, nonce, subjects FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2"

READ_END = """
SELECT epoch, revision, nonce, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS database_us FROM state
"""


@dataclass(frozen=True, slots=True)
class Decided(Generic[T]):
    """What a decision came to. `change`: None if there was nothing to change; then it must have written nothing.

    `catalog_version`: the catalog that it was validated under, if it read that itself; goes before `commit`'s.
    """

    value: T
    change: Change | None
    audit: AuditEvent
    catalog_version: int | None = None


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """What was committed and acknowledged, and at which revision; without a change, the one that was read.

    `nonce` tells the revision from one of the same number in another history.
    """

    value: T
    revision: Revision
    nonce: bytes
    changed: bool


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A row of the log, as the feed applies it."""

    number: int
    nonce: bytes
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where the log ends, and the database's time (microseconds since the Unix epoch)."""

    epoch: int
    number: int
    nonce: bytes
    database_us: int


class _NoPartition(Exception):
    """The audit's partition of this month is missing."""


async def commit(
    database: Database,
    decide: Callable[[Transaction], Awaitable[Decided[T]]],
    *,
    accounts: Sequence[str] = (),
    operators_share: Sequence[str] = (),
    operators_update: Sequence[str] = (),
    catalog_version: int | None = None,
    dry_run: bool = False,
) -> Committed[T]:
    """Runs `decide` under the locks of the named rows and commits what it wrote; with `dry_run`, rolls it back.

    `decide` reads through `tx.connection`, writes through the functions that take `tx`, awaits nothing else, and may run
    several times. An error of it undoes everything and is raised as it is. `revision` of a row that it wrote is
    `Committed.revision.number`. Run it as a task that nobody cancels (`service/mutations.py`).

    Raises: errors.Unavailable DATABASE_UNAVAILABLE (nothing was changed) or COMMIT_UNKNOWN; errors.Aborted
    CHANGED_CONCURRENTLY, if the catalog is not the one that was validated, or others were in the way each time.
    """
    for _ in range(ATTEMPTS):
        try:
            with tracing.span("transaction") as span:
                async with database.change_session() as connection:
                    committed = await _attempt(
                        connection,
                        Bounds.of(database.hold_ms),
                        decide,
                        (accounts, operators_share, operators_update),
                        catalog_version,
                        dry_run=dry_run,
                    )
                    span.note("revision", str(committed.revision))
                return committed
        except StartOver as why:
            log.info("change_started_over", because=str(why))
        except _NoPartition:
            async with database.reading() as connection:
                await audit.ensure_partitions(connection)
        except CommitUnknown:
            await database.expire()
            raise
    raise _changed_concurrently()


async def read_after(connection: Connection, number: int, limit: int) -> list[ChangeRow]:
    """The changes behind `number`, in order, at most `limit`. A gap behind `number` means that the log was truncated."""
    rows = await connection.fetch(READ_AFTER, number, limit)
    return [ChangeRow(row["revision"], row["nonce"], tuple(row["subjects"])) for row in rows]


async def read_end(connection: Connection) -> LogEnd:
    """Where the log ends, and the database's time at that moment."""
    row = await connection.fetchrow(READ_END)
    if row is None:
        raise unseeded()
    return LogEnd(row["epoch"], row["revision"], row["nonce"], row["database_us"])


async def _attempt(
    connection: Connection,
    bounds: Bounds,
    decide: Callable[[Transaction], Awaitable[Decided[T]]],
    locks: tuple[Sequence[str], Sequence[str], Sequence[str]],
    catalog_version: int | None,
    *,
    dry_run: bool,
) -> Committed[T]:
    try:
        async with transaction(connection, bounds, dry_run=dry_run):
            tx = await lock(connection, *locks)
            await failpoints.reach(Failpoint.MUTATION_AFTER_LOCK)
            if catalog_version not in {None, tx.catalog_version}:
                raise _changed_concurrently()
            decided = await decide(tx)
            revision, nonce = await _write_revision(tx, decided, catalog_version)
            await failpoints.reach(Failpoint.MUTATION_BEFORE_COMMIT)
    except asyncpg.PostgresError as error:
        if is_retried(error):
            raise StartOver(name_of(error)) from None
        if isinstance(error, asyncpg.CheckViolationError) and error.table_name == "audit_events":
            raise _NoPartition from None
        raise
    changed = decided.change is not None
    if dry_run and changed:
        revision = Revision(revision.epoch, revision.number - 1)
    return Committed(decided.value, revision, nonce, changed)


async def _write_revision(tx: Transaction, decided: Decided[T], catalog_version: int | None) -> tuple[Revision, bytes]:
    """The last statement. Raises: StartOver, if the catalog is not the one that was validated."""
    if decided.catalog_version is not None:
        catalog_version = decided.catalog_version
    change = decided.change
    event = decided.audit if change is None else audit.about_tokens_of(change, decided.audit)
    digest, event_row = audit.event_digest(event, tx.now), audit.row_of(event, tx.now)
    if change is None:
        if tx.wrote:
            raise RuntimeError("A decision wrote something and announced no change: replicas would never learn of it.")
        row = await tx.connection.fetchrow(NO_CHANGE, digest, catalog_version, *event_row)
    else:
        row = await tx.connection.fetchrow(
            CHANGE,
            secrets.token_bytes(NONCE_BYTES),
            digest,
            catalog_version,
            change.kind,
            change.account_id,
            list(change.subjects),
            list(tx.written_tokens),
            list(tx.written_accounts),
            list(tx.written_operators),
            *event_row,
        )
    if row is None:
        raise StartOver("the catalog moved")
    return Revision(row["epoch"], row["revision"]), row["nonce"]


def _changed_concurrently() -> errors.Aborted:
    return errors.Aborted(
        "CHANGED_CONCURRENTLY", "Something that this was decided on changed at the same time; read again and repeat."
    )
