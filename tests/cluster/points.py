"""What a test may do to one replica process at a named step: stop it there, break it, freeze it or kill it.

The server's own failpoints are armed through `failpoints.arm`. Those on the path of a check are not in its code: `wrap_checks`
puts them around the real capture, decision and answer, before the app is built. A check that shall stop is made to take the
cold path, where it can await; a frozen process (a real SIGSTOP) stops on either. Used by `replica_process.py` only.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NoReturn

from doorward_server import failpoints
from doorward_server.api.authorizer import AuthorizerApi
from doorward_server.errors import Unavailable
from doorward_server.failpoints import Failpoint
from doorward_server.replica.barrier import Barrier
from doorward_server.replica.caches import Missing
from doorward_server.replica.lease_keeper import LeaseKeeper
from doorward_server.replica.recognition import Recognition
from doorward_server.service.authorize import AllMissing
from tests.cluster.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward_server.api.methods import Peer

__all__ = ["Points", "is_admitting", "wrap_checks"]

AFTER_CAPTURE: Final = Step.CHECK_AFTER_CAPTURE.value
AFTER_DECIDE: Final = Step.CHECK_AFTER_DECIDE.value
BEFORE_SEND: Final = Step.CHECK_BEFORE_SEND.value
OURS: Final = frozenset(step.value for step in Step)
# What a wrapped attempt says it misses, so that the real loop around it awaits the stop and tries again.
_STOP: Final = "stop"

_admitting: ContextVar[bool] = ContextVar("admitting", default=False)


def is_admitting() -> bool:
    """Whether this is the first of a call's two leases, under which the caller is admitted and nothing is decided."""
    return _admitting.get()


class _Armed:
    """What happens at one point: to the hits after the first `skip`, `times` of them (None: all)."""

    def __init__(self, action: str, skip: int, times: int | None) -> None:
        self.action = action
        self.skip = skip
        self.times = times
        self.released = asyncio.Event()

    @property
    def is_next(self) -> bool:
        """Whether something happens to the next hit."""
        return self.skip == 0 and self.times != 0

    def hit(self) -> bool:
        """Counts a hit; whether something happens to it."""
        if not self.is_next:
            self.skip = max(self.skip - 1, 0)
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Points:
    """The armed points of this process. `tell` sends an event to the test, at once."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._armed: dict[str, _Armed] = {}
        self.checks_begun = 0
        # Barriers that sleep until their next look.
        self.barriers_asleep = 0

    def arm(self, name: str, action: str, skip: int = 0, times: int | None = None) -> None:
        """`action`: pause, error, freeze, crash, or nothing (for a point that is only looked at)."""
        self.release(name)
        self._armed[name] = _Armed(action, skip, times)
        if name not in OURS:

            async def stop() -> None:
                await self.reach(name)

            failpoints.arm(Failpoint(name), stop)

    def release(self, name: str) -> None:
        """The point is inert again, and whoever stands there goes on."""
        armed = self._armed.pop(name, None)
        if armed is None:
            return
        if name not in OURS:
            failpoints.disarm(Failpoint(name))
        armed.released.set()

    def release_all(self) -> None:
        """Every point is inert again."""
        for name in list(self._armed):
            self.release(name)

    def will_stop(self, name: str) -> bool:
        """Whether the next hit of this point has to be awaited."""
        armed = self._armed.get(name)
        return armed is not None and armed.is_next and armed.action in {"pause", "error"}

    async def reach(self, name: str) -> None:
        """This point is reached, where it can be awaited."""
        armed = self._hit(name)
        if armed is None:
            return
        if armed.action == "pause":
            await armed.released.wait()
        elif armed.action == "error":
            raise Unavailable("DATABASE_UNAVAILABLE", "the test says that the database cannot be reached")

    def pass_by(self, name: str) -> None:
        """This point is reached in a plain function: the process may be frozen or killed there."""
        if not self.will_stop(name):
            self._hit(name)

    def _hit(self, name: str) -> _Armed | None:
        armed = self._armed.get(name)
        if armed is None or armed.action == "nothing" or not armed.hit():
            return None
        if armed.action == "freeze":
            # Once: whoever is woken goes on.
            self.release(name)
        self._tell(event="reached", point=name)
        if armed.action == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif armed.action == "crash":
            _die()
        return armed


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


def wrap_checks(points: Points) -> None:
    """Puts the points of a check, and that after the row's DELETE, around the real code; counts barriers that sleep."""
    _wrap_cold(points)
    _wrap_warm(points)
    leave, pause = LeaseKeeper.leave, Barrier._pause

    async def leave_and_stop(self: LeaseKeeper) -> None:
        await leave(self)
        await points.reach(Step.SHUTDOWN_AFTER_DELETE.value)

    async def pause_and_count(self: Barrier, *arguments: Any) -> None:
        points.barriers_asleep += 1
        try:
            await pause(self, *arguments)
        finally:
            points.barriers_asleep -= 1

    _put(LeaseKeeper, "leave", leave_and_stop)
    _put(Barrier, "_pause", pause_and_count)


def _wrap_cold(points: Points) -> None:
    admitted, under_lease, check, fetch = (
        AuthorizerApi._admitted,
        AuthorizerApi._under_lease,
        AuthorizerApi.check,
        Recognition.fetch,
    )

    async def admit(self: AuthorizerApi, path: str, peer: Peer) -> None:
        token = _admitting.set(True)
        try:
            await admitted(self, path, peer)
        finally:
            _admitting.reset(token)

    async def stop_under_lease(self: AuthorizerApi, path: str, peer: Peer, attempt: Callable[..., Any]) -> Any:
        return await under_lease(self, path, peer, attempt if is_admitting() else _staged(points, attempt))

    async def check_and_stop(self: AuthorizerApi, request: bytes, peer: Peer) -> bytes:
        points.checks_begun += 1
        answer = await check(self, request, peer)
        await points.reach(BEFORE_SEND)
        return answer

    async def fetch_or_stop(self: Recognition, missing: Missing, refuted: set[bytes]) -> None:
        if missing.kind == _STOP:
            await points.reach(missing.key)
        else:
            await fetch(self, missing, refuted)

    _put(AuthorizerApi, "_admitted", admit)
    _put(AuthorizerApi, "_under_lease", stop_under_lease)
    _put(AuthorizerApi, "check", check_and_stop)
    _put(Recognition, "fetch", fetch_or_stop)


def _staged(points: Points, attempt: Callable[..., Any]) -> Callable[..., Any]:
    """`attempt` with a stop before it, once, and one between its decision and the last look at the lease."""
    stopped = False
    decided: list[Any] = []

    def staged(*arguments: Any) -> Any:
        nonlocal stopped
        if decided:
            return decided[0]
        if not stopped and points.will_stop(AFTER_CAPTURE):
            stopped = True
            return Missing(_STOP, AFTER_CAPTURE)
        points.pass_by(AFTER_CAPTURE)
        result = attempt(*arguments)
        if isinstance(result, Missing | AllMissing):
            return result
        if points.will_stop(AFTER_DECIDE):
            decided.append(result)
            return Missing(_STOP, AFTER_DECIDE)
        points.pass_by(AFTER_DECIDE)
        return result

    return staged


def _wrap_warm(points: Points) -> None:
    warm: Callable[..., Any] = AuthorizerApi._warm

    def warm_or_stop(self: AuthorizerApi, *call: Any) -> Any:
        if any(points.will_stop(name) for name in OURS):
            return None
        *others, attempt = call

        def staged(*arguments: Any) -> Any:
            points.pass_by(AFTER_CAPTURE)
            result = attempt(*arguments)
            points.pass_by(AFTER_DECIDE)
            return result

        answer = warm(self, *others, staged)
        if answer is not None:
            points.pass_by(BEFORE_SEND)
        return answer

    _put(AuthorizerApi, "_warm", warm_or_stop)


def _put(owner: type, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)
