"""A watching process in a test's hand: a `LocalAuthorizer` that a test asks, freezes, cuts off, leads elsewhere and kills.

with watching(cluster, "a", subject) as watcher:     # holds a sub-lease of a and what a check of the subject needs
    assert watcher.check(subject) == "ALLOWED"
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from doorward.core.revision import Revision
from tests.cluster.clients import TIMEOUT_S
from tests.cluster.controlled import PATIENCE_S, Controlled
from tests.cluster.history import Check, History, Subject, now_ns
from tests.cluster.lines import Background, Proxy
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.cluster.clusters import Cluster
    from tests.cluster.replicas import Replica

__all__ = ["HERE", "SOON_S", "Asked", "Watched", "WatchedCheck", "stand", "traffic_of", "watching"]

# Between two checks of a thread.
PAUSE_S: Final = 0.001
# What `Watched.decides` tells of a yes from memory.
HERE: Final = "HERE ALLOWED"
# Of a check that nobody may answer.
SOON_S: Final = 0.3


class WatchedCheck(Check):
    """A check of a watcher. `is_here`: it was decided in its process."""

    is_here = False


@dataclass(frozen=True)
class WatchedStatus:
    """What a watcher says of itself. Of the session that it has, if it has one; `asks`: those that no grant answered."""

    session_id: str
    lease_left_ms: float
    asks: tuple[int, ...]
    held: int
    position: str
    sequence: int
    resolves: int
    trouble: str


class WatchLine(Proxy):
    """Stands between a watcher and the replica that it is led to."""

    def __init__(self, background: Background, address: str) -> None:
        super().__init__(background)
        self._target = address
        self.server = background.run(self._listen())
        self.address = "{}:{}".format(*self.server.sockets[0].getsockname()[:2])

    def lead_to(self, address: str) -> None:
        """Breaks every connection; new ones lead to `address`."""
        self._target = address
        self.cut()
        self.heal()

    async def _listen(self) -> asyncio.Server:
        await self._open_gates()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))


class Asked:
    """A check of a watcher that is under way."""

    def __init__(self, watched: Watched, number: int, record: WatchedCheck) -> None:
        self.record = record
        self._watched = watched
        self._number = number

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._watched.pipe.has_answer(self._number)

    def result(self) -> WatchedCheck:
        """The record, once it has ended.

        Raises:
            AssertionError: the process has ended, or does not answer.
        """
        told, record = self._watched.pipe.answer(self._number), self.record
        record.answered, record.why, record.is_here = told["answered"], told["why"], told["is_here"]
        # That nobody is known by this credential is an answer; what else fails decided nothing.
        record.is_decided = bool(told["revision"]) or record.answered == "UNAUTHENTICATED"
        if told["revision"] and not record.is_here:
            # Of one that was decided in the process it is a least: a change of nothing that it holds is not told to it.
            record.number = Revision.parse(told["revision"]).number
        record.ended_ns = told["ended_ns"]
        return record


class Watched(Controlled):
    """A running watcher."""

    def __init__(
        self, cluster: Cluster, name: str, subject: Subject, *, rate: float, dialect: str, without: Sequence[str]
    ) -> None:
        """Starts it. It watches with the credential that asks about `subject`; nothing is opened before `begin`."""
        self.history: History = cluster.history
        place = f"w{len(cluster.watchers) + 1} at {name}"
        self.line = WatchLine(cluster.background, cluster[name].await_ready())
        ((_, bearer),) = cluster.deployment.caller if subject.asked_by is None else subject.asked_by
        config = {
            "time": str(cluster.directory / "time"),
            "watches": self.line.address,
            "credential": str(bearer).removeprefix("Bearer "),
            "rate": rate,
            "dialect": dialect,
            "without": list(without),
        }
        ours, theirs = socket.socketpair()
        path = cluster.directory / f"{place.replace(' ', '-')}.log"
        with theirs, path.open("ab") as log:
            process = cluster.nursery.fork(config, theirs, log.fileno())
        super().__init__(place, process, ours, path)
        self.rate = rate
        assert self.pipe.await_address() is not None, f"{place} did not start:\n{path.read_text()[-4000:]}"

    def begin(self) -> None:
        """Opens its stream; returns when it holds a sub-lease."""
        self._tell("begin")
        self.await_lease()

    def await_lease(self) -> None:
        """Returns when it holds a sub-lease."""
        eventually(lambda: self.status().lease_left_ms > 0)

    def await_session(self) -> None:
        """Returns when it has a session."""
        eventually(lambda: self.status().session_id != "")

    def status(self) -> WatchedStatus:
        """What it says of itself now."""
        told = self._tell("status")
        return WatchedStatus(**{**told, "asks": tuple(told["asks"])})

    def ask(self) -> int:
        """Asks for a sub-lease, without awaiting it."""
        number = self._tell("ask")
        assert isinstance(number, int), "it has no session"
        return number

    def renew(self) -> None:
        """Asks for a sub-lease and awaits it: its replica has read everything that it acknowledged before."""
        session_id, number = self.status().session_id, self.ask()

        def is_granted() -> bool:
            status = self.status()
            return status.session_id != session_id or number not in status.asks

        eventually(is_granted)

    def begin_check(self, subject: Subject, *, timeout_s: float = TIMEOUT_S) -> Asked:
        """Begins a check of the subject's question."""
        record = WatchedCheck(self.name, subject, now_ns())
        self.history.checks.append(record)
        number = self.pipe.send(
            "check",
            secret=subject.secret,
            permission=subject.permission,
            project_id=subject.project_id,
            timeout_s=timeout_s,
        )
        return Asked(self, number, record)

    def check(self, subject: Subject, *, timeout_s: float = TIMEOUT_S) -> str:
        """What a check is answered, by whom ever: ALLOWED, a DenyReason or the code of the failure."""
        return self.begin_check(subject, timeout_s=timeout_s).result().answered

    def decides(self, subject: Subject, *, timeout_s: float = TIMEOUT_S) -> str:
        """The same; HERE before it, if it was decided in the process."""
        record = self.begin_check(subject, timeout_s=timeout_s).result()
        return f"HERE {record.answered}" if record.is_here else record.answered

    def warm(self, subject: Subject) -> None:
        """Lets it hold the subject, so that a check is decided in the process, from memory."""
        eventually(lambda: self.decides(subject) == HERE)

    def fork(self, subject: Subject) -> dict[str, object]:
        """What a child says that comes from it by fork(): whether it holds_lease, and whether it decides."""
        told = self._tell("fork", secret=subject.secret, permission=subject.permission, project_id=subject.project_id)
        assert isinstance(told, dict)
        return told

    def begin_goodbye(self) -> int:
        """It closes: gives up, says goodbye. `end_goodbye` returns when that is done."""
        return self.pipe.send("close")

    def end_goodbye(self, number: int) -> None:
        """Returns when it is closed."""
        self.pipe.answer(number)

    def lead_to(self, replica: Replica) -> None:
        """Its stream breaks, and the next one leads to `replica`; returns when it has begun there, with a sub-lease or not."""
        former = self.status().session_id
        self.line.lead_to(replica.await_ready())
        eventually(lambda: self.status().session_id not in {"", former})

    def close(self) -> None:
        """Ends the process, if it is still there, and its line."""
        self.end()
        self.line.close()

    def _tell(self, do: str, **arguments: object) -> Any:
        return self.pipe.answer(self.pipe.send(do, **arguments))


@contextlib.contextmanager
def watching(
    cluster: Cluster,
    name: str,
    *subjects: Subject,
    rate: float = 1.0,
    dialect: str = "aio",
    without: Sequence[str] = (),
) -> Iterator[Watched]:
    """A watcher of the replica `name` that holds the subjects; its process is gone after the block. `dialect`: aio, threads."""
    watcher = Watched(cluster, name, subjects[0], rate=rate, dialect=dialect, without=without)
    cluster.watchers.append(watcher)
    try:
        watcher.begin()
        for subject in subjects:
            watcher.warm(subject)
        yield watcher
    finally:
        cluster.watchers.remove(watcher)
        watcher.close()


def stand(cluster: Cluster, watcher: Watched) -> None:
    """Time stands; all leases, and the watcher's sub-lease, count from this moment."""
    cluster.stand()
    cluster.renew(*cluster.replicas.values())
    watcher.renew()


@contextlib.contextmanager
def traffic_of(watchers: Sequence[Watched], subjects: Sequence[Subject], timeout_s: float = 0.5) -> Iterator[None]:
    """Asks every watcher, as long as the block lasts; the history has what was answered."""
    stop = threading.Event()

    def ask(watcher: Watched) -> None:
        while not stop.wait(PAUSE_S):
            for subject in list(subjects):
                if watcher.is_alive and not watcher.is_frozen:
                    with contextlib.suppress(AssertionError):  # killed in the middle of it
                        watcher.check(subject, timeout_s=timeout_s)

    threads = [threading.Thread(target=ask, args=(watcher,), name=f"asks {watcher.name}") for watcher in watchers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
