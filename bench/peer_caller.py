"""One caller of Doorward and of its peers, each through what its users have. Runs in the peers' environment (`peers.py`).

Standard input: a line of JSON, `{questions, addresses, credential}`; then lines `{target, calls, window}`, each answered by
`{calls, wrong, seconds, cpu, latencies}`: `wrong` counts answers that were not as the question says. A question is `{secret,
permission, project_id, account_id, token_id, grants, allowed}`; grants and account are for who keeps no tokens.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import grpc.aio
from cerbos.engine.v1 import engine_pb2
from cerbos.sdk.grpc.client import AsyncCerbosClient
from google.protobuf import struct_pb2

from doorward.aio import AuthorizerClient
from doorward.v1 import authorizer_pb2, authorizer_pb2_grpc

CALL_TIMEOUT_S = 30.0


def _value(value: Any) -> struct_pb2.Value:
    struct = struct_pb2.Struct()
    struct.update({"value": value})
    return struct.fields["value"]


class Stub:
    """The generated stub of Doorward."""

    def __init__(self, address: str, credential: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._check: Any = authorizer_pb2_grpc.AuthorizerStub(self._channel).Check
        self._metadata = (("authorization", f"Bearer {credential}"),)

    def prepared(self, question: dict[str, Any]) -> Any:
        return authorizer_pb2.CheckRequest(
            secret=question["secret"], permission=question["permission"], project_id=question["project_id"]
        )

    async def check(self, prepared: Any) -> bool:
        answer = await self._check(prepared, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
        return bool(answer.allowed)

    async def close(self) -> None:
        await self._channel.close()


class Client:
    """Doorward's own client."""

    def __init__(self, address: str, credential: str) -> None:
        self._client = AuthorizerClient(address, credential=credential, timeout=CALL_TIMEOUT_S)

    def prepared(self, question: dict[str, Any]) -> Any:
        return question["secret"], question["permission"], question["project_id"]

    async def check(self, prepared: Any) -> bool:
        secret, permission, project_id = prepared
        return (await self._client.check(secret, permission, project_id=project_id)).allowed

    async def close(self) -> None:
        await self._client.close()


class Cerbos:
    """Cerbos's official client. Who asks and what they hold is in every request: it keeps no tokens."""

    def __init__(self, address: str, _credential: str) -> None:
        self._client = AsyncCerbosClient(address, tls_verify=False, timeout_secs=CALL_TIMEOUT_S)

    def prepared(self, question: dict[str, Any]) -> Any:
        principal = engine_pb2.Principal(
            id=question["token_id"],
            roles={"token"},
            attr={"account": _value(question["account_id"]), "grants": _value(question["grants"])},
        )
        resource = engine_pb2.Resource(
            kind="project", id=question["project_id"], attr={"account": _value(question["account_id"])}
        )
        return question["permission"], principal, resource

    async def check(self, prepared: Any) -> bool:
        return bool(await self._client.is_allowed(*prepared))

    async def close(self) -> None:
        await self._client.close()


class Handwritten:
    """The hand-written service, called with aiohttp."""

    def __init__(self, address: str, _credential: str) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(CALL_TIMEOUT_S))
        self._url = f"http://{address}/check"

    def prepared(self, question: dict[str, Any]) -> Any:
        return {key: question[key] for key in ("secret", "permission", "project_id")}

    async def check(self, prepared: Any) -> bool:
        async with self._session.post(self._url, json=prepared) as response:
            response.raise_for_status()
            return bool((await response.json())["allowed"])

    async def close(self) -> None:
        await self._session.close()


KINDS: dict[str, Any] = {"stub": Stub, "client": Client, "cerbos": Cerbos, "handwritten": Handwritten}


class Asking:
    """One target and its questions, asked in turn."""

    def __init__(self, peer: Any, questions: list[dict[str, Any]]) -> None:
        self.peer = peer
        self._asked = [(peer.prepared(question), question["allowed"]) for question in questions]
        self._next = 0

    async def run(self, calls: int, window: int) -> dict[str, Any]:
        left, wrong = calls, 0
        latencies: list[float] = []

        async def work() -> None:
            nonlocal left, wrong
            while left > 0:
                left -= 1
                prepared, expected = self._asked[self._next]
                self._next = (self._next + 1) % len(self._asked)
                began = time.perf_counter()
                allowed = await self.peer.check(prepared)
                latencies.append(time.perf_counter() - began)
                wrong += allowed is not expected

        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(window)))
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        return {"calls": calls, "wrong": wrong, "seconds": seconds, "cpu": cpu, "latencies": latencies}


async def main() -> None:
    """Calls as told until standard input ends."""
    loop = asyncio.get_running_loop()
    job = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    targets = {
        name: Asking(KINDS[name](address, job["credential"]), job["questions"])
        for name, address in job["addresses"].items()
    }
    answer("ready")
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        answer(await targets[order["target"]].run(order["calls"], order["window"]))
    for target in targets.values():
        await target.peer.close()


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
