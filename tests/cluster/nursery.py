"""Forks replica processes and watchers from one that has imported everything: most of a start is imports, and there are a
hundred of them.

Nothing runs in the nursery itself: no thread, no event loop, no gRPC, so that a fork of it is as good as a new process. The
test asks over a socket pair, handing in the process's own end of its pair and its log; it is told the process's id, and
later how it ended. `Nursery` is the test's side, `main` the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.server import clean_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Nursery", "Process"]

PATIENCE_S: Final = 60.0
REPOSITORY: Final = Path(__file__).resolve().parents[2]
LARGEST_REQUEST: Final = 65536
PR_SET_PDEATHSIG: Final = 1


class Process:
    """A process that the nursery forked. Signals reach it and no other, whoever has its id by then."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()
        try:
            self._handle: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = None

    def poll(self) -> int | None:
        """How it ended; None: it runs."""
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        """How it ended, once it has.

        Raises:
            AssertionError: it did not in time.
        """
        assert self._ended.wait(timeout_s), f"process {self.pid} does not end"
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal; one that has ended gets none."""
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def ended(self, returncode: int) -> None:
        """Takes note of its end."""
        self.returncode = returncode
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self._ended.set()


class Nursery:
    """The test's side. Its end is that of every process it forked."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.nursery", str(theirs.fileno())],
                cwd=REPOSITORY,
                env=clean_environment(),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours
        self._news = threading.Condition()
        self._born: list[Process] = []
        self._living: dict[int, Process] = {}
        self._thread = threading.Thread(target=self._read, name="nursery", daemon=True)
        self._thread.start()

    def fork(self, config: Mapping[str, object], pair: socket.socket, log: int) -> Process:
        """A new process that runs `replica_process.run(config)`, or a watcher's, with its end of the pair, and a log to write."""
        request = json.dumps(config).encode()
        with self._news:
            socket.send_fds(self._socket, [request], [pair.fileno(), log])
            assert self._news.wait_for(lambda: self._born, PATIENCE_S), "the nursery does not answer"
            return self._born.pop()

    def close(self) -> None:
        """Ends it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _read(self) -> None:
        while message := self._socket.recv(LARGEST_REQUEST):
            told = json.loads(message)
            with self._news:
                if "returncode" in told:
                    self._living.pop(told["pid"]).ended(told["returncode"])
                else:
                    process = Process(told["pid"])
                    self._living[process.pid] = process
                    self._born.append(process)
                self._news.notify_all()


# ---- the nursery's own process


def main(control: socket.socket) -> None:
    """Forks on request and tells of ends, until the test's side is closed; then everything that lives is killed."""
    from tests.cluster import replica_process, watcher_process  # noqa: PLC0415 - only here: the tests' process needs neither

    die_with_parent()
    gc.collect()
    gc.freeze()
    living: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), *living], [], [])
        for handle in ready:
            if handle in living:
                _bury(control, handle, living.pop(handle))
        if control.fileno() not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(control, LARGEST_REQUEST, 2)
        if not request:
            break
        pid = os.fork()
        if pid == 0:
            control.close()
            config = json.loads(request)
            _live(watcher_process.run if "watches" in config else replica_process.run, config, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        living[os.pidfd_open(pid)] = pid
        control.send(json.dumps({"pid": pid}).encode())
    for pid in living.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _bury(control: socket.socket, handle: int, pid: int) -> None:
    os.close(handle)
    returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ConnectionError):
        control.send(json.dumps({"pid": pid, "returncode": returncode}).encode())


def _live(run: Any, config: dict[str, Any], pair: int, log: int) -> None:
    """The life of a forked process; it does not come back from here."""
    status = 1
    try:
        die_with_parent()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        run(config, socket.socket(fileno=pair))
        status = 0
    except BaseException:  # noqa: BLE001 - as an interpreter's end: what it was stands in the log
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def die_with_parent() -> None:
    """Also a process that stands still is killed when its parent dies: it would not see its end of a pair close."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
