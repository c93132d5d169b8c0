"""One process with a LocalAuthorizer, on asyncio or on threads. Run by `local.py` as `bench.local_caller DIALECT`.

Standard input: a line of JSON with the address, the credential, the questions and how often a round asks them; then a line
for each round. Each is answered by one: the answers to the questions, then `{ns}` for a check. A check that was not decided
in this process ends the round with an error: then nothing was measured. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from bench.caller import answer
from doorward import aio, threads
from doorward.decisions import DecidedBy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from doorward.decisions import Decision

READY_S: Final = 30.0
# Rounds until every token is held and nothing is fetched any more.
WARM_UPS: Final = 20
# Between two rounds, so that the stream has its turn in the loop.
PAUSE_S: Final = 0.01


async def on_asyncio(job: dict[str, Any]) -> None:
    """Rounds with `doorward.aio.LocalAuthorizer`; the loop that measures is the loop of its stream."""
    loop = asyncio.get_running_loop()
    questions = job["questions"]
    async with aio.LocalAuthorizer(job["address"], credential=lambda: str(job["credential"])) as local:
        check = local.check

        async def asked(times: int) -> tuple[list[Decision], int]:
            await asyncio.sleep(PAUSE_S)
            await local.wait_ready(timeout=READY_S)
            decisions = []
            began = time.perf_counter_ns()
            for _ in range(times):
                for secret, permission, project_id, account_id in questions:
                    decisions.append(await check(secret, permission, project_id=project_id, account_id=account_id))
            return decisions, time.perf_counter_ns() - began

        for _ in range(WARM_UPS):
            decisions, _ns = await asked(1)
        answer(_allowed(decisions))
        while await loop.run_in_executor(None, sys.stdin.readline):
            decisions, ns = await asked(job["times"])
            _allowed(decisions)
            answer({"ns": ns / len(decisions)})


def on_threads(job: dict[str, Any]) -> None:
    """Rounds with `doorward.threads.LocalAuthorizer`, whose stream has a thread of its own."""
    questions = job["questions"]
    with threads.LocalAuthorizer(job["address"], credential=lambda: str(job["credential"])) as local:
        check = local.check

        def asked(times: int) -> tuple[list[Decision], int]:
            local.wait_ready(timeout=READY_S)
            decisions = []
            began = time.perf_counter_ns()
            for _ in range(times):
                for secret, permission, project_id, account_id in questions:
                    decisions.append(check(secret, permission, project_id=project_id, account_id=account_id))
            return decisions, time.perf_counter_ns() - began

        for _ in range(WARM_UPS):
            decisions, _ns = asked(1)
        answer(_allowed(decisions))
        while sys.stdin.readline():
            decisions, ns = asked(job["times"])
            _allowed(decisions)
            answer({"ns": ns / len(decisions)})


def _allowed(decisions: Iterable[Decision]) -> list[bool]:
    """What was allowed, once it is sure that no server was asked."""
    allowed = []
    for decision in decisions:
        if decision.decided_by is not DecidedBy.HERE:
            raise RuntimeError("a check was decided by the server: this was no round of warm checks")
        allowed.append(decision.allowed)
    return allowed


if __name__ == "__main__":
    told = json.loads(sys.stdin.readline())
    if sys.argv[1] == "asyncio":
        asyncio.run(on_asyncio(told))
    else:
        on_threads(told)
