"""A process that the bench tells what to do: a line of JSON in, a line of JSON out. Used by every part that has callers."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any

from bench import harness

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence


class Told:
    """One running process."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    def write(self, value: object) -> None:
        """Sends a line. A process that has ended says why where its answer is read."""
        if self._process.stdin is None:
            raise RuntimeError("the process has no input")
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def read(self) -> Any:
        """Its next answer.

        Raises:
            RuntimeError: it has ended; with the end of its log.
        """
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"a process of the bench ended:\n{self._log.read().decode()[-4000:]}")
        return json.loads(line)

    def ask(self, value: object) -> Any:
        """The answer to this line. Raises as `read` does."""
        self.write(value)
        return self.read()


@contextlib.contextmanager
def told(
    arguments: Sequence[str],
    cores: frozenset[int],
    *,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[Told]:
    """Runs `python <arguments>` for the length of the block."""
    with tempfile.TemporaryFile() as log:
        process = harness.start(arguments, cores, log, stdin=harness.PIPE, environment=environment, python=python)
        try:
            yield Told(process, log)
        finally:
            harness.stop(process)
