"""What became of a failed statement: where driver text stops (design section 3, Errors; section 6, External).

asyncpg's and the system's errors leave storage as `errors.Unavailable` (the same call may succeed later), or as
`StatementRefused` (a mistake of ours, whatever the state of the database). They are logged by class and SQLSTATE alone,
for their text holds values of rows.
"""

from __future__ import annotations

from typing import Final

import asyncpg
import structlog

from doorward_server import errors

__all__ = [
    "DRIVER_ERRORS",
    "DatabaseUnusable",
    "StartOver",
    "StatementRefused",
    "is_known_rollback",
    "is_lost",
    "is_retried",
    "name_of",
    "translate",
    "unavailable",
    "unseeded",
]

DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

# The server turned read-only or goes away, or it let a statement wait in vain, as a deposed primary does whose locks are
# held by commits that nobody acknowledges: every pooled connection may lead to the same one.
_LOST_STATES: Final = frozenset({"25006", "25P03", "55P03", "57014", "57P01", "57P02", "57P03", "57P05"})
# Nothing was written, and the same transaction may well succeed at once: serialization failure, deadlock.
_RETRIED_STATES: Final = frozenset({"40001", "40P01"})
# The server is up but cannot do it now: no resources, cancelled or timed out, a lock not to be had, refused log-in.
_TRANSIENT_CLASSES: Final = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58", "XX"})
# An empty database stands where ours was: a backup is being restored into it.
_NO_SUCH_TABLE: Final = "42P01"

log = structlog.get_logger(__name__)


class DatabaseUnusable(Exception):
    """This database cannot be used as it is. The text is for whoever starts the server: what is wrong, what would be right."""


class StatementRefused(Exception):
    """PostgreSQL refused a statement for what it says, not for how things stand: a mistake of ours."""


class StartOver(Exception):
    """What the transaction was decided on has moved: roll back and run it again from its locks."""


def name_of(error: BaseException) -> str:
    """`error` for a log: its class and SQLSTATE, never its text."""
    sqlstate = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {sqlstate}" if sqlstate else type(error).__name__


def is_lost(error: BaseException) -> bool:
    """Whether the connection, and with it the pool, must not be trusted any more."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate in _LOST_STATES or str(error.sqlstate).startswith("08")
    return not isinstance(error, asyncpg.DataError)


def is_retried(error: BaseException) -> bool:
    """Whether the transaction was rolled back only because of another one beside it."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _RETRIED_STATES


def is_known_rollback(error: BaseException) -> bool:
    """Whether this answer to COMMIT says for certain that nothing was committed."""
    if not isinstance(error, asyncpg.PostgresError):
        return False
    return error.sqlstate in _RETRIED_STATES or str(error.sqlstate).startswith("23")


def unavailable() -> errors.Unavailable:
    """The database cannot be asked now."""
    return errors.Unavailable("DATABASE_UNAVAILABLE", "The database cannot be reached or is too busy; try again.")


def unseeded() -> errors.Unavailable:
    """There is a schema, but nobody has started a deployment in it."""
    return errors.Unavailable("DATABASE_UNAVAILABLE", "The database holds no deployment yet; try again.")


def translate(error: BaseException) -> Exception:
    """What leaves storage instead of `error`; raise it `from None`, so that no driver text travels along."""
    if getattr(error, "sqlstate", None) == _NO_SUCH_TABLE:
        log.warning("database_unavailable", error=name_of(error))
        return unseeded()
    if isinstance(error, asyncpg.DataError) or (
        isinstance(error, asyncpg.PostgresError) and str(error.sqlstate)[:2] not in _TRANSIENT_CLASSES
    ):
        log.error("statement_refused", error=name_of(error))
        return StatementRefused(f"The database refused a statement ({name_of(error)}).")
    log.warning("database_unavailable", error=name_of(error))
    return unavailable()
