"""One watching process as the tests start it: the real `LocalAuthorizer` of either dialect, on a clock of the test's.

`run` is what the nursery forks a process for: config = {"time": …, "watches": address, "credential": …, "rate": …, "dialect":
aio | threads, "without": […]}.
Commands beside those of `commanded.py`: begin, ask, check, status, fork, close. Its points are those of a check, and
`watch.client.before_install`, where a message has come and is not applied yet. A check that shall stop after it captured or
decided is frozen there with the whole process (a real SIGSTOP), for nothing awaits in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from doorward import _aio_local, _threads_local, aio, threads
from doorward._watch_shared import Backoff, StreamStalled
from doorward.core.watcher import Decided, Watcher
from doorward.decisions import DecidedBy
from doorward.errors import ClientClosed, DoorwardError
from doorward_server import telemetry
from tests.cluster.commanded import Commanded, SteppedTiming
from tests.cluster.guards import take_away
from tests.cluster.steps import Step
from tests.cluster.true_time import SkewedClock, TrueTime

if TYPE_CHECKING:
    import socket

    from doorward._watch_shared import Watching
    from doorward.core.watch_messages import FromReplica
    from doorward.core.watch_session import Session
    from doorward.decisions import Decision
    from tests.cluster.points import Points

__all__ = ["run"]

# Another stream is opened this soon, in the machine's time: what a test waits for.
BACKOFF_S: Final = 0.05
# Checks at once, of the dialect in which each takes a thread.
CALLERS: Final = 16


class Aio:
    """The watcher of one dialect, as the commands want it."""

    def __init__(self, address: str, credential: str) -> None:
        self.local = aio.LocalAuthorizer(address, credential=credential, keepalive=None)
        self.feed = self.local._feed

    def queued(self) -> None:
        """Something waits to be sent, or time has passed."""
        self.feed._to_write.set()

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """While nobody else changes anything."""
        return contextlib.nullcontext()

    async def check(self, *asked: Any, **how: Any) -> Decision:
        """The decision."""
        return await self.local.check(*asked, **how)

    async def close(self) -> None:
        """Gives up and says goodbye."""
        await self.local.close()


class Threads:
    """The same of the other one: whatever waits does so in a thread."""

    def __init__(self, address: str, credential: str) -> None:
        self.local = threads.LocalAuthorizer(address, credential=credential, keepalive=None)
        self.feed = self.local._feed
        self._pool = ThreadPoolExecutor(CALLERS)

    def queued(self) -> None:
        with self.feed.changed:
            self.feed.changed.notify_all()

    def lock(self) -> contextlib.AbstractContextManager[object]:
        return self.feed.changed

    async def check(self, *asked: Any, **how: Any) -> Decision:
        call = functools.partial(self.local.check, *asked, **how)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, self.local.close)


DIALECTS: Final[dict[str, type[Aio | Threads]]] = {"aio": Aio, "threads": Threads}


class Watches(Commanded):
    """The test's hand in this process."""

    def __init__(self, pair: socket.socket, timing: SteppedTiming, watcher: Aio | Threads) -> None:
        super().__init__(pair, timing)
        self._watcher = watcher
        self._watching = watcher.feed.watching
        self._watching.now_ns = timing.now_ns
        self.commands |= {
            "begin": watcher.feed.begin,
            "ask": self._ask,
            "check": self._check,
            "status": self._status,
            "fork": self._fork,
            "close": watcher.close,
            "arm": self._arm,
            "wake": self._wake_watcher,
        }

    def _wake_watcher(self) -> None:
        self.timing.stepped.wake()
        self._watcher.queued()

    def _arm(self, name: str, action: str, skip: int = 0, times: int | None = None) -> None:
        session = self._watching.watcher.session
        if session is not None:
            # What is remembered is not decided again, and would not come by here.
            session.answers = {}
        self.points.arm(name, action, skip, times)

    def _ask(self) -> int | None:
        """Asks for a sub-lease; the number of the ask."""
        with self._watcher.lock():
            session = self._watching.watcher.session
            if session is None or session.started is None:
                return None
            self._watching._ask(session)
            self._watcher.queued()
            return session._last_ask

    async def _check(self, secret: str, permission: str, project_id: str, timeout_s: float) -> dict[str, object]:
        told: dict[str, object] = {"is_here": False, "why": "", "revision": ""}
        try:
            decision = await self._watcher.check(secret, permission, project_id=project_id, timeout=timeout_s)
        except ClientClosed:
            told["answered"] = "CANCELLED"
        except DoorwardError as error:
            told |= {"answered": error.code.name, "why": error.reason or ""}
        else:
            await self.points.reach(Step.CHECK_BEFORE_SEND.value)
            told["answered"] = "ALLOWED" if decision.allowed else str(decision.reason)
            told |= {"is_here": decision.decided_by is DecidedBy.HERE, "revision": decision.revision}
        return {**told, "ended_ns": time.monotonic_ns()}

    def _status(self) -> dict[str, object]:
        with self._watcher.lock():
            return self._told()

    def _told(self) -> dict[str, object]:
        watching = self._watching
        session = watching.watcher.session
        left_ns = 0 if session is None or session.end_ns is None else session.end_ns - watching.now_ns()
        started = None if session is None else session.started
        return {
            "session_id": "" if started is None else started.session_id,
            "lease_left_ms": max(left_ns, 0) / 1e6,
            "asks": [] if session is None else sorted(session._asks),
            "held": 0 if session is None else len(session.tables.tokens),
            "position": "" if session is None else session.position,
            "sequence": 0 if session is None else session.sequence,
            "resolves": 0 if session is None else len(session.resolves),
            "trouble": watching.trouble,
        }

    def _fork(self, secret: str, permission: str, project_id: str) -> dict[str, object]:
        """What a child has to say that came from here by fork()."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                local = self._watcher.local
                decision = local._warm(secret, permission, project_id, None)
                told = {"holds_lease": local.holds_lease, "decides": decision is not None}
                os.write(theirs, json.dumps(told).encode())
            finally:
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            told_by_child: dict[str, object] = json.loads(pipe.read())
        os.waitpid(child, 0)
        return told_by_child


class SteppedAlarm:
    """`_aio_local._Alarm` on the test's clock."""

    timing: SteppedTiming

    def __init__(self, watching: Watching, session: Session, call: Any, to_write: asyncio.Event) -> None:
        self.stalled: StreamStalled | None = None
        self._task = asyncio.ensure_future(self._ring(watching, session, call, to_write))

    def stop(self) -> None:
        """Rings no more."""
        self._task.cancel()

    async def _ring(self, watching: Watching, session: Session, call: Any, to_write: asyncio.Event) -> None:
        while True:
            try:
                seconds = watching.tick(session)
            except StreamStalled as stalled:
                self.stalled = stalled
                call.cancel()
                return
            to_write.set()
            await self.timing.sleep_until(self.timing.now_ns() + round(seconds * 1e9))


def _put(owner: Any, name: str, replacement: object) -> None:
    setattr(owner, name, replacement)


def wrap_watcher(points: Points, timing: SteppedTiming) -> None:
    """Puts the points around the real code, and its timers on the test's clock."""
    decide, take, take_in_thread = Watcher.decide, _aio_local.Feed._take, _threads_local.Feed._take
    loop = asyncio.get_running_loop()

    def decide_and_stop(self: Watcher, *asked: Any, **how: Any) -> Any:
        points.pass_by(Step.CHECK_AFTER_CAPTURE.value)
        found = decide(self, *asked, **how)
        if isinstance(found, Decided):
            points.pass_by(Step.CHECK_AFTER_DECIDE.value)
        return found

    async def stop_and_take(self: _aio_local.Feed, session: Session, message: FromReplica) -> bool:
        await points.reach(Step.WATCH_CLIENT_BEFORE_INSTALL.value)
        return await take(self, session, message)

    def stop_thread_and_take(self: _threads_local.Feed, session: Session, message: FromReplica) -> bool:
        asyncio.run_coroutine_threadsafe(points.reach(Step.WATCH_CLIENT_BEFORE_INSTALL.value), loop).result()
        return take_in_thread(self, session, message)

    _put(Watcher, "decide", decide_and_stop)
    _put(_aio_local.Feed, "_take", stop_and_take)
    _put(_threads_local.Feed, "_take", stop_thread_and_take)
    SteppedAlarm.timing = timing
    _put(_aio_local, "_Alarm", SteppedAlarm)
    _put(Backoff, "FIRST_S", BACKOFF_S)
    _put(Backoff, "LONGEST_S", BACKOFF_S)


def run(config: dict[str, Any], pair: socket.socket) -> None:
    """Watches until SIGTERM."""
    telemetry.configure("debug", "text")
    asyncio.run(_run(config, pair))


async def _run(config: dict[str, Any], pair: socket.socket) -> None:
    timing = SteppedTiming(SkewedClock(TrueTime(Path(config["time"])), config["rate"]))
    watcher = DIALECTS[config["dialect"]](config["watches"], config["credential"])
    control = Watches(pair, timing, watcher)
    wrap_watcher(control.points, timing)
    for name in config["without"]:
        take_away(name)
    commands = asyncio.ensure_future(control.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, commands.cancel)
    control.tell(event="listening", address=config["watches"])
    await asyncio.wait({commands})
    await watcher.close()
