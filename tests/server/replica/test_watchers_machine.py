"""No watcher says yes from before a change that has returned, whatever order things happen in (design section 7, Watchers).

A naive world around one replica's real `Holding` and `Watchers`: a log of changes, a revoker who waits for rows or for the
hold, and watchers that do what the contract tells them. Messages are in order, late or lost; clocks run at the ends of what
the design assumes. What a watcher may still hold is known here by the number of the state that it came from.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from doorward.core.token_table import Tables
from doorward_server.errors import Exhausted, Unavailable
from doorward_server.replica.holding import Holding
from doorward_server.replica.timing import Signal
from doorward_server.replica.watch_messages import Evict, Grant, UnrecognizedSnapshot
from tests.support.stepped import SteppedClock, SteppedTiming

if TYPE_CHECKING:
    from doorward_server.replica.watch_messages import Taken
    from doorward_server.replica.watch_session import Session

HOLD_MS: Final = 1_000
# Clocks of the replica and the revoker are fast, those of watchers slow: as far apart as the design lets them be.
FAST, SLOW = 1.1, 0.9
# What a snapshot of each token holds.
KEYS: Final = {"x": ("token:x", "account:a"), "y": ("token:y",)}
SUBJECTS: Final = ("token:x", "token:x", "token:y", "account:a", "token:z")

# What may happen, as often as it is worth a try. One rule draws from all of it: of several rules hypothesis leaves some out
# for a whole run, and then most runs had no change, or nothing that went wrong.
STEPS: Final[tuple[tuple[str, *tuple[Any, ...]], ...]] = (
    *(("commit", subject) for subject in SUBJECTS),
    *[("apply",)] * 4,
    *(("renew", late_ms) for late_ms in (0, 0, 100, 500)),
    *(("pass_time", ms) for ms in (10, 100, 240, 300, 500)),
    *(("write", which) for which in (0, 0, 0, 1)),
    *(("deliver", which) for which in (0, 0, 0, 0, 1)),
    *(("ask", which) for which in (0, 0, 1)),
    *(("resolve", which, token_id) for which in (0, 1) for token_id in KEYS),
    *(("forget", 0, token_id) for token_id in KEYS),
    *(("end", which, how) for which in (0, 1) for how in ("goodbye", "the replica", "the watcher")),
    ("open",),
    ("register_anew",),
)


class Model:
    """One watcher: what it holds, until when it may use that, and what is on its way to it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.entries: dict[str, int] = {}
        self.end_ms = -1.0
        self.asks: dict[int, float] = {}
        self.coming: list[Taken] = []
        self.sequence = 0
        self.is_open = True
        self.was_told: set[str] = set()

    def give_up(self) -> None:
        """Its stream has ended, as far as it knows."""
        self.is_open = False
        self.entries, self.end_ms, self.asks, self.coming = {}, -1.0, {}, []


class Row:
    """A replica's row: the newest revision that it reports."""

    def __init__(self, reported: int) -> None:
        self.reported = reported


class Change:
    """A change, and what is waited for. `c0_ms` is the revoker's clock when it had read the rows."""

    def __init__(self, subject: str, rows: list[Row], c0_ms: float) -> None:
        self.subject = subject
        self.rows = rows
        self.c0_ms = c0_ms


class CountedSignal(Signal):
    """One that tells how often it woke."""

    def __init__(self) -> None:
        super().__init__()
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1
        super().wake()


class WatchedReplica(RuleBasedStateMachine):
    """One replica, its watchers and a revoker.

    Left out are delays that take nothing away from other runs, as in the model (`red`): what a watcher sends arrives at once,
    and so does a report.
    """

    def __init__(self) -> None:
        super().__init__()
        self.true_ms = 0.0
        self.clock = SteppedClock()
        self.holding = Holding(
            SteppedTiming(self.clock), hold_ms=HOLD_MS, tables=Tables(100), proofs=100, max_watchers=3
        )
        self.holding.moved = self.moved = CountedSignal()
        self.watchers = self.holding.watchers
        self.log: list[Change] = []
        self.rows: list[Row] = []
        self.models: list[Model] = []
        self.asked = 0

    @initialize(begins_late=st.booleans())
    def begin(self, begins_late: bool) -> None:
        """A session holds both tokens, under a sub-lease unless it begins late."""
        self.register()
        self.renew(0)
        self.open()
        model = self.models[0]
        self.settle(model)
        for token_id in KEYS:
            self.resolve(0, token_id)
        if not begins_late:
            self.ask(0)
        self.settle(model)

    def settle(self, model: Model) -> None:
        """Everything that waits is taken and acknowledged."""
        while model.session.waiting:
            self.write(self.models.index(model))
            self.deliver(self.models.index(model))

    @rule(step=st.sampled_from(STEPS))
    def happens(self, step: tuple[str, *tuple[Any, ...]]) -> None:
        """The next step."""
        getattr(self, step[0])(*step[1:])

    # ---- the replica's own side

    def register(self) -> None:
        """With an empty cache, and a row of its own."""
        self.holding.registered(f"r{len(self.rows)}", 1, len(self.log), nonce(len(self.log)))
        self.rows.append(Row(len(self.log)))

    def register_anew(self) -> None:
        """Its row was pruned, or its log has a gap."""
        self.holding.begin_anew("test")
        self.register()

    def renew(self, late_ms: int) -> None:
        """A renewal that was sent a while ago, and reached the database just now."""
        t0_ns = self.clock.now_ns() - late_ms * 1_000_000
        self.holding.renewed(t0_ns, len(self.log), nonce(len(self.log)), 1_000_000)

    def apply(self) -> None:
        """The next change, if there is one."""
        if self.holding.applied == len(self.log):
            return
        number = self.holding.applied + 1
        self.holding.apply(number, nonce(number), (self.log[number - 1].subject,))

    def pass_time(self, ms: int) -> None:
        self.true_ms += ms
        self.clock.advance(ms * FAST)
        self.watchers.look()

    def commit(self, subject: str) -> None:
        self.log.append(Change(subject, list(self.rows), self.true_ms * FAST))

    # ---- streams

    def open(self) -> None:
        with contextlib.suppress(Exhausted):
            self.models.insert(0, Model(self.watchers.open("operator:o")))

    def write(self, which: int) -> None:
        """The replica puts the next message on the wire."""
        model = self._model(which)
        taken = None if model is None else self.watchers.take(model.session)
        if model is not None and taken is not None and model.is_open:
            model.coming.append(taken)

    def deliver(self, which: int) -> None:
        """The watcher takes the next message, applies it, and then acknowledges."""
        model = self._model(which)
        if model is None or not model.coming:
            return
        taken = model.coming.pop(0)
        assert taken.sequence == model.sequence + 1
        model.sequence = taken.sequence
        match taken.body:
            case Evict():
                assert set(taken.body.keys) <= model.was_told
                for key in taken.body.keys:
                    model.entries.pop(key, None)
            case UnrecognizedSnapshot():
                for key in KEYS[taken.body.token_id]:
                    model.entries[key] = taken.number
                    model.was_told.add(key)
            case Grant():
                t0_ms = model.asks.pop(taken.body.ask, None)
                if t0_ms is not None:
                    model.end_ms = max(model.end_ms, t0_ms + taken.body.length_ns / 1e6)
        # Also when the replica has just ended the session: what is on its way is still read.
        before, woken = self.watchers.reportable(), self.moved.wakes
        self.watchers.acknowledge(model.session, 1, taken.number)
        assert self.moved.wakes > woken or self.watchers.reportable() == before, "whoever reports must look again"

    def ask(self, which: int) -> None:
        model = self._model(which)
        if model is not None and model.is_open:
            self.asked += 1
            model.asks[self.asked] = self.true_ms * SLOW
            self.watchers.grant(model.session, self.asked)

    def resolve(self, which: int, token_id: str) -> None:
        model = self._model(which)
        if model is not None and model.is_open and model.session.is_open:
            with contextlib.suppress(Unavailable):
                self.watchers.snapshot(model.session, UnrecognizedSnapshot(0, token_id), KEYS[token_id])

    def forget(self, which: int, token_id: str) -> None:
        model = self._model(which)
        if model is not None and model.is_open:
            for key in KEYS[token_id]:
                model.entries.pop(key, None)
            self.watchers.forget(model.session, KEYS[token_id], model.sequence)

    def end(self, which: int, how: str) -> None:
        """A stream ends: with a goodbye, or one of the two notices and the other does not."""
        model = self._model(which)
        if model is None:
            return
        if how != "the replica":
            model.give_up()
        if how == "goodbye" and model.session.is_open:
            self.watchers.goodbye(model.session, model.session.session_id)
        elif how == "the replica":
            self.watchers.end(model.session, None)

    # ---- what is promised

    @invariant()
    def nobody_says_yes_from_before_a_change_that_returned(self) -> None:
        if not self.rows:
            return
        row = self.rows[-1]
        row.reported = max(row.reported, self.watchers.reportable())
        returned = [(number, change.subject) for number, change in enumerate(self.log, 1) if self._has_returned(number)]
        for model in self.models:
            if self.true_ms * SLOW < model.end_ms:
                for key, state in model.entries.items():
                    late = [number for number, subject in returned if subject == key and number > state]
                    assert not late, f"{key} of state {state} is used, and change {late} has returned"

    def _has_returned(self, number: int) -> bool:
        change = self.log[number - 1]
        is_over = self.true_ms * FAST >= change.c0_ms + HOLD_MS
        return is_over or all(row.reported >= number for row in change.rows)

    def _model(self, which: int) -> Model | None:
        return self.models[which] if which < len(self.models) else None


def nonce(number: int) -> bytes:
    return str(number).encode()


TestWatchedReplica = WatchedReplica.TestCase
TestWatchedReplica.settings = settings(max_examples=1_000, stateful_step_count=25, deadline=None)
