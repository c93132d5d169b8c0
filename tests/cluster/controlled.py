"""A process in a test's hand, whatever it does: the pipe to it, its failpoints, its clock, its life and death.

`Replica` is one that serves, `Watched` one that watches. All waits are bounded and for conditions.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.wire import eventually

if TYPE_CHECKING:
    import socket

    from tests.cluster.nursery import Process
    from tests.cluster.steps import Point

__all__ = ["PATIENCE_S", "Controlled", "Pipe"]

PATIENCE_S: Final = 60.0


class Pipe:
    """The test's end of the pair: asks and awaits the answer, and counts the events that come in between."""

    def __init__(self, pair: socket.socket, of: str) -> None:
        self._pair = pair
        self._of = of
        self._answers: dict[int, Any] = {}
        self._reached: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._asked = 0
        self._news = threading.Condition()
        self.address: str | None = None
        self.is_closed = False
        threading.Thread(target=self._read, name=f"pipe of {of}", daemon=True).start()

    def send(self, do: str, **arguments: object) -> int:
        """Asks without awaiting; the number of the answer. Of a process that has ended, `answer` says so."""
        with self._news:
            self._asked += 1
            number = self._asked
        with contextlib.suppress(ConnectionError):
            self._pair.sendall(json.dumps({"do": do, "id": number, **arguments}).encode() + b"\n")
        return number

    def answer(self, number: int) -> Any:
        """The answer to what was asked before."""
        with self._news:
            arrived = self._news.wait_for(lambda: number in self._answers or self.is_closed, PATIENCE_S)
            assert arrived, f"{self._of} does not answer"
            assert number in self._answers, f"{self._of} has ended"
            message = self._answers.pop(number)
        assert "failure" not in message, message["failure"]
        return message["answer"]

    def has_answer(self, number: int) -> bool:
        """Whether that answer has come, or never will."""
        with self._news:
            return number in self._answers or self.is_closed

    def reached(self, point: str, within_s: float) -> bool:
        """Whether a hit of `point` that was not asked for before has been told, or is in that time."""
        with self._news:
            told = self._news.wait_for(
                lambda: self._reached.get(point, 0) > self._seen.get(point, 0) or self.is_closed, within_s
            )
            if not told or self._reached.get(point, 0) == self._seen.get(point, 0):
                return False
            self._seen[point] = self._seen.get(point, 0) + 1
            return True

    def forget(self, point: str) -> None:
        """Hits of `point` so far are not asked about any more."""
        with self._news:
            self._seen[point] = self._reached.get(point, 0)

    def await_address(self) -> str | None:
        """Where the process listens, once it says so; None: it ended before, or says nothing."""
        with self._news:
            self._news.wait_for(lambda: self.address is not None or self.is_closed, PATIENCE_S)
            return self.address

    def close(self) -> None:
        """Ends the conversation, and with it a process that is still there."""
        self._pair.close()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = self._pair.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            with self._news:
                for line in lines:
                    self._take(json.loads(line))
                self._news.notify_all()
        with self._news:
            self.is_closed = True
            self._news.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == "listening":
            self.address = message["address"]
        elif message.get("event") == "reached":
            self._reached[message["point"]] = self._reached.get(message["point"], 0) + 1
        else:
            self._answers[message["id"]] = message


class Controlled:
    """A running process. Another one in its place is another `Controlled`."""

    def __init__(self, name: str, process: Process, pair: socket.socket, log: Path) -> None:
        """`pair` is the test's end, `log` where the process writes."""
        self.name = name
        self.process = process
        self.log = log
        self.is_frozen = False
        self.rate = 1.0
        self.pipe = Pipe(pair, f"{name} ({log})")

    @property
    def is_alive(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self.process.poll() is None

    def begin_wake(self) -> int:
        """Everybody in it who sleeps looks at the clock again; `end_wake` returns when that is so."""
        return self.pipe.send("wake")

    def end_wake(self, number: int) -> None:
        """Returns when the wake has come."""
        self.pipe.answer(number)

    # ---- its steps

    def arm(self, point: Point, action: str = "pause", *, skip: int = 0, times: int | None = None) -> None:
        """From now on `action` happens at `point`: pause, error, freeze, crash, nothing.

        To the hits after the first `skip`, `times` of them (None: all).
        """
        self.pipe.forget(point.value)
        self.pipe.answer(self.pipe.send("arm", name=point.value, action=action, skip=skip, times=times))

    def reached(self, point: Point, within_s: float = PATIENCE_S) -> None:
        """Returns once it has stopped at `point`; each hit is told once."""
        assert self.pipe.reached(point.value, within_s), f"{self.name} did not reach {point.value} ({self.log})"

    def has_reached(self, point: Point) -> bool:
        """Whether it has stopped at `point` since it was armed; each hit is told once."""
        return self.pipe.reached(point.value, 0)

    def release(self, point: Point) -> None:
        """Who stands at `point` goes on, and nothing happens there any more."""
        self.pipe.answer(self.pipe.send("release", name=point.value))

    def release_all(self) -> None:
        """The same for all points."""
        self.pipe.answer(self.pipe.send("release_all"))

    def skew(self, rate: float) -> None:
        """From now on its clock runs at `rate` against true time."""
        self.rate = rate
        self.pipe.answer(self.pipe.send("skew", rate=rate))

    # ---- its life

    def freeze(self) -> None:
        """SIGSTOP, and returns when it stands."""
        self.process.send_signal(signal.SIGSTOP)
        self.await_frozen()

    def await_frozen(self) -> None:
        """Returns when the process stands, having been stopped by somebody."""
        eventually(lambda: self._state() == "T")
        self.is_frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.is_frozen = False
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.is_frozen = False

    def await_death(self) -> None:
        """Returns when the process has ended by itself."""
        self.process.wait(PATIENCE_S)

    def terminate(self) -> None:
        """SIGTERM, without awaiting its end."""
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends the process, if it is still there, and the conversation."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.pipe.close()

    def _state(self) -> str:
        text = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii")
        return text.rpartition(")")[2].split()[0]
