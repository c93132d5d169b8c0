"""The caches of a replica or watcher, and the fences that keep what a load brings from being older than what was applied.

A load reads an object and the log's position in one snapshot. Between its start and its return changes are applied here;
one that touches what the load reads makes it stale. `admit` decides, in one step, what becomes of a load that returned:
it is installed only if it belongs to this generation and this history, if its position has been applied, and if no change
touched it meanwhile. "Unknown" is a result like any other, fenced alike.

Only values and bookkeeping: no await, no clock, no I/O. One thread writes; `get` only reads. Called by the feed
(`Tables.apply`), by registration (`Tables.clear`) and by whoever loads (design section 7: Apply, Load).
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final, Generic, TypeAlias, TypeVar

from doorward.core.catalog import Catalog
from doorward.core.entries import AccountEntry, OperatorEntry, TokenEntry
from doorward.core.history import History
from doorward.core.second_chance import SecondChanceMap

V = TypeVar("V")

CATALOG_KEY: Final = ""  # of the only entry of `Tables.catalogs`; its subject is "catalog:"


class Unknown(Enum):
    """What is remembered of a key that the database does not have."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN


class Admission(Enum):
    """What became of a load that returned."""

    INSTALLED = "installed"  # it is in the table, serve its waiters
    NOT_YET = "not_yet"  # its position is not applied yet: it stays in flight, wait for that and ask again
    FENCED = "fenced"  # serve nobody; it is no longer in flight, waiters start again
    FOREIGN = "foreign"  # the same, and close the connection: it read another history


class Load:
    """A load in flight: what was true when it began, and whether a change has touched it since."""

    __slots__ = ("applied_number", "generation", "key", "stale")

    def __init__(self, key: str, generation: int, applied_number: int) -> None:
        self.key = key
        self.generation = generation
        self.applied_number = applied_number
        self.stale = False


class FencedTable(Generic[V]):
    """At most `capacity` values and `unknown_capacity` unknown keys, and at most one load in flight for each key."""

    __slots__ = ("_loads", "_look_up", "_touch", "_unknown", "_values")

    def __init__(self, capacity: int, unknown_capacity: int) -> None:
        self._values: SecondChanceMap[str, V] = SecondChanceMap(capacity)
        self._look_up, self._touch = self._values.look_up, self._values.touch
        self._unknown: SecondChanceMap[str, Unknown] = SecondChanceMap(unknown_capacity)
        self._loads: dict[str, Load] = {}

    def __len__(self) -> int:
        return len(self._values)

    @property
    def unknown_count(self) -> int:
        """How many unknown keys are remembered."""
        return len(self._unknown)

    @property
    def load_count(self) -> int:
        """How many loads are in flight."""
        return len(self._loads)

    def get(self, key: str) -> V | Unknown | None:
        """The value, UNKNOWN if the database is known not to have it, or None: load it. Only reads."""
        value = self._look_up(key)
        if value is None:
            return self._unknown.find(key)
        self._touch(key)
        return value

    def in_flight(self, key: str) -> Load | None:
        """The load in flight for this key, also a stale one, or None."""
        return self._loads.get(key)

    def begin(self, key: str, history: History) -> Load:
        """Notes that a load of this key begins now; the snapshot is to be taken after this call.

        Raises:
            RuntimeError: one is in flight already, or nothing has been applied yet (before the first registration).
        """
        if key in self._loads:
            raise RuntimeError("a load of this key is in flight")
        if history.applied is None:
            raise RuntimeError("no load begins before a registration")
        load = self._loads[key] = Load(key, history.generation, history.applied.number)
        return load

    def admit(
        self, load: Load, value: V | Unknown, epoch: int, number: int, nonce: bytes, history: History
    ) -> Admission:
        """Installs what a load brought, which its snapshot read at this position, if nothing speaks against it."""
        admission = self._judge(load, epoch, number, nonce, history)
        if admission is Admission.NOT_YET:
            return admission
        self.abandon(load)
        if admission is Admission.INSTALLED:
            self._install(load.key, value)
        return admission

    def abandon(self, load: Load) -> None:
        """Takes a load out of flight, because it failed or will not be asked about again; a repeat does nothing."""
        if self._loads.get(load.key) is load:
            del self._loads[load.key]

    def replace(self, key: str, old: V, new: V) -> bool:
        """Puts new, made from old, in its place if old itself is still there; returns whether it was."""
        if self._values.peek(key) is not old:
            return False
        self._values.put(key, new)
        return True

    def evict(self, key: str) -> None:
        """A change touched this key: its value or its being unknown goes, and a load in flight becomes stale."""
        self._values.pop(key)
        self._unknown.pop(key)
        load = self._loads.get(key)
        if load is not None:
            load.stale = True

    def fence_all(self) -> None:
        """Makes every load in flight stale."""
        for load in self._loads.values():
            load.stale = True

    def clear(self) -> None:
        """Empties the table and makes every load in flight stale."""
        self._values.clear()
        self._unknown.clear()
        self.fence_all()

    def put_beside(self, key: str, value: V) -> None:
        """Installs what was read in the same snapshot as a load that was just INSTALLED, in the same step as that.

        Only for what every change to it would have fenced that load for: a token's account (`Tables.apply`).
        """
        self._install(key, value)

    def _judge(self, load: Load, epoch: int, number: int, nonce: bytes, history: History) -> Admission:
        if self._loads.get(load.key) is not load or load.generation != history.generation or history.applied is None:
            return Admission.FENCED
        if history.contradicts(epoch, number, nonce, not_below=load.applied_number):
            return Admission.FOREIGN
        if load.stale:
            return Admission.FENCED
        if number > history.applied.number:
            return Admission.NOT_YET
        # A position so old that its nonce is forgotten proves nothing either way.
        return Admission.INSTALLED if history.holds(number, nonce) else Admission.FENCED

    def _install(self, key: str, value: V | Unknown) -> None:
        if isinstance(value, Unknown):
            self._values.pop(key)
            self._unknown.put(key, value)
        else:
            self._unknown.pop(key)
            self._values.put(key, value)


_AnyTable: TypeAlias = (
    FencedTable[TokenEntry]
    | FencedTable[AccountEntry]
    | FencedTable[str]
    | FencedTable[OperatorEntry]
    | FencedTable[Catalog]
)


class Tables:
    """Everything a process caches of the database, and what each change takes out of it."""

    __slots__ = ("_by_kind", "accounts", "catalogs", "operators", "projects", "tokens")

    def __init__(self, capacity: int = 100_000, unknown_capacity: int = 10_000) -> None:
        """`capacity` bounds the tokens, and each of the other tables too; `unknown_capacity` the unknown keys of each."""
        self.tokens: FencedTable[TokenEntry] = FencedTable(capacity, unknown_capacity)
        self.accounts: FencedTable[AccountEntry] = FencedTable(capacity, unknown_capacity)
        self.projects: FencedTable[str] = FencedTable(capacity, unknown_capacity)
        self.operators: FencedTable[OperatorEntry] = FencedTable(capacity, unknown_capacity)
        self.catalogs: FencedTable[Catalog] = FencedTable(1, 1)
        self._by_kind: dict[str, _AnyTable] = {
            "token": self.tokens,
            "account": self.accounts,
            "project": self.projects,
            "operator": self.operators,
            "catalog": self.catalogs,
        }

    def apply(self, subjects: Sequence[str]) -> None:
        """Takes out what a change touched, by its typed subjects: `token:<id>`, `account:<id>`, … `catalog:`.

        Not known yet of a token's load is whose account it will bring, so an account makes all of those stale. A subject
        of an unknown kind, which a newer server may have written, empties everything.
        """
        for subject in subjects:
            kind, colon, key = subject.partition(":")
            table = self._by_kind.get(kind) if colon else None
            if table is None:
                self.clear()
                return
            table.evict(key)
            if kind == "account":
                self.tokens.fence_all()

    def clear(self) -> None:
        """Empties every table and makes every load in flight stale."""
        for table in self._by_kind.values():
            table.clear()
