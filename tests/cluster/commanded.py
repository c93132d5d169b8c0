"""The other end of a process in a test's hand (`controlled.py`): obeys commands, on a clock that the test steps.

Commands and answers are JSON, one a line, over a socket pair. Every command is answered under its `id`. The process ends when
the test's end of the pair is closed. Used by `replica_process.py` and `watcher_process.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn

from doorward_server.replica.timing import Signal, Timing
from tests.cluster.points import Points

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.cluster.true_time import SkewedClock

__all__ = ["Commanded", "SteppedTiming"]

LARGEST_READ: Final = 65536


class SteppedTiming(Timing):
    """Sleeps on a clock that may stand, be advanced and change its rate; `stepped` wakes who sleeps to look again."""

    __slots__ = ("skewed", "sleepers", "stepped")

    def __init__(self, clock: SkewedClock) -> None:
        super().__init__(clock)
        self.skewed = clock
        self.stepped = Signal()
        self.sleepers: dict[object, int] = {}

    async def sleep_until(self, at_ns: int) -> None:
        sleeper = object()
        try:
            while (left_ns := at_ns - self.now_ns()) > 0:
                self.sleepers[sleeper] = at_ns
                woken = self.stepped.next_wake()
                try:
                    await asyncio.wait({woken}, timeout=self.skewed.machine_s(left_ns))
                finally:
                    self.stepped.forget(woken)
        finally:
            self.sleepers.pop(sleeper, None)


class Commanded:
    """The test's hand in a process. A command that is a coroutine function is answered when it ends."""

    def __init__(self, pair: socket.socket, timing: SteppedTiming) -> None:
        pair.setblocking(False)
        self.timing = timing
        self.points = Points(self.tell)
        self._pair = pair
        self._under_way: set[asyncio.Task[None]] = set()
        self.commands: dict[str, Callable[..., object]] = {
            "wake": self._wake,
            "skew": self._skew,
            "arm": self.points.arm,
            "release": self.points.release,
            "release_all": self.points.release_all,
        }

    def tell(self, **message: object) -> None:
        """Sends one line, at once: whoever freezes this process afterwards must not keep it back."""
        line = json.dumps(message).encode() + b"\n"
        try:
            sent = self._pair.send(line)
        except ConnectionError:
            _end()
        if sent != len(line):
            raise RuntimeError("the test does not read what this process tells")

    async def run(self) -> None:
        """Does what the test says, until it closes its end."""
        loop = asyncio.get_running_loop()
        rest = b""
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(self._pair, LARGEST_READ):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
        _end()

    def _obey(self, message: dict[str, Any]) -> None:
        command, number = message.pop("do"), message.pop("id")
        try:
            answer = self.commands[command](**message)
        except (LookupError, TypeError, ValueError, AssertionError) as failure:
            self.tell(id=number, failure=f"{type(failure).__name__}: {failure}")
            return
        if isinstance(answer, Coroutine):
            task = asyncio.ensure_future(self._answer(number, answer))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        else:
            self.tell(id=number, answer=answer)

    async def _answer(self, number: int, work: Coroutine[Any, Any, object]) -> None:
        try:
            self.tell(id=number, answer=await work)
        except Exception as failure:  # noqa: BLE001 - the test is told
            self.tell(id=number, failure=f"{type(failure).__name__}: {failure}")

    def _wake(self) -> None:
        self.timing.stepped.wake()

    def _skew(self, rate: float) -> None:
        self.timing.skewed.skew(rate)
        self.timing.stepped.wake()


def _end() -> NoReturn:
    """Nobody controls this process any more, and nobody else would end it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")
