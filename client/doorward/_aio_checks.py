"""Concurrent checks of one asyncio client, sent together: `_batching.py`'s rules, carried out in one event loop.

A check that meets nobody goes out at once, alone, in its caller's own task. Else it joins those that wait, which go out
together as soon as there is room: at the end of the loop's present round, so that everybody who was woken by the same
answer is in it. That costs no time when the loop is idle. Each caller keeps its own deadline, its own cancellation and
its own error; a batch has the latest deadline of those in it. Knows no gRPC: how one or many are sent is handed in.
"""

from __future__ import annotations

import asyncio
import functools
import math
from typing import TYPE_CHECKING, TypeAlias

from doorward._batching import DEFAULT_BOUNDS, STRANGERS, Batch, Familiar, Line, Waiting
from doorward._checks import batch_part, batch_request, check_request, error_for_each, no_room, too_late
from doorward.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward._batching import Bounds
    from doorward.decisions import Decision
    from doorward.errors import DoorwardError
    from doorward.v1 import authorizer_pb2 as pb

    # A request and the seconds that it may take.
    SendOne: TypeAlias = Callable[[pb.CheckRequest, float], Awaitable[Decision]]
    # An encoded request, how many checks are in it, and the seconds.
    SendMany: TypeAlias = Callable[[bytes, int, float], Awaitable[list[Decision]]]

__all__ = ["Checks"]


class Checks:
    """The checks of one client."""

    def __init__(
        self,
        send_one: SendOne,
        send_many: SendMany,
        *,
        is_shared: bool = True,
        bounds: Bounds = DEFAULT_BOUNDS,
        strangers: Bounds = STRANGERS,
    ) -> None:
        """`is_shared=False`: every check goes alone."""
        self._is_shared = is_shared
        self._send_one = send_one
        self._send_many = send_many
        self._bounds, self._strangers = bounds, strangers
        self._familiar = Familiar()
        self._lanes: dict[tuple[bool, str | None], _Lane] = {}

    async def decide(
        self,
        secret: str,
        permission: str,
        project_id: str | None,
        account_id: str | None,
        seconds: float,
        demand: str | None,
    ) -> Decision:
        """One decision.

        Raises:
            DoorwardError: there is none.
        """
        if not self._is_shared:
            return await self._send_one(check_request(secret, permission, project_id, account_id, demand), seconds)
        is_familiar = secret in self._familiar
        lane = self._lanes.get((is_familiar, demand)) or self._new_lane(is_familiar, demand)
        if lane.line.may_go_alone:
            request = check_request(secret, permission, project_id, account_id, demand)
            decision = await lane.alone(self._send_one(request, seconds))
        else:
            decision = await lane.joined(batch_part(secret, permission, project_id, account_id), seconds)
        if not is_familiar and decision.token_id:
            self._familiar.add(secret)
        return decision

    def close(self) -> None:
        """Ends what is under way and what waits."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()

    def _new_lane(self, is_familiar: bool, demand: str | None) -> _Lane:
        # A demand is a revision that nobody may ask for again: whoever opens a lane takes away those that are empty.
        self._lanes = {kept: lane for kept, lane in self._lanes.items() if not lane.line.is_empty}
        bounds = self._bounds if is_familiar else self._strangers
        lane = self._lanes[is_familiar, demand] = _Lane(bounds, self._send_many, demand)
        return lane


class _Lane:
    """The checks of one demand on freshness."""

    def __init__(self, bounds: Bounds, send_many: SendMany, demand: str | None) -> None:
        self.line: Line[asyncio.Future[Decision]] = Line(bounds)
        self._send_many = send_many
        self._demand = demand
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[Batch[asyncio.Future[Decision]], asyncio.Task[list[Decision]]] = {}
        self._is_flush_due = False
        # One alarm for all: a timer for each check would cost as much as the rest of its way through here.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    async def alone(self, sending: Awaitable[Decision]) -> Decision:
        """The decision of a check that goes by itself; those that come meanwhile go out at its end, if not before."""
        self.line.go_alone()
        try:
            return await sending
        finally:
            self.line.came_back()
            self.flush_soon()

    async def joined(self, part: bytes, seconds: float) -> Decision:
        """The decision of a check that goes with others."""
        if self.line.is_full:
            raise no_room()
        waiting = Waiting(part, self._loop.time() + seconds, self._loop.create_future())
        self.line.join(waiting)
        if waiting.until < self._alarm_at:
            self._set_alarm(waiting.until)
        if not self._is_flush_due and self.line.has_room:
            self.flush_soon()
        receiver: asyncio.Future[Decision] = waiting.receiver
        try:
            return await receiver
        except asyncio.CancelledError:
            self._leave(waiting)
            raise

    def flush_soon(self) -> None:
        """Sends what waits at the end of the loop's present round."""
        if not self._is_flush_due and not self.line.is_empty:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Ends what is under way and what waits."""
        for task in self._under_way.values():
            task.cancel()
        for waiting in list(self.line.outstanding()):
            if waiting.batch is None:
                self.line.leave(waiting)
                _fail(waiting, ClientClosed())
        if self._alarm is not None:
            self._alarm.cancel()

    def _flush(self) -> None:
        self._is_flush_due = False
        while (batch := self.line.next_batch()) is not None:
            task = self._loop.create_task(self._send(batch))
            self._under_way[batch] = task
            task.add_done_callback(functools.partial(self._ended, batch))

    async def _send(self, batch: Batch[asyncio.Future[Decision]]) -> list[Decision]:
        request = batch_request((member.part for member in batch.members), self._demand)
        return await self._send_many(request, len(batch.members), max(0.0, batch.until - self._loop.time()))

    def _ended(self, batch: Batch[asyncio.Future[Decision]], task: asyncio.Task[list[Decision]]) -> None:
        """Hands out what came of a batch. Not the end of its task: one that is cancelled before it runs has no end."""
        self.line.ended(batch)
        del self._under_way[batch]
        # Those who wait go first: whoever is woken below may have more to ask, and joins the next one.
        self._flush()
        if task.cancelled():
            failure: BaseException | None = ClientClosed()  # or nobody waits for it any more
        else:
            failure = task.exception()
        if failure is not None:
            for member in batch.members:
                _fail(member, error_for_each(failure))
            return
        for member, decision in zip(batch.members, task.result(), strict=True):
            if decision.error is not None:
                _fail(member, decision.error)
            elif not member.receiver.done():
                member.receiver.set_result(decision)

    def _leave(self, waiting: Waiting[asyncio.Future[Decision]]) -> None:
        abandoned = self.line.leave(waiting)
        if abandoned is not None and (task := self._under_way.get(abandoned)) is not None:
            task.cancel()

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at, self._alarm = at, self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        # The loop may be early by its clock's resolution: what the alarm was set for is due.
        now = max(self._alarm_at, self._loop.time())
        self._alarm_at, self._alarm = math.inf, None
        following = math.inf
        for waiting in list(self.line.outstanding()):
            if waiting.until > now:
                following = min(following, waiting.until)
                continue
            self._leave(waiting)
            _fail(waiting, too_late())
        if following < math.inf:
            self._set_alarm(following)


def _fail(waiting: Waiting[asyncio.Future[Decision]], error: DoorwardError) -> None:
    if not waiting.receiver.done():
        waiting.receiver.set_exception(error)
