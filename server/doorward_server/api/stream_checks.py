"""Authorizer.StreamChecks: batches of checks over one long-lived stream (contract; design sections 3 and 11).

Each message is a BatchCheck of its own: caller, lease and consistency are looked at anew. What memory can answer is answered
at once, before the next message is read; anything else gets a task of its own, so that no message waits for another's load.
All that is under way of one stream stands in its `_Window`: while that is full nothing more is read, and neither a caller
that sends without end nor one that reads nothing makes memory grow. The tasks end before their stream does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from doorward.v1 import authorizer_pb2 as pb
from doorward_server.api.access import TABLE
from doorward_server.api.encoding import delimited
from doorward_server.api.errors import Status, status_of
from doorward_server.api.methods import CallerGone, Method, StreamEnds
from doorward_server.api.warm import STREAM_CHECKS
from doorward_server.api.wrapper import parsed, translated
from doorward_server.errors import Exhausted, Refused
from doorward_server.replica.timing import Signal

if TYPE_CHECKING:
    from doorward_server.api.asking import Asking
    from doorward_server.api.authorizer import AuthorizerApi
    from doorward_server.api.methods import Stream

__all__ = ["StreamChecks"]

# What the contract promises to take without an answer.
MOST_MESSAGES: Final = 256
# Two of the largest messages there are. What a message weighs is its bytes, and these for each of its answers.
MOST_WEIGHT: Final = 8 * 1024 * 1024
ANSWER_BYTES: Final = 256
# Fields 2 (response) and 3 (error) of StreamChecksResponse, both length-delimited.
RESPONSE_TAG: Final = b"\x12"
ERROR_TAG: Final = b"\x1a"


class StreamChecks:
    """The RPC. At most `most_streams` run at once, so that they leave room for other calls."""

    def __init__(self, asking: Asking, batches: AuthorizerApi, *, most_streams: int) -> None:
        self._asking = asking
        self._batches = batches
        self._most_streams = most_streams
        self._running = 0

    def methods(self) -> list[Method]:
        """Its part of the method table."""
        return [Method(STREAM_CHECKS, TABLE[STREAM_CHECKS], None, None, self.stream_checks)]

    async def stream_checks(self, stream: Stream) -> None:
        """Answers a stream to its end.

        Raises:
            Unauthenticated, PermissionDenied, Unavailable: nobody may open it, or nothing can be decided here now.
            Exhausted: TOO_MANY_REQUESTS, as many streams run as may.
            InvalidArgument: MALFORMED_MESSAGE, no `id` tells what to answer.
            StreamEnds: the caller's credential is no longer good, or the server stops.
        """
        await self._asking.admitted(STREAM_CHECKS, stream.peer)
        if self._running >= self._most_streams:
            text = (
                f"this server has as many StreamChecks as it may, {self._most_streams}; use one of yours, or BatchCheck"
            )
            raise Exhausted("TOO_MANY_REQUESTS", text)
        self._running += 1
        try:
            await _Conversation(self._batches, stream).run()
        finally:
            self._running -= 1


class _Window:
    """How much of one stream is under way: read, and its answer not taken by the transport."""

    def __init__(self) -> None:
        self._messages = 0
        self._weight = 0
        self._moved = Signal()

    async def opened(self) -> None:
        """Returns once there is room for another message."""
        await self._moved.until(lambda: self._messages < MOST_MESSAGES and self._weight < MOST_WEIGHT)

    def take(self, weight: int) -> None:
        """A message was read."""
        self._messages += 1
        self._weight += weight

    def give_back(self, weight: int) -> None:
        """Its answer was taken."""
        self._messages -= 1
        self._weight -= weight
        self._moved.wake()


class _Conversation:
    """One stream."""

    def __init__(self, batches: AuthorizerApi, stream: Stream) -> None:
        self._batches = batches
        self._stream = stream
        self._window = _Window()
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Answers every message that is read, and returns, or raises why no more is, when all of them are answered."""
        async with asyncio.TaskGroup() as answering:
            # Returned, not raised: what ends the stream is no reason to give up the messages that are under way.
            ends = await self._read_all(answering)
        if ends is not None:
            raise ends

    async def _read_all(self, answering: asyncio.TaskGroup) -> StreamEnds | None:
        while True:
            await self._window.opened()
            try:
                received = await self._stream.read()
                if received is None:
                    return None
                await self._take(received, answering)
            except StreamEnds as ends:
                return ends
            except Refused as refused:
                return StreamEnds(status_of(refused))
            except CallerGone:
                return None

    async def _take(self, received: bytes, answering: asyncio.TaskGroup) -> None:
        message = parsed(pb.StreamChecksRequest, received)
        try:
            answer = self._batches.streamed_batch_warm(message.request, self._stream.peer.credential)
        except Exception:  # noqa: BLE001 - a fault of ours; the cold path meets it too and answers as for every other
            answer = None
        if answer is None:
            weight = len(received) + ANSWER_BYTES * len(message.request.items)
            self._window.take(weight)
            answering.create_task(self._answer_cold(message, weight))
        else:
            await self._send(message.id, answer)

    async def _answer_cold(self, message: pb.StreamChecksRequest, weight: int) -> None:
        try:
            batch = self._batches.streamed_batch(message.request, self._stream.peer)
            await self._send(message.id, await translated(STREAM_CHECKS, batch))
        except CallerGone:
            return
        finally:
            self._window.give_back(weight)

    async def _send(self, message_id: int, answer: bytes | Status) -> None:
        head = pb.StreamChecksResponse(id=message_id).SerializeToString()
        if isinstance(answer, bytes):
            response = head + delimited(answer, RESPONSE_TAG)
        else:
            response = head + delimited(answer.details, ERROR_TAG)
        async with self._writing:
            await self._stream.write(response)
        if not isinstance(answer, bytes) and answer.code == "UNAUTHENTICATED":
            self._stream.end(answer)
