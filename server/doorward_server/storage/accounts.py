"""The rows of accounts and their projects (design section 6).

`load` and `load_project` are what a replica decides from, each with the log's position in the same snapshot. Functions
that take a `Transaction` write, inside the door. Called by `replica/caches.py` (loads) and `service/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward_server.model import Account, AccountState, Project
from doorward_server.storage.failures import StartOver, unseeded

if TYPE_CHECKING:
    from collections.abc import Collection

    import asyncpg

    from doorward_server.model import Page
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.transaction import Transaction

__all__ = [
    "STATES",
    "LoadedAccount",
    "LoadedProject",
    "find_projects",
    "list_page",
    "list_projects_page",
    "load",
    "load_project",
    "read",
    "read_project",
    "set_state",
    "upsert_account",
    "upsert_project",
]

STATES: Final = {
    "active": AccountState.ACTIVE,
    "suspended": AccountState.SUSPENDED,
    "deleted": AccountState.DELETED,
}
NAMES: Final = {state: name for name, state in STATES.items()}

LOAD = """
SELECT state.epoch, state.revision, state.nonce, accounts.plan, accounts.state AS account_state
FROM state LEFT JOIN accounts ON accounts.account_id = $1
"""

LOAD_PROJECT = """
SELECT state.epoch, state.revision, state.nonce, projects.account_id
FROM state LEFT JOIN projects ON projects.project_id = $1
"""

READ = """
SELECT account_id, display_name, plan, state, create_time, update_time, live_tokens, revision
FROM accounts WHERE account_id = $1
"""

LIST = """
SELECT account_id, display_name, plan, state, create_time, update_time, live_tokens, revision
FROM accounts WHERE account_id > $1 ORDER BY account_id LIMIT $2
"""

# No row: somebody else made the account at the same time, which no row lock could keep out.
INSERT = """
INSERT INTO accounts (account_id, display_name, plan, state, create_time, update_time, revision)
VALUES ($1, $2, $3, 'active', $4, $4, 0)
ON CONFLICT (account_id) DO NOTHING
RETURNING account_id, display_name, plan, state, create_time, update_time, live_tokens, revision
"""

UPDATE = """
UPDATE accounts SET display_name = $2, plan = $3, update_time = $4
WHERE account_id = $1
RETURNING account_id, display_name, plan, state, create_time, update_time, live_tokens, revision
"""

SET_STATE = """
UPDATE accounts SET state = $2, update_time = $3
WHERE account_id = $1
RETURNING account_id, display_name, plan, state, create_time, update_time, live_tokens, revision
"""

READ_PROJECT = "SELECT project_id, account_id, display_name, create_time FROM projects WHERE project_id = $1"

LIST_PROJECTS = """
SELECT project_id, account_id, display_name, create_time
FROM projects WHERE account_id = $1 AND project_id > $2 ORDER BY project_id LIMIT $3
"""

# No row: the project is another account's. It never moves.
UPSERT_PROJECT = """
INSERT INTO projects AS former (project_id, account_id, display_name, create_time)
VALUES ($1, $2, $3, $4)
ON CONFLICT (project_id) DO UPDATE SET display_name = excluded.display_name
    WHERE former.account_id = excluded.account_id
RETURNING project_id, account_id, display_name, create_time
"""

FIND_PROJECTS = "SELECT project_id FROM projects WHERE account_id = $1 AND project_id = ANY($2::text[])"


@dataclass(frozen=True, slots=True)
class LoadedAccount:
    """What was found (`plan` and `state` None: no such account), and the log's position of the same moment."""

    epoch: int
    number: int
    nonce: bytes
    plan: str | None
    state: AccountState | None


@dataclass(frozen=True, slots=True)
class LoadedProject:
    """The project's account (None: no such project), and the log's position of the same moment."""

    epoch: int
    number: int
    nonce: bytes
    account_id: str | None


async def load(connection: Connection, account_id: str) -> LoadedAccount:
    """The account's plan and state, and the log's position, in one snapshot."""
    row = await connection.fetchrow(LOAD, account_id)
    if row is None:
        raise unseeded()
    state = None if row["account_state"] is None else STATES[row["account_state"]]
    return LoadedAccount(row["epoch"], row["revision"], row["nonce"], row["plan"], state)


async def load_project(connection: Connection, project_id: str) -> LoadedProject:
    """The project's account, and the log's position, in one snapshot."""
    row = await connection.fetchrow(LOAD_PROJECT, project_id)
    if row is None:
        raise unseeded()
    return LoadedProject(row["epoch"], row["revision"], row["nonce"], row["account_id"])


async def read(connection: Connection, account_id: str) -> Account | None:
    """The account's record; under its lock (`tx.connection`) it stays as read until COMMIT."""
    row = await connection.fetchrow(READ, account_id)
    return None if row is None else _account(row)


async def list_page(connection: Connection, page: Page) -> list[Account]:
    """A page of all accounts, by id. The key of a row, for `Page.after`, is `(account_id,)`."""
    after = "" if page.after is None else page.after[0]
    return [_account(row) for row in await connection.fetch(LIST, after, page.size)]


async def upsert_account(
    tx: Transaction, before: Account | None, account_id: str, display_name: str, plan: str
) -> Account:
    """Makes the account, or renames it and sets its plan; `before` is what was read of it in this transaction.

    `revision` of what is returned is not this change's yet: that is `Committed.revision`.
    """
    row = await tx.connection.fetchrow(INSERT if before is None else UPDATE, account_id, display_name, plan, tx.now)
    if row is None:
        raise StartOver("the account was made at the same time")
    tx.wrote_account(account_id)
    return _account(row)


async def set_state(tx: Transaction, account_id: str, state: AccountState) -> Account:
    """Gives the account, which must exist, this state. No token is written: a check looks at its account too.

    `revision` of what is returned is not this change's yet: that is `Committed.revision`.
    """
    row = await tx.connection.fetchrow(SET_STATE, account_id, NAMES[state], tx.now)
    if row is None:
        raise StartOver("the account is not there")
    tx.wrote_account(account_id)
    return _account(row)


async def read_project(connection: Connection, project_id: str) -> Project | None:
    """The project's record, whosever it is."""
    row = await connection.fetchrow(READ_PROJECT, project_id)
    return None if row is None else _project(row)


async def list_projects_page(connection: Connection, account_id: str, page: Page) -> list[Project]:
    """A page of the account's projects, by id. The key of a row, for `Page.after`, is `(project_id,)`."""
    after = "" if page.after is None else page.after[0]
    return [_project(row) for row in await connection.fetch(LIST_PROJECTS, account_id, after, page.size)]


async def upsert_project(tx: Transaction, account_id: str, project_id: str, display_name: str) -> Project | None:
    """Makes the project or renames it; None, and nothing is written, if it is another account's."""
    row = await tx.connection.fetchrow(UPSERT_PROJECT, project_id, account_id, display_name, tx.now)
    if row is None:
        return None
    tx.wrote = True
    return _project(row)


async def find_projects(connection: Connection, account_id: str, project_ids: Collection[str]) -> frozenset[str]:
    """Which of `project_ids` are the account's."""
    rows = await connection.fetch(FIND_PROJECTS, account_id, list(project_ids))
    return frozenset(row["project_id"] for row in rows)


def _account(row: asyncpg.Record) -> Account:
    return Account(
        account_id=row["account_id"],
        display_name=row["display_name"],
        plan=row["plan"],
        state=STATES[row["state"]],
        create_time=row["create_time"],
        update_time=row["update_time"],
        revision=row["revision"],
        live_tokens=row["live_tokens"],
    )


def _project(row: asyncpg.Record) -> Project:
    return Project(row["project_id"], row["account_id"], row["display_name"], row["create_time"])
