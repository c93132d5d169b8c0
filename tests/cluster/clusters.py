"""Several replica processes on one database, and the true time that all of them share.

Time runs until a test lets it stand; then it passes only by the test's steps: `pass_time`, `finish`, `until_usable`. So a
wait of a whole hold takes no time, and a slow machine lets no lease end.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from doorward_server.failpoints import Failpoint
from tests.cluster.clients import TIMEOUT_S, Client, Pending
from tests.cluster.history import Check, History, Mutation
from tests.cluster.lines import Background, Line, Rows
from tests.cluster.replicas import Replica, Start
from tests.cluster.true_time import TrueTime
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from tests.cluster.clients import Kind
    from tests.cluster.history import Subject
    from tests.cluster.nursery import Nursery
    from tests.cluster.steps import Point
    from tests.cluster.watched import Watched
    from tests.support.wire import Metadata

__all__ = ["Cluster", "Deployment"]

RHO: Final = 1.25
PATIENCE_S: Final = 60.0
# The longest pause between two looks of a barrier.
POLL_MS: Final = 10.0

ROWS: Final = "SELECT replica_id::text, applied_revision FROM replicas"
END: Final = "SELECT revision FROM state"


class Deployment:
    """What the replicas of a cluster have in common: the database's URL, the pepper keys, two operators' credentials."""

    def __init__(self, url: str, pepper_file: Path, admin: Metadata, caller: Metadata) -> None:
        self.url = url
        self.pepper_file = pepper_file
        self.admin = admin
        self.caller = caller


class Cluster:
    """Replicas by name: a, b, c … `history` is what the test has made them do."""

    def __init__(
        self,
        deployment: Deployment,
        background: Background,
        nursery: Nursery,
        directory: Path,
        *,
        hold_ms: int,
        without: Sequence[str] = (),
    ) -> None:
        """`hold_ms` and `without` are those of replicas that are started without others."""
        self.deployment = deployment
        self.directory = directory
        self.time = TrueTime(directory / "time", create=True)
        self.rows = Rows(background, deployment.url)
        self.history = History(self.time.now_ns)
        self.replicas: dict[str, Replica] = {}
        # In the tests that have them: they hear of every step of time.
        self.watchers: list[Watched] = []
        self._hold_ms = hold_ms
        self._without = without
        self.background = background
        self.nursery = nursery
        self._started = 0
        self._apart: list[Replica] = []

    @property
    def hold_ms(self) -> int:
        """The hold of its replicas, unless one was started with another."""
        return self._hold_ms

    @property
    def lease_ms(self) -> float:
        """The length of their leases."""
        return self._hold_ms / RHO

    def __getitem__(self, name: str) -> Replica:
        return self.replicas[name]

    # ---- processes

    def begin_start(
        self,
        name: str,
        *,
        hold_ms: int | None = None,
        armed: Iterable[tuple[Point, str, int]] = (),
    ) -> Replica:
        """Starts a process in the place `name`; `armed`: points, what happens there, and how many hits are passed over."""
        self._started += 1
        if name in self.replicas:
            self._apart.append(self.replicas.pop(name))
        own_ms = self._hold_ms if hold_ms is None else hold_ms
        start = Start(
            time_file=self.directory / "time",
            settings={
                "pepper_file": str(self.deployment.pepper_file),
                "database_pool": 6,
                "drain": 2.0,
                "log_level": "debug",
                "reflection": False,
            },
            hold_ms=own_ms,
            without=self._without,
            armed=[{"name": point.value, "action": action, "skip": skip} for point, action, skip in armed],
        )
        line = Line(self.background, self.deployment.url, self.directory / f"l{self._started}")
        self.history.holds_ms.add(own_ms)
        replica = Replica(name, start, line, self.directory, self.nursery)
        self.replicas[name] = replica
        return replica

    def await_ready(self, *replicas: Replica) -> None:
        """Returns when they take calls, with a client each."""
        for replica in replicas:
            self.connect(replica, replica.await_ready())

    def connect(self, replica: Replica, address: str) -> Client:
        """Gives the replica a client."""
        replica.client = Client(replica.name, address, self.deployment.admin, self.deployment.caller, self.history)
        return replica.client

    def start(self, *names: str, hold_ms: int | None = None) -> None:
        """Starts processes beside each other; returns when all serve."""
        self.await_ready(*[self.begin_start(name, hold_ms=hold_ms) for name in names])

    @property
    def awake(self) -> list[Replica]:
        """The processes that can do something."""
        return [replica for replica in self.replicas.values() if replica.is_alive and not replica.is_frozen]

    def begin_test(self, names: Collection[str]) -> None:
        """Makes everything well again for the next test: these replicas, whole, and no other."""
        self.time.run()
        self.history = History(self.time.now_ns)
        self.history.holds_ms.add(self._hold_ms)
        for name in [name for name in self.replicas if name not in names]:
            self._apart.append(self.replicas.pop(name))
        for replica in self._apart:
            replica.close()
        self._apart.clear()
        dead = [name for name in names if name not in self.replicas or not self.replicas[name].is_alive]
        begun = [self.begin_start(name) for name in dead]
        for replica in self.replicas.values():
            if replica not in begun:
                self._heal(replica)
        self.await_ready(*begun)
        for replica in self.replicas.values():
            replica.client.history = self.history
        self._settle()

    def close(self) -> None:
        """Ends every process."""
        for replica in [*self.replicas.values(), *self._apart]:
            replica.close()
        self.rows.close()

    @staticmethod
    def _heal(replica: Replica) -> None:
        replica.line.heal()
        if replica.is_frozen:
            replica.thaw()
        replica.release_all()
        replica.skew(1.0)

    def _settle(self) -> None:
        """Returns when all have a lease and everything applied, theirs are the only rows, and no watcher is counted."""
        self.wake()
        eventually(self._nobody_is_counted)
        own = [self.usable_id(replica) for replica in self.replicas.values()]
        self.rows.fetch("DELETE FROM replicas WHERE replica_id <> ALL($1::uuid[])", own)
        eventually(lambda: all(replica.status().applied == self.end() for replica in self.replicas.values()))

    def _nobody_is_counted(self) -> bool:
        if not any(replica.status().counted for replica in self.replicas.values()):
            return True
        self.advance(self._hold_ms / 20)
        return False

    def usable_id(self, replica: Replica) -> str:
        """The replica's id, once it has a usable lease under a row that is there."""

        def is_usable() -> bool:
            status = replica.status()
            return status.is_registered and status.lease_left_ms > 0 and status.replica_id in self.row_ids()

        eventually(is_usable)
        return str(replica.status().replica_id)

    # ---- the database

    def end(self) -> int:
        """The newest revision."""
        return int(self.rows.value(END))

    def row_ids(self) -> set[str]:
        """The ids of the rows of `replicas`."""
        return {row[0] for row in self.rows.fetch(ROWS)}

    def await_end(self, number: int) -> None:
        """Returns once the log has reached `number`."""
        eventually(lambda: self.end() >= number)

    # ---- time

    def wake(self) -> None:
        """Everybody who sleeps in a process that can do something looks at the clock again."""
        watchers = [watcher for watcher in self.watchers if watcher.is_alive and not watcher.is_frozen]
        for process, number in [(process, process.begin_wake()) for process in (*self.awake, *watchers)]:
            with contextlib.suppress(AssertionError):  # it has died meanwhile
                process.end_wake(number)

    def stand(self) -> None:
        """From now on time passes by the test's steps only. How old each lease is then is left open: see `renew`."""
        self.time.stand()
        self.wake()

    def run(self) -> None:
        """Time passes by itself again."""
        self.time.run()
        self.wake()

    def advance(self, milliseconds: float) -> None:
        """That much passes in one step."""
        self.time.advance(milliseconds)
        self.wake()

    def pass_time(
        self,
        milliseconds: float,
        keeping: Collection[Replica] = (),
        *,
        watchers: Collection[Watched] = (),
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """That much passes, in steps in which those of `keeping` renew their leases; less, if `is_over()` after a step.

        `watchers` renew in each step, and whatever they acknowledge is read.
        """
        shortest_ms = min([replica.start.hold_ms for replica in keeping], default=self._hold_ms)
        left_ms, step_ms = milliseconds, shortest_ms / 20
        while left_ms > 0 and not is_over():
            self.advance(min(step_ms, left_ms))
            left_ms -= step_ms
            for replica in keeping:
                self._await_lease(replica)
            for watcher in watchers:
                watcher.renew()

    def _await_lease(self, replica: Replica) -> None:
        """Returns once what was due to be renewed is: time stands meanwhile, so nothing else can end."""
        half_ms = replica.start.hold_ms / RHO / 2
        eventually(lambda: replica.status().lease_left_ms >= half_ms)

    def renew(self, *replicas: Replica) -> None:
        """Lets each of them renew once more; their leases then count from the present moment, for time stands."""
        begun = {replica.name: replica.status().renewals_begun for replica in replicas}
        self.advance(max(replica.start.hold_ms / 4 / replica.rate for replica in replicas) + 1)
        for replica in replicas:
            eventually(lambda replica=replica: replica.status().renewals > begun[replica.name])  # type: ignore[misc]

    def until_usable(self, *replicas: Replica) -> None:
        """Lets as much time pass as they need to try again, until they have a lease."""
        for replica in replicas:
            eventually(lambda replica=replica: self._try_again(replica))  # type: ignore[misc]

    def _try_again(self, replica: Replica) -> bool:
        self.advance(5)
        return replica.status().lease_left_ms > 0

    # ---- calls

    def begin(self, kind: Kind, subject: Subject, at: Replica, *, timeout_s: float = TIMEOUT_S) -> Pending[Mutation]:
        """Begins a mutation, and returns once it has ended or its barrier waits: everything is committed then."""
        at.arm(Failpoint.BARRIER_AFTER_ROWS)
        return self.waits(kind.at(at.client, subject, timeout_s), at)

    def waits(self, begun: Pending[Mutation], at: Replica) -> Pending[Mutation]:
        """The second half of `begin`, for a call that had to be stopped before; BARRIER_AFTER_ROWS must be armed."""
        eventually(lambda: begun.is_done or at.has_reached(Failpoint.BARRIER_AFTER_ROWS))
        if not begun.is_done:
            self.history.committed(begun.record)
        at.release(Failpoint.BARRIER_AFTER_ROWS)
        eventually(lambda: begun.is_done or at.status().barriers_asleep > 0)
        return begun

    def finish(self, begun: Pending[Mutation], at: Replica, *, despite: Collection[Replica] = ()) -> Mutation:
        """The end of a mutation that everybody but `despite` confirms: time passes only from one poll to the next."""
        without = {replica.status().replica_id for replica in despite if replica in self.awake}
        eventually(lambda: begun.is_done or self._is_confirmed(without))
        return self.poll(begun, at)

    def change(self, kind: Kind, subject: Subject, at: Replica) -> Mutation:
        """A mutation from its beginning to its end, which everybody confirms."""
        return self.finish(self.begin(kind, subject, at), at)

    def wait_out(
        self,
        begun: Pending[Mutation],
        at: Replica,
        *,
        keeping: Collection[Replica] = (),
        watchers: Collection[Watched] = (),
        hold_ms: float | None = None,
    ) -> Mutation:
        """The end of a mutation that waits for somebody's hold, which began with its commit.

        To a millisecond before it, then on to the end by single polls. If the mutation ends before, so does this.
        """
        committed_ns = begun.record.true_committed_ns
        assert committed_ns is not None or begun.is_done
        if committed_ns is not None and not begun.ended_within(0):
            hold_ms = self._hold_ms if hold_ms is None else hold_ms
            passed_ms = (self.time.now_ns() - committed_ns) / 1e6

            def is_over() -> bool:
                eventually(lambda: begun.is_done or at.status().barriers_asleep > 0)
                return begun.is_done

            self.pass_time(hold_ms / at.rate - passed_ms - 1, keeping, watchers=watchers, is_over=is_over)
        return self.poll(begun, at)

    def poll(self, begun: Pending[Mutation], at: Replica) -> Mutation:
        """Lets its barrier look again until it returns; only its polls let time pass."""

        def look() -> bool:
            if begun.ended_within(0.005):
                return True
            self._let_look(at)
            return begun.ended_within(0.005)

        eventually(look)
        return begun.result()

    def _let_look(self, replica: Replica) -> None:
        """A barrier that sleeps there until its next look does so no longer."""
        status = replica.status()
        if status.barriers_asleep and status.sleepers_ms[0] <= POLL_MS:
            self.advance(status.sleepers_ms[0] / replica.rate + 0.001)

    def _is_confirmed(self, without: Collection[str | None]) -> bool:
        end = self.end()
        return all(applied >= end for replica_id, applied in self.rows.fetch(ROWS) if replica_id not in without)

    def warm(self, subject: Subject, *replicas: Replica) -> None:
        """Lets each of them hold the subject and whatever else its check needs, so that a check is answered from memory."""
        for replica in replicas:
            answered = replica.client.check(subject)
            assert answered == "ALLOWED", f"{replica.name}: {answered}"

    def begin_check(self, replica: Replica, subject: Subject, *, fully: bool = False) -> Pending[Check]:
        """Begins a check that must load or wait; returns once its replica has taken it up, or it has ended."""
        before = replica.status().checks_begun
        begun = replica.client.begin_check(subject, fully=fully)
        eventually(lambda: begun.is_done or replica.status().checks_begun > before)
        return begun

    def at_rest_by_polls(self, replica: Replica) -> None:
        """The same, where a barrier must look again before that."""

        def is_at_rest() -> bool:
            self._let_look(replica)
            return replica.status().tasks == 0

        eventually(is_at_rest)

    def at_rest(self, replica: Replica) -> None:
        """Returns once no mutation, prune or load runs there."""
        eventually(lambda: replica.status().tasks == 0)
