"""Checks at a steady, bounded rate, beside what is measured. `asking` starts a process of its own for each server.

The process (`python -m bench.load`) reads a line of JSON, a target as `bench/caller.py` takes it with a `rate` (checks a
second) and a `window` (how many at once at the most), answers `ready` once it was answered, and asks until its input ends.
Then it answers `{checks, allowed, failed, seconds}`. A server that is slow is asked less often, never more at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from bench import harness
from bench.caller import answer
from doorward.v1 import authorizer_pb2, authorizer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.harness import Server

CALL_TIMEOUT_S: Final = 5.0
WINDOW: Final = 4


@dataclass
class Asked:
    """What became of the checks at one server; known once the block of `asking` has ended."""

    checks: int = 0
    allowed: int = 0
    failed: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def asking(
    server: Server,
    credential: str,
    requests: Sequence[authorizer_pb2.CheckRequest],
    cores: frozenset[int],
    *,
    rate: float,
) -> Iterator[Asked]:
    """Asks `server` for the length of the block, `rate` times a second.

    Raises:
        RuntimeError: the asking process ended by itself.
    """
    job = {
        "address": server.address,
        "credential": credential,
        "requests": [request.SerializeToString().hex() for request in requests],
        "rate": rate,
        "window": WINDOW,
    }
    asked = Asked()
    with tempfile.TemporaryFile() as log:
        process = harness.start(["-m", "bench.load"], cores, log, stdin=harness.PIPE)
        try:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the asking process has no pipes")
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            is_ready = process.stdout.readline()
            yield asked
            process.stdin.close()
            line = process.stdout.readline()
            if not is_ready or not line:
                log.seek(0)
                raise RuntimeError(f"the asking process ended:\n{log.read().decode()[-4000:]}")
            asked.__dict__.update(json.loads(line))
        finally:
            harness.stop(process)


class _Load:
    """The asking process's side."""

    def __init__(self, job: dict[str, Any], channel: grpc.aio.Channel) -> None:
        self._check = authorizer_pb2_grpc.AuthorizerStub(channel).Check
        self._requests = [authorizer_pb2.CheckRequest.FromString(bytes.fromhex(text)) for text in job["requests"]]
        self._metadata = (("authorization", f"Bearer {job['credential']}"),)
        self._period_s: float = job["window"] / job["rate"]
        self._is_over = asyncio.Event()
        self.asked = Asked()

    def end(self) -> None:
        """No check begins from now on."""
        self._is_over.set()

    async def ask(self) -> None:
        """One check."""
        request = self._requests[self.asked.checks % len(self._requests)]
        self.asked.checks += 1
        try:
            response = await self._check(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError:
            self.asked.failed += 1
        else:
            self.asked.allowed += response.allowed

    async def work(self, share: float) -> None:
        """One after the other, a period apart; `share` of a period later than those who begin first."""
        due = time.monotonic() + share * self._period_s
        while not self._is_over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due - time.monotonic()):
                    await self._is_over.wait()
                    return
            await self.ask()
            # Late, it does not catch up: that would be a burst.
            due = max(due + self._period_s, time.monotonic())


async def main() -> None:
    """Asks as told until standard input ends."""
    loop = asyncio.get_running_loop()
    job = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    async with grpc.aio.insecure_channel(job["address"]) as channel:
        load = _Load(job, channel)
        await load.ask()
        answer("ready")
        began = time.monotonic()
        workers = [asyncio.ensure_future(load.work(number / job["window"])) for number in range(job["window"])]
        await loop.run_in_executor(None, sys.stdin.read)
        load.end()
        await asyncio.gather(*workers)
        load.asked.seconds = time.monotonic() - began
        answer(load.asked.__dict__)


if __name__ == "__main__":
    asyncio.run(main())
