"""The fences, beside a naive model of log, snapshots and loads; and what each subject takes out of the tables."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from doorward.core.catalog import Catalog
from doorward.core.entries import TokenEntry, account_entry, operator_entry, token_entry
from doorward.core.history import History
from doorward.core.token_table import CATALOG_KEY, UNKNOWN, Admission, FencedTable, Load, Tables, Unknown

KEYS = ("a", "b", "c")


@dataclass
class Change:
    """One entry of the log: whom it touched, and what the database holds from it on. Absent keys are unknown."""

    nonce: bytes
    touched: frozenset[str]
    content: dict[str, str]


@dataclass
class NaiveLoad:
    """What a load really was, kept apart from what the table knows of it."""

    load: Load
    generation: int
    applied_at_begin: int
    touched_since: bool = False
    snapshot: tuple[int, int, bytes, str | Unknown] | None = None  # epoch, number, nonce, value
    is_foreign: bool = field(default=False)


class FencedTableBesideTheLog(RuleBasedStateMachine):
    """The promise: what `get` says of a key is what the database holds of it at the applied position, or None."""

    @initialize(capacity=st.integers(1, 4), unknown_capacity=st.integers(1, 3), tail_length=st.integers(2, 6))
    def start(self, capacity: int, unknown_capacity: int, tail_length: int) -> None:
        self.capacity, self.unknown_capacity, self.tail_length = capacity, unknown_capacity, tail_length
        self.table: FencedTable[str] = FencedTable(capacity, unknown_capacity)
        self.history = History(tail_length)
        self.epoch = 1
        self.log = [Change(b"nonce 1.0", frozenset(), {"a": "a@0", "b": "b@0"})]
        self.applied = 0
        self.started_at = 0
        self.generation = 0
        self.loads: dict[str, NaiveLoad] = {}
        self.register()

    # ---- the database and the feed

    @rule(touched=st.frozensets(st.sampled_from(KEYS)), removes=st.booleans())
    def commit(self, touched: frozenset[str], removes: bool) -> None:
        number = len(self.log)
        content = {key: value for key, value in self.log[-1].content.items() if key not in touched}
        content |= {} if removes else {key: f"{key}@{self.epoch}.{number}" for key in touched}
        self.log.append(Change(b"nonce %d.%d" % (self.epoch, number), touched, content))

    @rule(touched=st.frozensets(st.sampled_from(KEYS), min_size=1), removes=st.booleans())
    def commit_and_apply_all(self, touched: frozenset[str], removes: bool) -> None:
        self.commit(touched, removes)
        while self.applied < len(self.log) - 1:
            self.apply(fences_all=False)

    @precondition(lambda self: self.applied < len(self.log) - 1)
    @rule(fences_all=st.sampled_from([False, False, True]))
    def apply(self, fences_all: bool) -> None:
        self.applied += 1
        change = self.log[self.applied]
        for key in sorted(change.touched):
            self.table.evict(key)
        if fences_all:
            self.table.fence_all()
        self.history.append(self.applied, change.nonce)
        for key, naive in self.loads.items():
            naive.touched_since |= fences_all or key in change.touched

    @precondition(lambda self: self.applied >= self.started_at + 3)  # seldom, for it voids every load
    @rule()
    def register(self) -> None:
        self.applied = self.started_at = len(self.log) - 1
        self.generation += 1
        self.history.start(self.epoch, self.applied, self.log[self.applied].nonce)
        self.table.clear()

    @precondition(lambda self: self.applied >= self.started_at + 5)
    @rule()
    def another_history_takes_over(self) -> None:
        """A restore: an earlier state under a new epoch, and this process registers anew."""
        self.epoch += 1
        del self.log[len(self.log) // 2 + 1 :]
        for number, change in enumerate(self.log):
            change.nonce = b"nonce %d.%d" % (self.epoch, number)
        self.register()

    # ---- loads

    def keys_with(self, *, snapshot: bool) -> list[str]:
        return [key for key, naive in self.loads.items() if (naive.snapshot is not None) is snapshot]

    @rule(key=st.sampled_from(KEYS))
    def begin(self, key: str) -> None:
        if key in self.loads:
            with pytest.raises(RuntimeError, match="in flight"):
                self.table.begin(key, self.history)
        else:
            load = self.table.begin(key, self.history)
            self.loads[key] = NaiveLoad(load, self.generation, self.applied)

    @precondition(lambda self: self.keys_with(snapshot=False))
    @rule(data=st.data())
    def take_snapshot(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.keys_with(snapshot=False)))
        number = len(self.log) - 1
        value = self.log[number].content.get(key, UNKNOWN)
        self.loads[key].snapshot = (self.epoch, number, self.log[number].nonce, value)

    @rule(key=st.sampled_from(KEYS), back=st.integers(-2, 4), other=st.sampled_from(["number", "nonce", "epoch"]))
    def take_foreign_snapshot(self, key: str, back: int, other: str) -> None:
        """From a server that is behind, or that went on after it was deposed, or from before a restore."""
        if key not in self.loads:
            self.begin(key)
        naive = self.loads[key]
        begun = naive.applied_at_begin
        if other == "number":
            number = begun - 1 - abs(back)
            known = self.log[number].nonce if 0 <= number < len(self.log) else b"long ago"
            naive.snapshot = (self.epoch, number, known, "foreign")
        elif other == "nonce":
            naive.snapshot = (self.epoch, begun + back, b"another", "foreign")
        else:
            naive.snapshot = (self.epoch - 1, begun + back, b"nonce %d.%d" % (self.epoch, begun + back), "foreign")
        naive.is_foreign = True

    @rule(key=st.sampled_from(KEYS))
    def load_in_one_go(self, key: str) -> None:
        """What fills the table: nothing happens between begin and admit. It waits if changes are not applied yet."""
        if key not in self.loads:
            self.begin(key)
            value = self.log[-1].content.get(key, UNKNOWN)
            self.loads[key].snapshot = (self.epoch, len(self.log) - 1, self.log[-1].nonce, value)
            self.admit_one(key)

    def expected(self, naive: NaiveLoad) -> Admission:
        assert naive.snapshot is not None
        epoch, number, nonce, _ = naive.snapshot
        remembered = range(max(self.started_at, self.applied - self.tail_length + 1), self.applied + 1)
        if naive.generation != self.generation:
            return Admission.FENCED
        if epoch != self.epoch or number < naive.applied_at_begin:
            return Admission.FOREIGN
        if number in remembered and nonce != self.log[number].nonce:
            return Admission.FOREIGN
        if naive.touched_since:
            return Admission.FENCED
        if number > self.applied:
            return Admission.NOT_YET
        return Admission.INSTALLED if number in remembered else Admission.FENCED

    @precondition(lambda self: self.keys_with(snapshot=True))
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        self.admit_one(data.draw(st.sampled_from(self.keys_with(snapshot=True))))

    def admit_one(self, key: str) -> None:
        naive = self.loads[key]
        assert naive.snapshot is not None
        epoch, number, nonce, value = naive.snapshot
        expected = self.expected(naive)

        admission = self.table.admit(naive.load, value, epoch, number, nonce, self.history)

        assert admission is expected
        if admission is Admission.INSTALLED:
            assert not naive.is_foreign
            assert not naive.touched_since
            assert self.table.get(key) == value
        if admission is not Admission.NOT_YET:
            del self.loads[key]
            assert self.table.admit(naive.load, value, epoch, number, nonce, self.history) is Admission.FENCED

    @precondition(lambda self: self.loads)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        naive = self.loads.pop(data.draw(st.sampled_from(sorted(self.loads))))
        self.table.abandon(naive.load)
        self.table.abandon(naive.load)

    @rule(key=st.sampled_from(KEYS))
    def replace(self, key: str) -> None:
        kept = self.table.get(key)
        if isinstance(kept, str):
            again = "".join(list(kept))  # equal, and another object
            assert self.table.replace(key, kept, again)
            assert self.table.get(key) is again
            assert not self.table.replace(key, kept, "never")

    # ---- what always holds

    @invariant()
    def what_is_served_is_the_applied_state(self) -> None:
        content = self.log[self.applied].content
        for key in KEYS:
            assert self.table.get(key) in (None, content.get(key, UNKNOWN))

    @invariant()
    def nothing_exceeds_its_bound(self) -> None:
        assert len(self.table) <= self.capacity
        assert self.table.unknown_count <= self.unknown_capacity

    @invariant()
    def one_load_is_in_flight_for_each_key_that_has_one(self) -> None:
        assert self.table.load_count == len(self.loads)
        assert all(self.table.in_flight(key) is naive.load for key, naive in self.loads.items())


FencedTableBesideTheLog.TestCase.settings = settings(deadline=None, max_examples=200, stateful_step_count=60)
TestFencedTableBesideTheLog = FencedTableBesideTheLog.TestCase


# ---- each promise by itself


@pytest.fixture
def history() -> History:
    """Applied up to 5 of epoch 1; the nonces are n3 to n5."""
    history = History()
    history.start(1, 3, b"n3")
    history.append(4, b"n4")
    history.append(5, b"n5")
    return history


@pytest.fixture
def table() -> FencedTable[str]:
    return FencedTable(10, 10)


def installed(table: FencedTable[str], history: History, key: str, value: str | Unknown) -> None:
    assert table.admit(table.begin(key, history), value, 1, 5, b"n5", history) is Admission.INSTALLED


@pytest.mark.parametrize("brought", ["value", UNKNOWN])
def test_a_load_begun_before_a_change_that_touches_it_never_serves(
    table: FencedTable[str], history: History, brought: str | Unknown
) -> None:
    load = table.begin("x", history)
    table.evict("x")
    history.append(6, b"n6")

    assert table.admit(load, brought, 1, 5, b"n5", history) is Admission.FENCED
    assert table.get("x") is None
    assert table.in_flight("x") is None


def test_a_load_is_fenced_also_if_its_snapshot_has_the_change(table: FencedTable[str], history: History) -> None:
    load = table.begin("x", history)
    table.evict("x")
    history.append(6, b"n6")

    assert table.admit(load, "value", 1, 6, b"n6", history) is Admission.FENCED


def test_a_change_that_touches_another_key_fences_nothing_else(table: FencedTable[str], history: History) -> None:
    load = table.begin("x", history)
    table.evict("y")
    history.append(6, b"n6")

    assert table.admit(load, "value", 1, 5, b"n5", history) is Admission.INSTALLED


def test_a_load_waits_until_its_position_is_applied(table: FencedTable[str], history: History) -> None:
    load = table.begin("x", history)

    assert table.admit(load, "value", 1, 6, b"n6", history) is Admission.NOT_YET
    assert (table.get("x"), table.in_flight("x")) == (None, load)

    history.append(6, b"n6")
    assert table.admit(load, "value", 1, 6, b"n6", history) is Admission.INSTALLED
    assert (table.get("x"), table.in_flight("x")) == ("value", None)


@pytest.mark.parametrize(
    ("epoch", "number", "nonce"),
    [(1, 4, b"n4"), (1, 3, b"n3"), (1, 0, b"n0"), (1, 5, b"another"), (2, 5, b"n5"), (2, 9, b"n9")],
)
def test_a_load_that_read_another_history_is_foreign(
    table: FencedTable[str], history: History, epoch: int, number: int, nonce: bytes
) -> None:
    load = table.begin("x", history)

    assert table.admit(load, "value", epoch, number, nonce, history) is Admission.FOREIGN
    assert (table.get("x"), table.in_flight("x")) == (None, None)


def test_a_load_ahead_turns_out_foreign_when_its_number_is_applied(table: FencedTable[str], history: History) -> None:
    load = table.begin("x", history)
    assert table.admit(load, "value", 1, 6, b"of a deposed primary", history) is Admission.NOT_YET

    history.append(6, b"n6")

    assert table.admit(load, "value", 1, 6, b"of a deposed primary", history) is Admission.FOREIGN
    assert table.get("x") is None


def test_a_stale_load_of_another_history_is_foreign_too(table: FencedTable[str], history: History) -> None:
    load = table.begin("x", history)
    table.fence_all()

    assert table.admit(load, "value", 1, 4, b"n4", history) is Admission.FOREIGN


def test_a_load_of_an_older_generation_is_fenced(table: FencedTable[str], history: History) -> None:
    load = table.begin("x", history)
    history.start(1, 5, b"n5")

    assert table.admit(load, "value", 1, 5, b"n5", history) is Admission.FENCED
    assert table.get("x") is None


def test_a_position_whose_nonce_is_forgotten_serves_nobody(table: FencedTable[str]) -> None:
    history = History(tail_length=2)
    history.start(1, 5, b"n5")
    load = table.begin("x", history)
    history.append(6, b"n6")
    history.append(7, b"n7")

    assert table.admit(load, "value", 1, 5, b"n5", history) is Admission.FENCED
    assert table.get("x") is None


def test_an_abandoned_load_is_fenced_and_leaves_its_successor_alone(table: FencedTable[str], history: History) -> None:
    former = table.begin("x", history)
    table.abandon(former)
    successor = table.begin("x", history)

    table.abandon(former)

    assert table.in_flight("x") is successor
    assert table.admit(former, "value", 1, 5, b"n5", history) is Admission.FENCED
    assert table.in_flight("x") is successor


def test_no_load_begins_before_a_registration(table: FencedTable[str]) -> None:
    with pytest.raises(RuntimeError, match="before a registration"):
        table.begin("x", History())

    assert table.load_count == 0


def test_unknown_is_remembered_until_it_is_touched(table: FencedTable[str], history: History) -> None:
    installed(table, history, "x", UNKNOWN)
    assert table.get("x") is UNKNOWN

    table.evict("x")

    assert table.get("x") is None


def test_of_value_and_unknown_the_later_load_counts(table: FencedTable[str], history: History) -> None:
    installed(table, history, "x", UNKNOWN)
    installed(table, history, "x", "value")
    assert (table.get("x"), table.unknown_count) == ("value", 0)

    installed(table, history, "x", UNKNOWN)
    assert (table.get("x"), len(table)) == (UNKNOWN, 0)


def test_values_and_unknown_keys_are_bounded(history: History) -> None:
    table: FencedTable[str] = FencedTable(3, 2)
    for number in range(20):
        installed(table, history, f"x{number}", "value")
        installed(table, history, f"y{number}", UNKNOWN)

    assert (len(table), table.unknown_count, table.load_count) == (3, 2, 0)


def test_what_is_used_stays_when_others_come(history: History) -> None:
    table: FencedTable[str] = FencedTable(3, 3)
    installed(table, history, "used", "value")
    installed(table, history, "used unknown", UNKNOWN)

    for number in range(20):
        installed(table, history, f"x{number}", "value")
        installed(table, history, f"y{number}", UNKNOWN)
        assert (table.get("used"), table.get("used unknown")) == ("value", UNKNOWN)


def test_replace_does_nothing_once_the_entry_is_another(table: FencedTable[str], history: History) -> None:
    installed(table, history, "x", "old")
    old = table.get("x")
    assert isinstance(old, str)
    table.evict("x")
    assert not table.replace("x", old, "compiled")
    installed(table, history, "x", "newer")

    assert not table.replace("x", old, "compiled")
    assert table.get("x") == "newer"


# ---- the tables together


def a_token(token_id: str) -> TokenEntry:
    return token_entry(token_id, "acme", revoked=False, disabled=False, expire_us=None, secrets=(), grants=())


@pytest.fixture
def tables(history: History) -> Tables:
    """Full of x and y of each kind, with a load of z in flight in each table."""
    tables = Tables()
    catalog = Catalog.build(
        {
            "schema": 1,
            "version": "1",
            "project_resources": {"jobs": {"title": "Jobs", "actions": ["read"]}},
            "permission_sets": {"viewer": {"title": "Viewer", "read": ["*"]}},
            "plans": {"team": {"title": "Team", "permission_sets": ["*"]}},
        },
        1,
    )
    for key in ("x", "y"):
        tables.tokens.put_beside(key, a_token(key))
        tables.accounts.put_beside(key, account_entry(key, "team", 1))
        tables.projects.put_beside(key, "acme")
        operator = operator_entry(key, "admin", revoked=False, expire_us=None, secrets=())
        tables.operators.put_beside(key, operator)
    tables.catalogs.put_beside(CATALOG_KEY, catalog)
    for table in (tables.tokens, tables.accounts, tables.projects, tables.operators):
        table.begin("z", history)
    return tables


def gone(tables: Tables) -> set[str]:
    """The keys that are no longer there, and `kind!` for each load that became stale."""
    found = set()
    for kind in ("token", "account", "project", "operator"):
        table = getattr(tables, f"{kind}s")
        load = table.in_flight("z")
        found |= {f"{kind}:{key}" for key in ("x", "y") if table.get(key) is None}
        found |= {f"{kind}!"} if load is not None and load.stale else set()
    return found | ({"catalog:"} if tables.catalogs.get(CATALOG_KEY) is None else set())


EVERY_KEY = {f"{kind}:{key}" for kind in ("token", "account", "project", "operator") for key in ("x", "y")}
ALL_GONE = {*EVERY_KEY, "catalog:", "token!", "account!", "project!", "operator!"}


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        ([], set()),
        (["token:x"], {"token:x"}),
        (["token:z"], {"token!"}),
        (["project:x"], {"project:x"}),
        (["project:z"], {"project!"}),
        (["operator:y"], {"operator:y"}),
        (["operator:z"], {"operator!"}),
        (["account:x"], {"account:x", "token!"}),
        (["account:z"], {"account!", "token!"}),
        (["account:nobody"], {"token!"}),
        (["catalog:"], {"catalog:"}),
        (["token:x", "token:y", "project:y"], {"token:x", "token:y", "project:y"}),
        (["token:a:b"], set()),
        (["webhook:x"], ALL_GONE),
        (["token:x", "webhook:x"], ALL_GONE),
        (["token"], ALL_GONE),
        ([""], ALL_GONE),
        ([":x"], ALL_GONE),
        (["TOKEN:x"], ALL_GONE),
    ],
)
def test_a_change_takes_out_what_it_touched(tables: Tables, subjects: list[str], expected: set[str]) -> None:
    tables.apply(subjects)

    assert gone(tables) == expected


def test_clear_empties_every_table_and_fences_every_load(tables: Tables) -> None:
    tables.clear()

    assert gone(tables) == ALL_GONE


def test_a_catalog_load_in_flight_is_fenced_by_a_change_of_the_catalog(history: History) -> None:
    tables = Tables()
    load = tables.catalogs.begin(CATALOG_KEY, history)

    tables.apply(["catalog:"])

    assert load.stale


def test_an_account_put_beside_its_token_is_there_until_it_is_touched(tables: Tables, history: History) -> None:
    load = tables.tokens.begin("new", history)
    assert tables.tokens.admit(load, a_token("new"), 1, 5, b"n5", history) is Admission.INSTALLED

    tables.accounts.put_beside("acme", account_entry("acme", "team", 1))

    assert tables.accounts.get("acme") == ("acme", "team", 1)
    tables.apply(["account:acme"])
    assert tables.accounts.get("acme") is None


def test_each_table_has_the_bounds_that_were_asked_for(history: History) -> None:
    tables = Tables(capacity=2, unknown_capacity=1)
    for number in range(5):
        for kind in (tables.tokens, tables.accounts, tables.projects, tables.operators):
            unknown = kind.begin(f"u{number}", history)
            assert kind.admit(unknown, UNKNOWN, 1, 5, b"n5", history) is Admission.INSTALLED
        tables.tokens.put_beside(str(number), a_token(str(number)))

    assert len(tables.tokens) == 2
    tables_of = (tables.tokens, tables.accounts, tables.projects, tables.operators)
    assert [table.unknown_count for table in tables_of] == [1, 1, 1, 1]
