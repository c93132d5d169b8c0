"""One transaction from BEGIN to the acknowledged COMMIT: its time-outs, its locks, what an answer to COMMIT means.

A frozen process cannot hold the door: all time-outs are below the hold (design section 6, One door). A COMMIT whose
answer is late, lost or comes with a warning is `COMMIT_UNKNOWN`, never success. Called by `changes.py`; a `Transaction`
is what storage's writing functions take, so that nothing can write without the door's locks.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from doorward_server import errors, failpoints
from doorward_server.failpoints import Failpoint
from doorward_server.storage.connect import Connection, answered_within, terminate, warnings_of
from doorward_server.storage.failures import DRIVER_ERRORS, is_known_rollback, name_of, unseeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

__all__ = ["Bounds", "CommitUnknown", "Transaction", "begin", "lock", "roll_back", "transaction"]

log = structlog.get_logger(__name__)

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

# SET takes no parameters; `true` makes it SET LOCAL.
SET_LOCAL = """
SELECT set_config('idle_in_transaction_session_timeout', $1, true),
       set_config('lock_timeout', $2, true),
       set_config('statement_timeout', $3, true),
       set_config('client_min_messages', 'warning', true)
"""

# The sort comes before the locks, so two writers that want the same accounts take them in the same order.
LOCK_ACCOUNTS = """
SELECT account_id FROM accounts WHERE account_id = ANY($1::text[]) ORDER BY account_id FOR UPDATE
"""
LOCK_OPERATOR_FOR_UPDATE = "SELECT operator_id FROM operators WHERE operator_id = $1 FOR UPDATE"
LOCK_OPERATOR_FOR_SHARE = "SELECT operator_id FROM operators WHERE operator_id = $1 FOR SHARE"

READ_STATE = "SELECT epoch, catalog_version, clock_timestamp() AS now FROM state"

ROLLBACK_S: Final = 1.0


class CommitUnknown(errors.Unavailable):
    """COMMIT was sent, and nobody knows what became of it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The time-outs of a transaction, all made from the hold.

    A writer that stopped is thrown out after `idle_ms`; `lock_ms` is longer, so that whoever waits for its locks gets
    them in one try; `statement_ms` is longer still, for a statement's time contains its wait for a lock.
    """

    idle_ms: int
    lock_ms: int
    statement_ms: int
    commit_s: float

    @classmethod
    def of(cls, hold_ms: int) -> Bounds:
        """The bounds under a hold of `hold_ms`."""
        return cls(hold_ms // 2, hold_ms * 3 // 4, hold_ms * 7 // 8, 2 * hold_ms / 1000)


@dataclass(slots=True)
class Transaction:
    """Proof that the door is held: the locks are taken, and what is read through `connection` now stays so until COMMIT.

    `now`: the database's time after the locks were taken, for times that are written and for expiry. Use cases touch
    only `now`, `catalog_version`, `locked_accounts` (which may not exist), and `connection` to hand it to functions that
    read. The sets name the rows that get the revision once it is known.
    """

    connection: Connection
    now: datetime
    epoch: int
    catalog_version: int
    locked_accounts: frozenset[str] = frozenset()
    wrote: bool = False
    written_tokens: set[str] = field(default_factory=set)
    written_accounts: set[str] = field(default_factory=set)
    written_operators: set[str] = field(default_factory=set)

    def wrote_token(self, token_id: str) -> None:
        """A token's rows were written: its revision will be this change's."""
        self.wrote = True
        self.written_tokens.add(token_id)

    def wrote_account(self, account_id: str) -> None:
        """An account's row was written: its revision will be this change's."""
        self.wrote = True
        self.written_accounts.add(account_id)

    def wrote_operator(self, operator_id: str) -> None:
        """An operator's row was written: its revision will be this change's."""
        self.wrote = True
        self.written_operators.add(operator_id)


async def begin(connection: Connection, bounds: Bounds) -> None:
    """BEGIN, with its time-outs."""
    await connection.execute(BEGIN)
    await connection.execute(SET_LOCAL, str(bounds.idle_ms), str(bounds.lock_ms), str(bounds.statement_ms))


@contextlib.asynccontextmanager
async def transaction(connection: Connection, bounds: Bounds, *, dry_run: bool) -> AsyncIterator[None]:
    """BEGIN with its time-outs, and an acknowledged COMMIT at the end of the block (ROLLBACK with `dry_run`).

    Whatever goes wrong before COMMIT is sent, nothing of it remains.
    """
    try:
        with answered_within(connection, bounds.commit_s):
            await begin(connection, bounds)
            yield
        if dry_run:
            await roll_back(connection)
        else:
            await _acknowledged_commit(connection, bounds)
    except Exception:
        await roll_back(connection)
        raise
    except BaseException:  # cancelled: at once, before asyncpg's own cancel request can start
        terminate(connection)
        raise


async def roll_back(connection: Connection) -> None:
    """ROLLBACK; if that is not answered the connection goes, and the server does it by itself."""
    try:
        with answered_within(connection, ROLLBACK_S):
            await connection.execute("ROLLBACK")
    except DRIVER_ERRORS:
        terminate(connection)
    except BaseException:
        terminate(connection)
        raise


async def lock(
    connection: Connection, accounts: Sequence[str], operators_share: Sequence[str], operators_update: Sequence[str]
) -> Transaction:
    """Takes the door's locks in their one order: accounts by id, then operators by id, each at its final strength."""
    if accounts:
        await connection.execute(LOCK_ACCOUNTS, list(accounts))
    for operator_id in sorted({*operators_share, *operators_update}):
        strength = LOCK_OPERATOR_FOR_UPDATE if operator_id in operators_update else LOCK_OPERATOR_FOR_SHARE
        await connection.execute(strength, operator_id)
    row = await connection.fetchrow(READ_STATE)
    if row is None:
        raise unseeded()
    return Transaction(connection, row["now"], row["epoch"], row["catalog_version"], frozenset(accounts))


async def _acknowledged_commit(connection: Connection, bounds: Bounds) -> None:
    """COMMIT, and returns only if the server said that it is done, without a warning.

    Raises: CommitUnknown, with the connection gone; the driver's error if it says for certain that nothing was
    committed.
    """
    try:
        with answered_within(connection, bounds.commit_s), warnings_of(connection) as warnings:
            answer = await connection.execute("COMMIT")
        if answer != "COMMIT" or warnings:
            raise _unknown(connection, f"{answer} with warnings {warnings}")
        await failpoints.reach(Failpoint.MUTATION_ACK_LOST)
    except DRIVER_ERRORS as error:
        if is_known_rollback(error):
            raise
        raise _unknown(connection, name_of(error)) from None


def _unknown(connection: Connection, why: str) -> CommitUnknown:
    terminate(connection)
    log.error("commit_unknown", why=why)
    return CommitUnknown(
        "COMMIT_UNKNOWN",
        "The database did not acknowledge the change: it may have been made or not. Repeat the call.",
    )
