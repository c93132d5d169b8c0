"""Concurrent checks of one client of many threads, sent together: `_batching.py`'s rules, carried out under one lock.

A check that meets nobody goes out at once, alone, in its caller's own thread. Else it joins those that wait; whoever finds
room sends them, and whoever learns of a batch's end sends the next one, without waiting for it: no thread of ours exists.
Each caller keeps its own deadline and its own error; a batch has the latest deadline of those in it. Knows no gRPC: how
one or many are sent is handed in.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

from doorward._batching import DEFAULT_BOUNDS, STRANGERS, Batch, Familiar, Line, Waiting
from doorward._checks import batch_part, batch_request, check_request, error_for_each, no_room, too_late
from doorward.clock import SystemClock
from doorward.errors import ClientClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward._batching import Bounds
    from doorward.clock import Clock
    from doorward.decisions import Decision
    from doorward.errors import DoorwardError
    from doorward.v1 import authorizer_pb2 as pb

    # What came of a batch.
    Outcome: TypeAlias = list[Decision] | DoorwardError
    # A request and the seconds that it may take.
    SendOne: TypeAlias = Callable[[pb.CheckRequest, float], Decision]
    # An encoded request, how many checks are in it, the seconds, and what to tell the outcome; returns what gives it up.
    SendMany: TypeAlias = Callable[[bytes, int, float, Callable[[Outcome], None]], Callable[[], object]]

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
        clock: Clock | None = None,
    ) -> None:
        """`is_shared=False`: every check goes alone."""
        self._is_shared = is_shared
        self._send_one = send_one
        self._send_many = send_many
        self._bounds, self._strangers = bounds, strangers
        self._clock = clock or SystemClock()
        self._familiar = Familiar()
        self._lanes: dict[tuple[bool, str | None], _Lane] = {}
        self._lock = threading.Lock()

    def decide(
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
            return self._send_one(check_request(secret, permission, project_id, account_id, demand), seconds)
        is_familiar = secret in self._familiar
        with self._lock:
            lane = self._lanes.get((is_familiar, demand)) or self._new_lane(is_familiar, demand)
            goes_alone = lane.line.may_go_alone
            if goes_alone:
                lane.line.go_alone()
        if goes_alone:
            try:
                request = check_request(secret, permission, project_id, account_id, demand)
                decision = self._send_one(request, seconds)
            finally:
                lane.came_back()
        else:
            decision = lane.joined(batch_part(secret, permission, project_id, account_id), seconds)
        if not is_familiar and decision.token_id:
            self._familiar.add(secret)
        return decision

    def close(self) -> None:
        """Ends what waits; what is under way ends with the channel."""
        with self._lock:
            lanes = list(self._lanes.values())
            self._lanes.clear()
        for lane in lanes:
            lane.close()

    def _new_lane(self, is_familiar: bool, demand: str | None) -> _Lane:
        # A demand is a revision that nobody may ask for again: whoever opens a lane takes away those that are empty.
        self._lanes = {kept: lane for kept, lane in self._lanes.items() if not lane.line.is_empty}
        bounds = self._bounds if is_familiar else self._strangers
        lane = self._lanes[is_familiar, demand] = _Lane(bounds, self._send_many, demand, self._lock, self._clock)
        return lane


class _Gate:
    """What one caller waits at, and what it finds then."""

    __slots__ = ("lock", "outcome")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.outcome: Decision | DoorwardError | None = None

    def open(self, outcome: Decision | DoorwardError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.lock.release()


class _Lane:
    """The checks of one demand on freshness."""

    def __init__(
        self, bounds: Bounds, send_many: SendMany, demand: str | None, lock: threading.Lock, clock: Clock
    ) -> None:
        self.line: Line[_Gate] = Line(bounds)
        self._send_many = send_many
        self._demand = demand
        self._lock = lock
        self._clock = clock
        self._give_up: dict[Batch[_Gate], Callable[[], object]] = {}

    def joined(self, part: bytes, seconds: float) -> Decision:
        """The decision of a check that goes with others."""
        waiting = Waiting(part, self._now_s() + seconds, _Gate())
        gate = waiting.receiver
        with self._lock:
            if self.line.is_full:
                raise no_room()
            self.line.join(waiting)
            batch = self.line.next_batch()
        try:
            self._send(batch)
            gate.lock.acquire(timeout=max(0.0, waiting.until - self._now_s()))
        finally:
            if gate.outcome is None:
                self._leave(waiting)
        outcome = gate.outcome
        if outcome is None:
            raise too_late()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def came_back(self) -> None:
        """The end of what went alone: those that came meanwhile go out."""
        with self._lock:
            self.line.came_back()
            batch = self.line.next_batch()
        self._send(batch)

    def close(self) -> None:
        """Ends what waits."""
        with self._lock:
            left = [waiting for waiting in self.line.outstanding() if waiting.batch is None]
            for waiting in left:
                self.line.leave(waiting)
        for waiting in left:
            waiting.receiver.open(ClientClosed())

    def _send(self, batch: Batch[_Gate] | None) -> None:
        """Sends a batch without waiting for it; whoever learns of its end goes on here."""
        if batch is None:
            return
        request = batch_request((member.part for member in batch.members), self._demand)
        try:
            give_up = self._send_many(
                request,
                len(batch.members),
                max(0.0, batch.until - self._now_s()),
                lambda outcome: self._ended(batch, outcome),
            )
        except Exception as error:  # noqa: BLE001 - everybody in the batch is told, who sent it too
            self._ended(batch, error_for_each(error))
            return
        with self._lock:
            if self.line.is_under_way(batch):
                self._give_up[batch] = give_up

    def _ended(self, batch: Batch[_Gate], outcome: Outcome) -> None:
        """Hands out what came of a batch, in the thread that learned of it."""
        with self._lock:
            self.line.ended(batch)
            self._give_up.pop(batch, None)
            following = self.line.next_batch()
        # Those who wait go first: whoever is woken below may have more to ask, and joins the next one.
        self._send(following)
        if isinstance(outcome, list):
            for member, decision in zip(batch.members, outcome, strict=True):
                member.receiver.open(decision if decision.error is None else decision.error)
        else:
            for member in batch.members:
                member.receiver.open(error_for_each(outcome))

    def _leave(self, waiting: Waiting[_Gate]) -> None:
        with self._lock:
            abandoned = self.line.leave(waiting)
            give_up = None if abandoned is None else self._give_up.get(abandoned)
        if give_up is not None:
            give_up()

    def _now_s(self) -> float:
        return self._clock.now_ns() * 1e-9
