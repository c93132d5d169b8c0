"""Authorizer.Watch: a session of a watcher, from its hello to its end (contract; design section 7, Watchers).

What is true of it stands in `replica/watchers.py`; here messages are read, callers verified, and what was queued is written.
Of one stream four things run, and end before it does: this one reads, one writes in the order of the queue, one sees to the
catalog and to a caller that a change touched, and one answers asks; besides at most 256 resolves.

Whatever gives its sender something, a sub-lease or a snapshot, is given in the very step in which the caller was verified
under the lease. Acknowledgements and farewells only take away: they count whoever sends them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from doorward.v1 import authorizer_pb2 as pb
from doorward_server import failpoints
from doorward_server.api.access import TABLE
from doorward_server.api.errors import status_of
from doorward_server.api.fields import Fields
from doorward_server.api.methods import CallerGone, Method, StreamEnds
from doorward_server.api.watch_answers import WatchAnswers, required_hello
from doorward_server.api.watch_encoding import WatchEncoder, key_of
from doorward_server.api.wrapper import parsed
from doorward_server.errors import PermissionDenied, Refused, Unauthenticated
from doorward_server.failpoints import Failpoint
from doorward_server.replica import watch_refusals
from doorward_server.replica.caches import Missing
from doorward_server.replica.timing import Signal
from doorward_server.replica.watch_messages import (
    Failure,
    ProjectSnapshot,
    TokenSnapshot,
    UnrecognizedSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from doorward_server.api.asking import Asked, Asking
    from doorward_server.api.methods import Stream
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.recognition import Recognition
    from doorward_server.replica.watch_messages import Taken
    from doorward_server.replica.watch_session import Session
    from doorward_server.service.authorize import AllMissing, Authorizer
    from doorward_server.service.callers import Callers

__all__ = ["WatchApi"]

WATCH: Final = "/doorward.v1.Authorizer/Watch"
MOST_RESOLVES: Final = 256
MOST_FORGOTTEN: Final = 1_000
# When a catalog or a caller could not be read, it is tried again this much later, or when something of the session moved.
RETRY_NS: Final = 250_000_000


class WatchApi:
    """The RPC."""

    def __init__(
        self, asking: Asking, authorizer: Authorizer, callers: Callers, recognition: Recognition, holding: Holding
    ) -> None:
        self.asking = asking
        self.callers = callers
        self.holding = holding
        self.answers = WatchAnswers(authorizer, recognition, holding)
        self.encoder = WatchEncoder(holding.hold_ms, holding.watchers.ack_within_ns)
        # Streams that have not said hello yet: they keep a place, too.
        self._coming = 0

    def methods(self) -> list[Method]:
        """Its part of the method table."""
        return [Method(WATCH, TABLE[WATCH], None, None, self.watch)]

    async def watch(self, stream: Stream) -> None:
        """Serves a session to its end.

        Raises:
            Unauthenticated, PermissionDenied: the caller may not watch, or not any more.
            Unavailable: NO_LEASE, nothing can be decided here now, or this replica had to register anew; SHUTTING_DOWN.
            Exhausted: TOO_MANY_REQUESTS, there are as many watchers as may be, or this one takes or acknowledges too late.
            InvalidArgument: MALFORMED_MESSAGE, INVALID_FIELDS.
            StreamEnds: with the status of one of these.
        """
        await self.asking.admitted(WATCH, stream.peer)
        hello = await self._hello(stream)
        if hello is None:
            return
        # Looked at anew, for the hello may have come late. No await until the session is open.
        caller, _ = await self.asking.under_lease(WATCH, stream.peer, lambda asked: asked.caller)
        session = self.holding.watchers.open(caller.actor, hello.agent)
        # From here on the watchers end it: first comes a Reset, and its goodbye is awaited.
        stream.keep()
        try:
            await _Conversation(self, stream, session).run()
        finally:
            # Its sub-leases stay counted.
            self.holding.watchers.end(session, None)

    async def _hello(self, stream: Stream) -> pb.WatchRequest.Hello | None:
        """The first message; None: there is none."""
        self.holding.watchers.require_room(self._coming)
        self._coming += 1
        try:
            async with asyncio.timeout(self.holding.hold_ms / 1000):
                received = await stream.read()
        except TimeoutError:
            raise watch_refusals.no_hello() from None
        finally:
            self._coming -= 1
        return None if received is None else required_hello(parsed(pb.WatchRequest, received))


class _Conversation:
    """One stream."""

    def __init__(self, api: WatchApi, stream: Stream, session: Session) -> None:
        self._api = api
        self._watchers = api.holding.watchers
        self._stream = stream
        self._session = session
        self._epoch = api.holding.history.epoch
        self._group: asyncio.TaskGroup
        self._tasks: set[asyncio.Task[None]] = set()
        self._resolves: set[int] = set()
        self._answered = Signal()
        self._newest_ask = 0
        self._waiting_ask: int | None = None
        self._is_granting = False

    async def run(self) -> None:
        """Returns, or raises why, when the stream is to end."""
        async with asyncio.TaskGroup() as self._group:
            self._start(self._write())
            self._start(self._attend())
            # Returned, not raised: in a group it would come out as one of several.
            ends = await self._read()
            # What is under way is for a session that is over.
            self._watchers.end(self._session, None)
            for task in tuple(self._tasks):
                task.cancel()
        if ends is not None:
            raise ends

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what it says

    async def _read(self) -> StreamEnds | None:
        session = self._session
        while True:
            await self._answered.until(lambda: len(self._resolves) < MOST_RESOLVES or not session.is_open)
            try:
                message = await self._next()
                if message is None or not self._hear(message):
                    return None
            except StreamEnds as ends:
                return ends
            except Refused as refused:
                return StreamEnds(status_of(refused))
            except CallerGone:
                return None

    async def _next(self) -> pb.WatchRequest | None:
        received = await self._stream.read()
        return None if received is None else parsed(pb.WatchRequest, received)

    def _hear(self, message: pb.WatchRequest) -> bool:
        """Takes one message; False: it was the last."""
        fields = Fields()
        match message.WhichOneof("body"):
            case "ack":
                self._hear_ack(message.ack, fields)
            case "ask":
                self._hear_ask(message.ask.ask, fields)
            case "resolve":
                self._hear_resolve(message.resolve, fields)
            case "resolve_project":
                self._hear_resolve_project(message.resolve_project, fields)
            case "forget":
                self._hear_forget(message.forget, fields)
            case "goodbye":
                self._watchers.goodbye(self._session, message.goodbye.session_id)
                return False
            case "hello":
                fields.wrong("hello", "opens a session, and this one is open", "FIELD_CONFLICT")
            case _:
                fields.wrong("body", "is required: a message that this version knows", "FIELD_REQUIRED")
        fields.done()
        return True

    def _hear_ack(self, ack: pb.WatchRequest.Ack, fields: Fields) -> None:
        position = fields.revision("ack.position", ack.position)
        fields.done()
        if position is not None and not failpoints.is_armed(Failpoint.WATCH_DROP_ACKS):
            self._watchers.acknowledge(self._session, position.epoch, position.number)
        self._look_at_caller()

    def _hear_forget(self, forget: pb.WatchRequest.Forget, fields: Fields) -> None:
        if not 1 <= len(forget.keys) <= MOST_FORGOTTEN:
            text = f"has {len(forget.keys)} keys; 1 to {MOST_FORGOTTEN} are allowed"
            fields.wrong("forget.keys", text, "TOO_MANY_ITEMS" if forget.keys else "FIELD_REQUIRED")
            return
        keys = [key_of(key) for key in forget.keys]
        if None in keys:
            fields.wrong(f"forget.keys[{keys.index(None)}].key", "is required", "FIELD_REQUIRED")
            return
        self._watchers.forget(self._session, [key for key in keys if key is not None], forget.sequence)
        self._look_at_caller()

    def _hear_ask(self, ask: int, fields: Fields) -> None:
        if ask <= self._newest_ask:
            text = f"must be larger than that of every ask before, {self._newest_ask}"
            fields.wrong("ask.ask", text, "FIELD_OUT_OF_RANGE")
            return
        # Only the newest one is answered.
        self._newest_ask = self._waiting_ask = ask
        if not self._is_granting:
            self._is_granting = True
            self._start(self._grant())

    def _hear_resolve(self, resolve: pb.WatchRequest.Resolve, fields: Fields) -> None:
        shape = Fields()
        request_id, secret = resolve.id, shape.secret("resolve.secret", resolve.secret)
        # The message outlives this step: until the next one comes.
        resolve.ClearField("secret")
        self._begin(
            request_id,
            "resolve.id",
            fields,
            shape,
            lambda asked: self._api.answers.token(self._session, request_id, secret, asked),
        )

    def _hear_resolve_project(self, resolve: pb.WatchRequest.ResolveProject, fields: Fields) -> None:
        shape = Fields()
        project_id = shape.identifier("resolve_project.project_id", resolve.project_id)
        self._begin(
            resolve.id,
            "resolve_project.id",
            fields,
            shape,
            lambda _asked: self._api.answers.project(self._session, resolve.id, project_id),
        )

    def _look_at_caller(self) -> None:
        """From memory alone, for what gives nothing: a caller that is known to be revoked is told at once."""
        self._api.callers.find(self._stream.peer.credential, self._api.holding.latest_us(), None)

    # ---- what it asked for

    def _begin(
        self, request_id: int, place: str, fields: Fields, shape: Fields, attempt: Callable[[Asked], bool | Missing]
    ) -> None:
        """Begins to answer a resolve; `shape` is what is wrong with it alone."""
        if request_id in self._resolves:
            fields.wrong(place, "is that of a resolve that is not answered yet", "FIELD_DUPLICATE")
            return
        self._resolves.add(request_id)
        if shape.are_right:
            self._start(self._resolve(request_id, attempt))
        else:
            self._watchers.fail(self._session, request_id, shape.refusal())

    async def _resolve(self, request_id: int, attempt: Callable[[Asked], bool | Missing]) -> None:
        is_queued = False

        def noted(asked: Asked) -> bool | Missing | AllMissing:
            nonlocal is_queued
            outcome = attempt(asked)
            is_queued = not isinstance(outcome, Missing)
            return outcome

        try:
            await self._under_lease(noted)
        except Refused as refused:
            # A lease that ended just behind the snapshot takes nothing back: an Evict follows whatever comes.
            if not is_queued:
                self._watchers.fail(self._session, request_id, refused)

    async def _grant(self) -> None:
        """Answers the newest ask. Without a usable lease it stays unanswered: the watcher asks again."""

        def granted(_asked: Asked) -> bool:
            ask, self._waiting_ask = self._waiting_ask, None
            return ask is not None and self._watchers.grant(self._session, ask)

        try:
            await self._watchers.parent.ready()
            await failpoints.reach(Failpoint.WATCH_BEFORE_GRANT)
            await self._under_lease(granted)
        except Refused:
            self._waiting_ask = None
        finally:
            self._is_granting = False

    async def _under_lease(self, attempt: Callable[[Asked], bool | Missing | AllMissing]) -> None:
        """Runs `attempt` in the step in which the caller was verified; one who may not watch any more ends the stream.

        Raises:
            Refused: it could not be found out.
        """
        try:
            await self._api.asking.under_lease(WATCH, self._stream.peer, attempt)
        except (Unauthenticated, PermissionDenied) as refused:
            self._stream.end(status_of(refused))
            raise

    # ---- what it is told

    async def _write(self) -> None:
        session, stream = self._session, self._stream
        while True:
            taken = self._watchers.take(session)
            if taken is None:
                await session.moved.wait()
                continue
            try:
                await stream.write(self._api.encoder.encode(taken, self._epoch))
            except CallerGone:
                # Whoever reads finds out, too, and ends it.
                return
            self._note_answered(taken)

    def _note_answered(self, taken: Taken) -> None:
        if isinstance(taken.body, TokenSnapshot | UnrecognizedSnapshot | ProjectSnapshot | Failure):
            self._resolves.discard(taken.body.id)
            self._answered.wake()

    async def _attend(self) -> None:
        """Sends the catalog whenever it must be, looks at a caller that a change touched, and ends what the replica ends."""
        session, holding = self._session, self._api.holding
        while True:
            await session.moved.until(lambda: session.must_verify or session.needs_catalog or not session.is_open)
            if not session.is_open:
                break
            try:
                await self._under_lease(self._attended)
            except (Unauthenticated, PermissionDenied):
                return
            except Refused:
                await holding.timing.sleep_until_or(holding.timing.now_ns() + RETRY_NS, session.moved)
        self._answered.wake()
        if session.refused is not None:
            self._stream.end(status_of(session.refused))

    def _attended(self, asked: Asked) -> bool:
        self._session.must_verify = False
        if self._session.needs_catalog:
            self._watchers.catalog(self._session, asked.catalog)
        return True
