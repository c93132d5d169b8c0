"""Brings into memory what a check misses: shared loads behind fences (design section 7, Load).

A load reads one thing and the log's position in one snapshot. It is used only if nothing that touches it was applied since
it began, and only once everything up to its snapshot is applied; else it serves nobody and whoever waited starts again.
Nothing is handed over here: whoever awaited a load looks the entry up anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import structlog

from doorward.core.catalog import Catalog
from doorward.core.entries import account_entry, operator_entry, token_entry
from doorward.core.matrix import compile_token
from doorward.core.token_table import CATALOG_KEY, UNKNOWN, Admission, FencedTable, Load, Unknown
from doorward_server import failpoints, metrics
from doorward_server.catalog.load import load_catalog
from doorward_server.errors import Refused, Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.storage import accounts, operators, state, tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward.core.entries import AccountEntry, OperatorEntry, TokenEntry
    from doorward.core.secret import Secret
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.tasks import Tasks
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Caches", "Missing", "account_of", "entry_of", "operator_of"]

log = structlog.get_logger()
V = TypeVar("V")
L = TypeVar("L", bound="_Positioned")

# Loads under way at once: beyond that the pool's queue alone would outlast every caller's deadline.
MAX_LOADS: Final = 1000


class Missing(NamedTuple):
    """What a check needs and does not find in memory. `secret`: only bcrypt can say whether it is the key's."""

    kind: str
    key: str
    secret: Secret | None = None


def entry_of(stored: tokens.StoredToken) -> TokenEntry:
    """The token as it is kept in memory, not compiled yet."""
    return token_entry(
        stored.token_id,
        stored.account_id,
        revoked=stored.revoked,
        disabled=stored.disabled,
        expire_us=stored.expire_us,
        secrets=stored.secrets,
        grants=stored.grants,
    )


def account_of(stored: tokens.StoredToken) -> AccountEntry:
    """The account of the token, from the same snapshot."""
    return account_entry(stored.account_id, stored.plan, stored.account_state)


def operator_of(stored: operators.StoredOperator) -> OperatorEntry:
    """The operator as it is kept in memory; an operator's secret has one version."""
    secret = (1, stored.digest, stored.pepper_id, None)
    return operator_entry(
        stored.operator_id, stored.role.name, revoked=stored.revoked, expire_us=stored.expire_us, secrets=(secret,)
    )


class _Positioned(Protocol):
    """What every load of `storage` answers with: where in the log its snapshot was taken."""

    @property
    def epoch(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def nonce(self) -> bytes: ...


class Caches:
    """Loads tokens, accounts, projects, operators and the catalog, each at most once at a time."""

    def __init__(self, holding: Holding, database: Database, tasks: Tasks) -> None:
        self._holding = holding
        self._database = database
        self._tasks = tasks
        self._loads: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._kinds: dict[str, Callable[[str], Awaitable[None]]] = {
            "token": self._load_token,
            "account": self._load_account,
            "project": self._load_project,
            "operator": self._load_operator,
            "catalog": self._load_catalog,
        }

    async def fill(self, kind: str, key: str) -> None:
        """Waits for one load, begun by whoever asked first. What came of it is in the tables, or not: look again.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE, the database did not answer or too much is being read at once.
        """
        load = self._loads.get((kind, key))
        if load is None:
            if len(self._loads) >= MAX_LOADS:
                metrics.LOADS.labels(kind, "refused").inc()
                raise Unavailable("DATABASE_UNAVAILABLE", "too much is being read from the database at once; try again")
            load = self._tasks.start(self._begin(kind, key))
            self._loads[kind, key] = load
            load.add_done_callback(lambda _: self._loads.pop((kind, key), None))
        # The load outlives whoever asked first.
        await asyncio.shield(load)

    def compile(self, entry: TokenEntry, account: AccountEntry, catalog: Catalog) -> None:
        """Puts `entry`, compiled for this catalog and plan, in its own place."""
        self._holding.tables.tokens.replace(entry[0], entry, compile_token(entry, catalog, account[1]))

    @property
    def loading(self) -> int:
        """How many loads are under way."""
        return len(self._loads)

    async def _begin(self, kind: str, key: str) -> None:
        outcome = "failed"
        try:
            await self._kinds[kind](key)
            outcome = "read"
        except Refused:
            outcome = "refused"
            raise
        finally:
            metrics.LOADS.labels(kind, outcome).inc()

    async def _load_token(self, token_id: str) -> None:
        tables = self._holding.tables

        def install(admit: Callable[[TokenEntry | Unknown], Admission], loaded: tokens.LoadedToken) -> Admission:
            if loaded.token is None:
                return admit(UNKNOWN)
            entry, account = entry_of(loaded.token), account_of(loaded.token)
            catalog = tables.catalogs.get(CATALOG_KEY)
            admission = admit(compile_token(entry, catalog, account[1]) if isinstance(catalog, Catalog) else entry)
            if admission is Admission.INSTALLED:
                tables.accounts.put_beside(account[0], account)
            return admission

        await self._load(tables.tokens, token_id, lambda c: tokens.load(c, token_id), install)

    async def _load_account(self, account_id: str) -> None:
        await self._load(
            self._holding.tables.accounts,
            account_id,
            lambda c: accounts.load(c, account_id),
            lambda admit, loaded: admit(
                UNKNOWN
                if loaded.plan is None or loaded.state is None
                else account_entry(account_id, loaded.plan, loaded.state)
            ),
        )

    async def _load_project(self, project_id: str) -> None:
        await self._load(
            self._holding.tables.projects,
            project_id,
            lambda c: accounts.load_project(c, project_id),
            lambda admit, loaded: admit(UNKNOWN if loaded.account_id is None else loaded.account_id),
        )

    async def _load_operator(self, operator_id: str) -> None:
        await self._load(
            self._holding.tables.operators,
            operator_id,
            lambda c: operators.load(c, operator_id),
            lambda admit, loaded: admit(UNKNOWN if loaded.operator is None else operator_of(loaded.operator)),
        )

    async def _load_catalog(self, key: str) -> None:
        await self._load(
            self._holding.tables.catalogs,
            key,
            state.load_catalog,
            lambda admit, loaded: admit(load_catalog(loaded.toml, loaded.version)),
        )

    async def _load(
        self,
        table: FencedTable[V],
        key: str,
        read: Callable[[Connection], Awaitable[L]],
        install: Callable[[Callable[[V | Unknown], Admission], L], Admission],
    ) -> None:
        holding = self._holding
        if holding.history.applied is None:
            raise Unavailable("NO_LEASE", "this replica has not registered yet")
        load = table.begin(key, holding.history)
        try:
            await failpoints.reach(Failpoint.LOAD_BEFORE_SNAPSHOT)
            async with self._database.reading() as connection:
                loaded = await read(connection)
            await failpoints.reach(Failpoint.LOAD_AFTER_SNAPSHOT)
            await self._applied_up_to(loaded.number, load)
            await failpoints.reach(Failpoint.LOAD_BEFORE_INSTALL)
            # No await until the entry is in the table.
            admission = install(
                lambda value: table.admit(load, value, loaded.epoch, loaded.number, loaded.nonce, holding.history),
                loaded,
            )
            if admission is Admission.FOREIGN:
                log.warning("load_from_another_history", revision=f"{loaded.epoch}.{loaded.number}")
                await self._database.expire()
        finally:
            table.abandon(load)

    async def _applied_up_to(self, number: int, load: Load) -> None:
        holding = self._holding

        def is_settled() -> bool:
            return load.stale or load.generation != holding.history.generation or holding.applied >= number

        try:
            async with asyncio.timeout(holding.hold_ms / 1000):
                await holding.moved.until(is_settled)
        except TimeoutError:
            raise Unavailable(
                "REVISION_NOT_REACHED",
                "this replica lags behind the database; try again",
                metadata={"revision": f"{holding.history.epoch}.{number}"},
            ) from None
