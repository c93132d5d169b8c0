"""One process with many `doorward.aio.LocalAuthorizer`s in its loop, each with a stream of its own. Run by `watchers.py`.

Standard input: lines of JSON, each answered by one. The first is `{addresses, credential, watchers}`, answered by `ready`;
the others are

- `{do: "open"}`: all of them connect, each to one of the servers, and hold a sub-lease: `{open}`;
- `{do: "hold", ask: [secret, permission, project]}`: each asks until it is decided here: `{allowed}`, how many allowed it;
- `{do: "check", ask}`: each asks once: `{allowed, here}`; with `asks` in place of `ask` each has its own of them, in turn;
- `{do: "close"}`: all say goodbye.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from bench.caller import answer
from doorward.aio import LocalAuthorizer
from doorward.decisions import DecidedBy, Decision

if TYPE_CHECKING:
    from collections.abc import Iterable

READY_S: Final = 60.0
CHECK_S: Final = 10.0
# A sub-lease may end between two looks; then the server answers, and the next look is decided here.
LOOKS: Final = 20
# As many connect at once: all of them together would only wait for each other.
AT_ONCE: Final = 20


class Watchers:
    """All of this process."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._open: list[LocalAuthorizer] = []

    async def do(self, order: dict[str, Any]) -> dict[str, int]:
        """What the order says; its answer."""
        match order["do"]:
            case "open":
                return await self._connect()
            case "close":
                await asyncio.gather(*(local.close() for local in self._open))
                self._open.clear()
                return {"open": 0}
            case "hold":
                decisions = await asyncio.gather(*(self._held(local, *ask) for local, ask in self._asked(order)))
            case _:
                decisions = await asyncio.gather(*(self._check(local, *ask) for local, ask in self._asked(order)))
        return {
            "allowed": sum(decision.allowed for decision in decisions),
            "here": sum(decision.decided_by is DecidedBy.HERE for decision in decisions),
        }

    def _asked(self, order: dict[str, Any]) -> Iterable[tuple[LocalAuthorizer, list[str]]]:
        return zip(self._open, itertools.cycle(order["asks"] if "asks" in order else [order["ask"]]), strict=False)

    async def _connect(self) -> dict[str, int]:
        addresses, room = self._job["addresses"], asyncio.Semaphore(AT_ONCE)
        self._open = [
            LocalAuthorizer(addresses[number % len(addresses)], credential=lambda: str(self._job["credential"]))
            for number in range(self._job["watchers"])
        ]

        async def connect(local: LocalAuthorizer) -> None:
            async with room:
                await local.wait_ready(timeout=READY_S)

        await asyncio.gather(*(connect(local) for local in self._open))
        return {"open": len(self._open)}

    async def _held(self, local: LocalAuthorizer, secret: str, permission: str, project_id: str) -> Decision:
        for _ in range(LOOKS):
            decision = await self._check(local, secret, permission, project_id)
            if decision.decided_by is DecidedBy.HERE:
                return decision
            await local.wait_ready(timeout=READY_S)
        raise RuntimeError(f"a watcher did not decide in-process within {LOOKS} looks")

    async def _check(self, local: LocalAuthorizer, secret: str, permission: str, project_id: str) -> Decision:
        return await local.check(secret, permission, project_id=project_id, timeout=CHECK_S)


async def main() -> None:
    """Does as told until standard input ends."""
    loop = asyncio.get_running_loop()
    watchers = Watchers(json.loads(await loop.run_in_executor(None, sys.stdin.readline)))
    answer("ready")
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer(await watchers.do(json.loads(line)))
    await watchers.do({"do": "close"})


if __name__ == "__main__":
    asyncio.run(main())
