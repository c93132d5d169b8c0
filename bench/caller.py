"""One calling process: the generated stubs, or our client, on channels of its own. Run by `callers.py` as `bench.caller`.

Standard input: first a line of JSON, the targets by name (address, credential, method, requests in hex); then lines of
JSON `{target, calls, window}`: so many calls, so many of them at once. Each line is answered by one: `ready`, then
`{calls, allowed, seconds, cpu, latencies}` (seconds; `cpu` is this process's own). The method `client.check` stands for
`doorward.aio`'s, which is asked what the CheckRequests ask. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc.aio

from doorward.aio import AuthorizerClient
from doorward.v1 import authorizer_pb2, authorizer_pb2_grpc

CALL_TIMEOUT_S = 30.0
CLIENT_CHECK = "client.check"


class Target:
    """One method of one server, with the requests to send in turn."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._channel = grpc.aio.insecure_channel(
            spec["address"], options=[("grpc.max_receive_message_length", 1 << 24)]
        )
        stub = authorizer_pb2_grpc.AuthorizerStub(self._channel)
        self._is_batch = spec["method"] == "BatchCheck"
        self._method: Any = stub.BatchCheck if self._is_batch else stub.Check
        request_type = authorizer_pb2.BatchCheckRequest if self._is_batch else authorizer_pb2.CheckRequest
        self._requests = [request_type.FromString(bytes.fromhex(text)) for text in spec["requests"]]
        self._metadata = (("authorization", f"Bearer {spec['credential']}"),)
        self._client: AuthorizerClient | None = None
        if spec["method"] == CLIENT_CHECK:
            self._client = AuthorizerClient(spec["address"], credential=spec["credential"], timeout=CALL_TIMEOUT_S)
        self._next = 0

    async def run(self, calls: int, window: int) -> dict[str, Any]:
        left, allowed = calls, 0
        latencies: list[float] = []

        async def check(request: Any) -> Any:
            if self._client is None:
                return await self._method(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
            return await self._client.check(request.secret, request.permission, project_id=request.project_id)

        async def work() -> None:
            nonlocal left, allowed
            while left > 0:
                left -= 1
                request = self._requests[self._next]
                self._next = (self._next + 1) % len(self._requests)
                began = time.perf_counter()
                response = await check(request)
                latencies.append(time.perf_counter() - began)
                if self._is_batch:
                    allowed += sum(result.allowed for result in response.results)
                else:
                    allowed += response.allowed

        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(window)))
        return {
            "calls": calls,
            "allowed": allowed,
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - began_cpu,
            "latencies": latencies,
        }

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        await self._channel.close()


async def main() -> None:
    """Calls as told until standard input ends."""
    loop = asyncio.get_running_loop()
    job = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    targets = {name: Target(spec) for name, spec in job.items()}
    answer("ready")
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        answer(await targets[order["target"]].run(order["calls"], order["window"]))
    for target in targets.values():
        await target.close()


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
