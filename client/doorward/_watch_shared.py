"""What a `LocalAuthorizer` of either dialect knows and does alike: the warm check, the session's bookkeeping, who waits.

`core.watcher` decides; the dialects carry bytes, wait, and wake. Nothing here waits. Of `Watching` only `warm`, `warm_many`,
`asked` and `holds_lease` may be called by anybody at any time; the rest by one thread at a time: in the event loop, or under
the lock that a dialect hands around. Design sections 7 ("Watchers") and 8.
"""

from __future__ import annotations

import os
import random
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from doorward import _shared
from doorward.clock import SystemClock
from doorward.core.matrix import DenyReason as CoreReason
from doorward.core.proofs import LONGEST_TEXT
from doorward.core.watch_messages import Ack
from doorward.core.watch_resolves import Sought
from doorward.core.watcher import Captured, Decided, Need, Watcher
from doorward.decisions import DecidedBy, Decision, DenyReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from doorward._watch_waiting import Round
    from doorward.core.watch_check import Check
    from doorward.core.watch_messages import FromReplica, ToReplica
    from doorward.core.watch_session import Session
    from doorward.core.watch_tables import WatchBounds
    from doorward.decisions import Ask

__all__ = [
    "FAREWELL_S",
    "WATCH",
    "Asked",
    "Backoff",
    "StreamStalled",
    "Watching",
    "decision_of",
]

WATCH: Final = f"/{_shared.AUTHORIZER}/Watch"
# What ListReplicas and logs show.
AGENT: Final = "doorward-python"
# Checks that wait for a snapshot; those beyond ask the server, which has bounds of its own.
MOST_WAITING: Final = 10_000
# Remembered answers between two messages. They take some 400 bytes each.
MOST_ANSWERS: Final = 8_192
# Far above what may be under way at once: resolves are bounded, acknowledgements that wait become one.
MOST_OUTGOING: Final = 2_048
# How long a replica may take to say `start`.
OPENING_S: Final = 5.0
# How long the end of a stream is waited for after the goodbye.
FAREWELL_S: Final = 1.0
SHORTEST_ASK_INTERVAL_S: Final = 0.01
LONGEST_ASK_INTERVAL_S: Final = 60.0
# Of ids in the contract: the server says what is wrong with a longer one.
LONGEST_ID: Final = 64

# The secret's bytes, the permission, the account and the project.
Asked: TypeAlias = "tuple[bytes, str, str | None, str | None]"

_REASONS: Final = tuple(
    None if reason is CoreReason.ALLOWED else DenyReason(reason.name) for reason in sorted(CoreReason)
)
_HERE: Final = DecidedBy.HERE


class StreamStalled(Exception):
    """Nothing is to be hoped for from this stream; another one is to be opened."""


class Watching:
    """The watcher of one `LocalAuthorizer`, what is to be sent, and who waits for what."""

    def __init__(self, bounds: WatchBounds | None) -> None:
        self.watcher = Watcher(bounds)
        self.now_ns: Callable[[], int] = SystemClock().now_ns
        self.waiting = 0
        # What is queued is for the stream of this session, also after it was given up.
        self.opened: Session | None = None
        # It took so little that the session was given up: its stream is to be ended.
        self.is_stalled = False
        # In words without a secret: why there was no session lately.
        self.trouble = "no server has answered yet"
        self._outgoing: deque[ToReplica] = deque()
        self._rounds: dict[int, list[Round]] = {}
        self._for_lease: set[Callable[[], object]] = set()
        self._hopeful_ns = 0
        self._first_in_line: ToReplica | None = None
        _forking.add(self)

    # ---- at any time

    def warm(self, secret: str, permission: str, project_id: str | None, account_id: str | None) -> Decision | None:
        """A decision from memory, if nothing must be waited for; None: look further.

        The same as `capture`, `decide` and `still_good` of `Watcher`, in their order; written out because it is what every
        check costs.
        """
        now_ns = self.now_ns
        begun_ns = now_ns()
        watcher = self.watcher
        session = watcher.session
        if session is None:
            return None
        end_ns = session.end_ns
        if end_ns is None or begun_ns >= end_ns:
            return None
        answers = session.answers  # before anything is looked up: see there
        try:
            presented = secret.encode()
        except (UnicodeEncodeError, AttributeError):
            return None  # the server's client says what is wrong with it
        if len(presented) > LONGEST_TEXT:
            return None
        proof = session.tables.proofs.proof_of(presented)
        asked = (proof, permission, project_id, account_id)
        decision = answers.get(asked)
        if decision is None:
            if not presented or (account_id is not None and len(account_id) > LONGEST_ID):
                return None
            captured = Captured(session, end_ns)
            found = watcher.decide(captured, presented, permission, account_id, project_id, begun_ns, proof)
            if not isinstance(found, Decided):
                return None
            decision = decision_of(found)
            if found.lasts and len(answers) < MOST_ANSWERS:
                answers[asked] = decision
        if watcher.session is session and now_ns() < end_ns:
            return decision  # type: ignore[return-value] # nothing else is put there
        return None

    def warm_many(self, secret: str, asks: Sequence[Ask]) -> tuple[list[Decision | None], list[tuple[int, Asked]]]:
        """What is decided at once of several checks, in their order, and the others, as far as they can be decided here."""
        decisions: list[Decision | None] = []
        others: list[tuple[int, Asked]] = []
        for place, ask in enumerate(asks):
            whose = ask.secret or secret
            decision = self.warm(whose, ask.permission, ask.project_id, ask.account_id)
            decisions.append(decision)
            if decision is None:
                asked = self.asked(whose, ask.permission, ask.project_id, ask.account_id)
                if asked is not None:
                    others.append((place, asked))
        return decisions, others

    @staticmethod
    def asked(secret: Any, permission: str, project_id: str | None, account_id: str | None) -> Asked | None:
        """A check as it is decided here; None: the server's client says what is wrong with it."""
        if not isinstance(secret, str) or not secret or (account_id is not None and len(account_id) > LONGEST_ID):
            return None
        try:
            return secret.encode(), permission, account_id, project_id
        except UnicodeEncodeError:
            return None

    @property
    def holds_lease(self) -> bool:
        """Whether a check that begins now could be decided here."""
        captured = self.watcher.capture(self.now_ns())
        return captured is not None and captured.session.catalog is not None

    # ---- one thread at a time

    def open(self) -> Session:
        """Begins a session, for a stream that is about to be opened; its hello is queued."""
        self.give_up()
        session, hello = self.watcher.open(AGENT)
        self.opened = session
        self.is_stalled, self._first_in_line = False, None
        self._outgoing.append(hello)
        self._hopeful_ns = self.now_ns()
        return session

    def take(self, session: Session, message: FromReplica) -> bool:
        """Applies the session's next message and queues what it leads to; True: the session is over, goodbye is queued.

        Raises:
            SessionEnded, WatchViolation: as of `Watcher.take`.
            StreamStalled: the stream takes too little.
        """
        taken = self.watcher.take(session, message, self.now_ns())
        if taken.ended:
            self._abandon()
        for reply in taken.send:
            self._queue(reply)
        if session.sequence == 1:
            self._ask(session)  # at once; `tick` repeats it
        for number in taken.answered:
            self._tell(number, failed=False)
        for number in taken.failed:
            self._tell(number, failed=True)
        if self._for_lease and self.holds_lease:
            self._wake_for_lease()
        return taken.ended

    def tick(self, session: Session) -> float:
        """Asks for a sub-lease, if the session has started; returns the seconds until the next call.

        Raises:
            StreamStalled: the replica has not opened the session in time, or has given no sub-lease for a whole hold: it
                has none itself, or hangs. Another one may do better. Or the stream takes nothing.
        """
        if self.watcher.session is not session:
            return LONGEST_ASK_INTERVAL_S  # given up: its goodbye may be on its way
        now_ns = self.now_ns()
        started = session.started
        if started is None:
            left_s = OPENING_S - (now_ns - self._hopeful_ns) / 1e9
            if left_s <= 0:
                raise StreamStalled("the replica did not open the session in time")
            return min(left_s, OPENING_S / 100)
        if self.watcher.capture(now_ns) is not None:
            self._hopeful_ns = now_ns
        elif now_ns - self._hopeful_ns > max(started.hold_ns, int(OPENING_S * 1e9)):
            raise StreamStalled("the replica gave no sub-lease for a whole hold")
        first = self._outgoing[0] if self._outgoing else None
        if first is not None and first is self._first_in_line:
            raise StreamStalled("the stream takes too little")
        self._first_in_line = first
        self._ask(session)
        return min(max(started.ask_interval_ns / 1e9, SHORTEST_ASK_INTERVAL_S), LONGEST_ASK_INTERVAL_S)

    def next_outgoing(self) -> ToReplica | None:
        """What is to be sent next, if there is anything."""
        return self._outgoing.popleft() if self._outgoing else None

    def give_up(self) -> None:
        """The stream has ended, or is not to be used any more: so has the session, with everything that waits for it."""
        self.watcher.give_up()
        self._abandon()

    def farewell(self) -> bool:
        """The same, for good; whether a goodbye is queued, as the last message."""
        goodbye = self.watcher.give_up()
        self._abandon()
        if goodbye is not None:
            self._outgoing.append(goodbye)
        self._wake_for_lease()
        return goodbye is not None

    def forked(self) -> None:
        """In a child of fork(): there is no session, nothing is sent and nobody waits. No lock: whoever held it is gone."""
        session = self.watcher.session
        self.watcher.session = None
        if session is not None:
            session.give_up()
        self._outgoing.clear()
        self._rounds.clear()
        self._for_lease.clear()

    def seek(self, check: Check, *, failed: bool) -> Decided | int | None:
        """Goes on with a check. A number: of what it waits for, which is on its way; None: the server is to be asked."""
        if self.is_stalled:
            return None
        outcome = check.step(self.now_ns(), failed=failed)
        while outcome is Need.LOOK_AGAIN:
            outcome = check.step(self.now_ns())
        if isinstance(outcome, Sought):
            try:
                if outcome.send is not None:
                    self._queue(outcome.send)
            except StreamStalled:
                self.give_up()
                self.is_stalled = True
                return None
            return outcome.number
        return outcome if isinstance(outcome, Decided) else None

    def join(self, round_: Round) -> None:
        """Has the round told of what it waits for."""
        for number in round_.outstanding:
            self._rounds.setdefault(number, []).append(round_)

    def leave(self, round_: Round) -> None:
        """Tells the round no more."""
        for number in round_.outstanding:
            rounds = self._rounds.get(number, [])
            if round_ in rounds:
                rounds.remove(round_)
            if not rounds:
                self._rounds.pop(number, None)

    def await_lease(self, wake: Callable[[], object]) -> None:
        """Calls `wake`, once, when there is a sub-lease or never will be."""
        self._for_lease.add(wake)

    def forget_lease(self, wake: Callable[[], object]) -> None:
        """Does not call it any more."""
        self._for_lease.discard(wake)

    def _ask(self, session: Session) -> None:
        ask = self.watcher.ask(session, self.now_ns())
        if ask is not None:
            self._queue(ask)

    def _queue(self, message: ToReplica) -> None:
        outgoing = self._outgoing
        if isinstance(message, Ack) and outgoing and isinstance(outgoing[-1], Ack):
            outgoing[-1] = message  # cumulative: one for both
            return
        if len(outgoing) >= MOST_OUTGOING:
            raise StreamStalled("the stream takes too little")
        outgoing.append(message)

    def _tell(self, number: int, *, failed: bool) -> None:
        for round_ in self._rounds.pop(number, ()):
            round_.tell(number, failed=failed)

    def _wake_for_lease(self) -> None:
        waiting, self._for_lease = self._for_lease, set()
        for wake in waiting:
            wake()

    def _abandon(self) -> None:
        self._outgoing.clear()
        rounds, self._rounds = self._rounds, {}
        for told in rounds.values():
            for round_ in told:
                round_.end()


class Backoff:
    """How long to wait before another stream: longer each time, until one was good for something; never all at once."""

    FIRST_S: Final = 0.1
    LONGEST_S: Final = 5.0

    def __init__(self) -> None:
        self._next_s = self.FIRST_S

    def reset(self) -> None:
        """The last one was."""
        self._next_s = self.FIRST_S

    def seconds(self) -> float:
        """The next wait."""
        at_most, self._next_s = self._next_s, min(2 * self._next_s, self.LONGEST_S)
        return random.uniform(at_most / 2, at_most)  # noqa: S311 - to spread load


def decision_of(found: Decided) -> Decision:
    """A decision from memory, as callers know them."""
    reason = _REASONS[found.reason]
    return Decision(reason is None, reason, found.token_id, found.account_id, found.position, None, _HERE)


# A child of fork() has the memory of a watcher and no stream to keep it true. Weakly, so that nothing lives on in here.
_forking: Final[weakref.WeakSet[Watching]] = weakref.WeakSet()


def _forget_in_child() -> None:
    for watching in list(_forking):
        watching.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
