"""A scripted server for a pure watcher: two replicas, a change log, a revoker, streams and clocks, all stepped by hand.

The replica's side is design section 7 as `watch2.cpp` has it: one ordered queue behind the waiting Evict, held sets,
counted sub-leases, reports. A mutation returns as soon as its barrier could let it, so that every step after that is
seen by the verdict: `Asked` remembers what had returned when its check began, and `answer` compares with every state
from there on. Time is whole numbers; each actor's clock runs at 9, 10 or 11 tenths of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from doorward._watch_shared import Watching, decision_of
from doorward.core import secret as secrets
from doorward.core.lease import stretched_ns
from doorward.core.matrix import DenyReason
from doorward.core.secret import Secret, SecretKind
from doorward.core.watch_check import Check
from doorward.core.watch_messages import (
    Ack,
    Ask,
    Body,
    CatalogSent,
    Evict,
    Forget,
    FromReplica,
    Goodbye,
    Hello,
    KeyKind,
    LeaseGrant,
    ProjectSnapshot,
    Resolve,
    ResolveProject,
    Start,
    TokenSnapshot,
    ToReplica,
    Unrecognized,
    WatchKey,
)
from doorward.core.watch_resolves import Sought
from doorward.core.watcher import Decided, Need, Watcher

if TYPE_CHECKING:
    from doorward.core.entries import GrantEntry
    from doorward.core.watch_session import Session
    from doorward.core.watch_tables import WatchBounds

HOLD = 1_000
LEASE = 800  # HOLD / 1.25
ACME = WatchKey(KeyKind.ACCOUNT, "acme")
P1 = WatchKey(KeyKind.PROJECT, "p1")
CATALOG = "the catalog"
CHANGES = ("x", "grants", "account", "project", "y", "catalog")


class Stale(AssertionError):
    """An answer that no state from the last returned change on would give."""


@dataclass(frozen=True)
class State:
    """The database at one revision: token X on one named project, token Y on all, both of acme."""

    x_disabled: bool = False
    x_project: str = "p1"
    suspended: bool = False
    p1_exists: bool = True
    y_right: bool = True
    generous: bool = True

    def after(self, change: str) -> State:
        match change:
            case "x":
                return replace(self, x_disabled=not self.x_disabled)
            case "grants":
                return replace(self, x_project="p2" if self.x_project == "p1" else "p1")
            case "account":
                return replace(self, suspended=not self.suspended)
            case "project":
                return replace(self, p1_exists=not self.p1_exists)
            case "y":
                return replace(self, y_right=not self.y_right)
        return replace(self, generous=not self.generous)

    def allows(self, token: str, project_id: str) -> bool:
        if self.suspended or not self.generous or (project_id == "p1" and not self.p1_exists):
            return False
        return self.y_right if token == "y" else not self.x_disabled and self.x_project == project_id


@dataclass
class Clock:
    """One machine's: `tenths` of true speed."""

    world: World
    tenths: int
    offset: int = 0

    def now(self) -> int:
        return self.offset + self.world.true_time * self.tenths // 10


@dataclass(eq=False)
class Stream:
    """One session as the replica has it, and what is on the wire in both directions."""

    session_id: str
    to_watcher: list[FromReplica] = field(default_factory=list)
    to_replica: list[ToReplica] = field(default_factory=list)
    sequence: int = 0
    held: set[WatchKey] = field(default_factory=set)
    snapshot_of: dict[WatchKey, int] = field(default_factory=dict)
    waiting: set[WatchKey] = field(default_factory=set)
    waiting_catalog: bool = False
    owed: int = 0
    counted_until: int = 0
    is_open: bool = True  # at the replica
    said_goodbye: bool = False


class Replica:
    """One server process."""

    def __init__(self, world: World, clock: Clock) -> None:
        self.world = world
        self.clock = clock
        self.applied = 0
        self.reported = 0
        self.lease_end = clock.now() + LEASE
        self.pending: tuple[int, int] | None = None
        self.is_cut = False  # from the database
        self.streams: list[Stream] = []

    def has_lease(self) -> bool:
        return self.clock.now() < self.lease_end

    def renew(self) -> None:
        self.pending = (self.clock.now() + LEASE, len(self.world.states) - 1)
        self._promote()

    def apply(self) -> None:
        self.applied += 1
        touched = self.world.touched[self.applied]
        for stream in self.streams:
            if touched == CATALOG:
                stream.waiting_catalog, stream.owed = True, self.applied
            elif touched in stream.held:
                assert isinstance(touched, WatchKey)
                stream.waiting.add(touched)
                stream.held.discard(touched)
                stream.owed = self.applied
        self._promote()

    def report(self) -> None:
        if not self.is_cut and all(self._may_report(stream) for stream in self.streams):
            self.reported = self.applied

    def close(self, stream: Stream) -> None:
        """The replica's end is over; it goes on counting."""
        stream.is_open = False
        stream.to_replica.clear()

    def queue(self, stream: Stream, body: Body) -> None:
        """Puts a message behind the waiting Evict, which goes first."""
        self.send_evict(stream)
        self._put(stream, body)

    def send_evict(self, stream: Stream) -> None:
        keys, catalog = tuple(sorted(stream.waiting)), stream.waiting_catalog
        stream.waiting, stream.waiting_catalog = set(), False
        if keys or catalog:
            self._put(stream, Evict(keys, catalog))
        if catalog:
            self._put(stream, self._catalog())

    def serve(self, stream: Stream) -> None:
        """Takes the next message of the watcher; an ask, or a resolve, waits for a usable lease."""
        if not stream.to_replica:
            return
        head = stream.to_replica[0]
        needs_lease = isinstance(head, Ask) or (isinstance(head, Resolve) and not self.world.resolves_without_lease)
        if needs_lease and not self.has_lease():
            return
        match stream.to_replica.pop(0):
            case Hello():
                self.queue(stream, Start(stream.session_id, HOLD, HOLD // 4, HOLD // 4, self.world.max_held_keys))
                self.queue(stream, self._catalog())
            case Ask(ask):
                length = self.lease_end - self.clock.now()
                stream.counted_until = max(stream.counted_until, self.clock.now() + stretched_ns(length))
                self.queue(stream, LeaseGrant(ask, length, 0))
            case Ack(position):
                if int(position.partition(".")[2]) >= stream.owed:
                    stream.owed = 0
            case Resolve(number, secret):
                self._snapshot(stream, number, secret)
            case ResolveProject(number, project_id):
                exists = project_id != "p1" or self.state.p1_exists
                self._hold(stream, (WatchKey(KeyKind.PROJECT, project_id),))
                self.queue(stream, ProjectSnapshot(number, project_id, "acme" if exists else None))
            case Forget(keys, sequence):
                stream.held -= {key for key in keys if stream.snapshot_of.get(key, 0) <= sequence}
            case Goodbye(session_id):
                assert session_id == stream.session_id
                stream.said_goodbye = True
                self.close(stream)

    @property
    def state(self) -> State:
        return self.world.states[self.applied]

    def _snapshot(self, stream: Stream, number: int, secret: Secret) -> None:
        """Looks up, counts as held and queues, in one step."""
        state, token_id = self.state, secret.subject_id
        token_key = WatchKey(KeyKind.TOKEN, token_id)
        if secret == self.world.secrets["y"] and not state.y_right:
            self._hold(stream, (token_key,))
            self.queue(stream, Unrecognized(number, token_id))
            return
        is_x = secret == self.world.secrets["x"]
        # Of a project that is gone its grants are gone too.
        named = (state.x_project,) if is_x and (state.x_project != "p1" or state.p1_exists) else ()
        grants: tuple[GrantEntry, ...] = (("job_admin", named if is_x else None),)
        self._hold(stream, (token_key, ACME, *(WatchKey(KeyKind.PROJECT, project_id) for project_id in named)))
        account = ("acme", "team", 2 if state.suspended else 1)
        disabled = is_x and state.x_disabled
        self.queue(stream, TokenSnapshot(number, token_id, account, 1, ((1, None),), False, disabled, None, grants))

    def _hold(self, stream: Stream, keys: tuple[WatchKey, ...]) -> None:
        self.send_evict(stream)
        stream.held.update(keys)
        stream.snapshot_of.update(dict.fromkeys(keys, stream.sequence + 1))

    def _put(self, stream: Stream, body: Body) -> None:
        stream.sequence += 1
        stream.to_watcher.append(FromReplica(stream.sequence, f"1.{self.applied}", body))

    def _catalog(self) -> CatalogSent:
        action = "write" if self.state.generous else "read"
        sets = {"job_admin": (["jobs"], ["jobs"] if action == "write" else [])}
        return CatalogSent(self.applied, "test", 1, {}, {"jobs": ["read", "write"]}, sets, {"team": ["job_admin"]})

    def _may_report(self, stream: Stream) -> bool:
        return stream.said_goodbye or not stream.owed or self.clock.now() >= stream.counted_until

    def _promote(self) -> None:
        if self.pending is not None and self.applied >= self.pending[1]:
            self.lease_end = max(self.lease_end, self.pending[0])
            self.pending = None


@dataclass(eq=False)
class Asked:
    """A check that is being made, and what had returned when it began."""

    token: str
    project_id: str
    check: Check
    must: int
    waits_for: tuple[Session, int] | None = None
    outcome: Decided | Need | None = None


class World:
    """All of it. `tenths`: the speed of the clocks of replica A, replica B, the revoker and the watcher."""

    def __init__(
        self,
        tenths: tuple[int, int, int, int] = (10, 10, 10, 10),
        bounds: WatchBounds | None = None,
        max_held_keys: int = 10_000,
    ) -> None:
        self.true_time = 0
        self.max_held_keys = max_held_keys
        self.states = [State()]
        self.touched: list[WatchKey | str] = [""]
        self.secrets = {name: secrets.generate(SecretKind.TOKEN, name * 16) for name in ("x", "y")}
        self.replicas = [Replica(self, Clock(self, tenths[0], 17)), Replica(self, Clock(self, tenths[1], 5_003))]
        self.revoker = Clock(self, tenths[2], 71)
        self.clock = Clock(self, tenths[3], 900_001)
        # Takes a rule of the replica away, where another rule of the watcher is enough without it.
        self.resolves_without_lease = False
        self.returned = 0
        self.pending: list[tuple[int, int]] = []
        self.watcher = Watcher(bounds)
        # The same watcher as the shells ask it, with what it remembers of its answers.
        self.remembering = Watching(bounds)
        self.remembering.watcher, self.remembering.now_ns = self.watcher, self.clock.now
        self.session: Session | None = None
        self.stream: Stream | None = None
        self.replica: Replica | None = None
        self.answered: dict[tuple[Session, int], bool] = {}

    # ---- administrators and time

    def commit(self, change: str) -> int:
        keys: dict[str, WatchKey | str] = {"account": ACME, "project": P1, "catalog": CATALOG}
        token_id = ("y" if change == "y" else "x") * 16
        self.states.append(self.states[-1].after(change))
        self.touched.append(keys.get(change, WatchKey(KeyKind.TOKEN, token_id)))
        self.pending.append((len(self.states) - 1, self.revoker.now()))
        return len(self.states) - 1

    def settle(self) -> None:
        """Lets everything return that may; called after each step."""
        for replica in self.replicas:
            replica.report()
        now, waiting = self.revoker.now(), []
        for revision, since in self.pending:
            if now >= since + HOLD or all(replica.reported >= revision for replica in self.replicas):
                self.returned = max(self.returned, revision)
            else:
                waiting.append((revision, since))
        self.pending = waiting

    def pass_time(self, tenfold: int) -> None:
        self.true_time += 10 * tenfold
        self.settle()

    # ---- the watcher's shell

    def open(self, replica: Replica) -> None:
        self.lose()
        for stream in replica.streams:
            replica.close(stream)
        self.replica, self.stream = replica, Stream(f"session {len(replica.streams)}")
        replica.streams.append(self.stream)
        self.session, hello = self.watcher.open("test")
        self.send(hello)
        self.settle()

    def send(self, message: ToReplica) -> None:
        if self.stream is not None and self.stream.is_open:
            self.stream.to_replica.append(message)

    def lose(self) -> None:
        """The stream ends on the watcher's side; the replica notices when it notices."""
        self.watcher.give_up()
        self.stream = self.session = self.replica = None

    def say_goodbye(self) -> None:
        goodbye = self.watcher.give_up()
        if goodbye is not None:
            self.send(goodbye)
        if self.replica is not None and self.stream is not None:
            while self.stream.to_replica and not isinstance(self.stream.to_replica[0], Ask | Resolve):
                self.replica.serve(self.stream)
        self.stream = self.session = self.replica = None
        self.settle()

    def ask(self) -> None:
        if self.session is not None:
            ask = self.watcher.ask(self.session, self.clock.now())
            if ask is not None:
                self.send(ask)

    def deliver(self, index: int = 0) -> None:
        """The watcher takes the next message on the wire."""
        if self.session is None or self.stream is None or index >= len(self.stream.to_watcher):
            return
        session = self.session
        taken = self.watcher.take(session, self.stream.to_watcher.pop(index), self.clock.now())
        for number in (*taken.answered, *taken.failed):
            self.answered[session, number] = number in taken.failed
        for message in taken.send:
            self.send(message)

    # ---- checks

    def begin(self, token: str, project_id: str = "p1") -> Asked:
        text = self.secrets[token].reveal().encode()
        check = Check(self.watcher, text, "jobs:write", None, project_id)
        asked = Asked(token, project_id, check, self.returned)
        self.step(asked)
        return asked

    def step(self, asked: Asked) -> None:
        """One step of a check; the answer, when it comes, is compared."""
        failed = False
        if asked.waits_for is not None:
            session, _ = asked.waits_for
            if self.watcher.session is session and asked.waits_for not in self.answered:
                return
            failed = self.answered.get(asked.waits_for, False)
            asked.waits_for = None
        outcome = asked.check.step(self.clock.now(), failed=failed)
        if isinstance(outcome, Sought):
            assert self.session is not None
            asked.waits_for = (self.session, outcome.number)
            if outcome.send is not None:
                self.send(outcome.send)
        elif outcome is not Need.LOOK_AGAIN:
            asked.outcome = outcome
            self._compare(asked)

    def probe(self) -> int:
        """Decides every check that memory alone can decide now, and compares; how many were decided.

        A remembered answer must be the one that is decided anew, and twice in a row there is one.
        """
        decided = 0
        for token, project_id in (("x", "p1"), ("x", "p2"), ("y", "p1")):
            now = self.clock.now()
            captured = self.watcher.capture(now)
            text = self.secrets[token].reveal().encode()
            if captured is None:
                continue
            found = self.watcher.decide(captured, text, "jobs:write", None, project_id, now)
            is_decided = isinstance(found, Decided) and self.watcher.still_good(captured, now)
            for _ in range(2):
                remembered = self.remembering.warm(self.secrets[token].reveal(), "jobs:write", project_id, None)
                assert remembered == (decision_of(found) if is_decided and isinstance(found, Decided) else None)
            if is_decided and isinstance(found, Decided):
                decided += 1
                check = Check(self.watcher, text, "jobs:write", None, project_id)
                self._compare(Asked(token, project_id, check, self.returned, outcome=found))
        return decided

    def _compare(self, asked: Asked) -> None:
        if isinstance(asked.outcome, Decided):
            allowed = asked.outcome.reason is DenyReason.ALLOWED
            if all(state.allows(asked.token, asked.project_id) is not allowed for state in self.states[asked.must :]):
                raise Stale(f"{asked.token} at {asked.project_id}: {asked.outcome.reason.name} is before {asked.must}")

    # ---- many steps at once, for scripts

    def run(self) -> None:
        """Lets replica and watcher talk until nothing is on the way."""
        while self.stream is not None and self.replica is not None:
            before = (len(self.stream.to_replica), self.stream.sequence, len(self.stream.to_watcher))
            self.replica.serve(self.stream)
            self.replica.send_evict(self.stream)
            self.deliver()
            self.settle()
            if before == (len(self.stream.to_replica), self.stream.sequence, len(self.stream.to_watcher)):
                return

    def check(self, name: str = "x", project_id: str = "p1") -> Decided | Need | None:
        """A whole check, its resolves included if the stream brings them; None if it goes on waiting."""
        asked = self.begin(name, project_id)
        for _ in range(8):
            if asked.outcome is None:
                self.step(asked)
                if asked.waits_for is not None:
                    self.run()
        return asked.outcome

    def hold_x(self, replica: Replica) -> None:
        """A stream to this replica, a sub-lease, and X in memory."""
        self.open(replica)
        self.run()
        self.ask()
        self.run()
        assert isinstance(self.check(), Decided)
