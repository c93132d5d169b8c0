"""bcrypt in one worker thread, behind two bounded queues (design section 4).

`hash` is for issue and rotation and is served first. `verify` and `find_version` are for a secret that no digest under a
present pepper key can decide: one attempt for each subject at a time, with back-off after failures; a presentation that
is known to be wrong, or is being looked at already, costs no further bcrypt. Whatever is full or backs off is refused
with HASHING_BUSY: nothing here ever answers yes for want of time.

`app.py` runs it; `replica/recognition.py` and the use cases call it. All state belongs to the event loop; the thread
runs bcrypt and knows nothing. A caller that leaves takes only its own waiting with it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from doorward_server import errors
from doorward_server.credentials.bcrypt_calls import Bcrypt, require_well_formed
from doorward_server.credentials.failures import Failures
from doorward_server.failpoints import Failpoint, reach

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from doorward.clock import Clock
    from doorward.core.secret import Secret
    from doorward_server.credentials.bcrypt_calls import BcryptCalls

__all__ = ["ISSUE_QUEUE", "VERIFY_QUEUE", "WAITING_BEHIND_AN_ATTEMPT", "Hasher", "HashingFailed"]

# Each waits some 60 ms for everyone before it: about 8 s and 4 s, then it is better to be told.
ISSUE_QUEUE: Final = 128
VERIFY_QUEUE: Final = 64
# Other texts for a subject whose attempt is not over: two live secrets come at once after a pepper was lost.
WAITING_BEHIND_AN_ATTEMPT: Final = 16

_NS: Final = 1_000_000_000

T = TypeVar("T")


class HashingFailed(Exception):
    """bcrypt itself raised; the cause has what."""


class _Job(Generic[T]):
    """Work for the thread, and a future for each who waits for it: a cancelled one ends nobody else's."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.waiters: set[asyncio.Future[T]] = set()

    def settle(self, value: T) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(value)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Gives each waiter an exception of its own: a shared one grows by a traceback for everyone who raises it."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error())


class _Attempt(_Job["int | None"]):
    """One presentation for a subject, against those of its hashes that it is not known to be wrong for."""

    def __init__(
        self,
        calls: BcryptCalls,
        secret: Secret,
        subject_id: str,
        candidates: Mapping[int, str],
        proofs: Mapping[int, bytes],
    ) -> None:
        super().__init__(
            lambda: next((version for version, stored in candidates.items() if calls.check(secret, stored)), None)
        )
        self.subject_id = subject_id
        self.proofs = proofs  # all of the presentation's: who has the same presents the same
        self.tried = tuple(proofs[version] for version in candidates)
        self.behind: set[asyncio.Future[None]] = set()


class Hasher:
    """Owns the thread and its queues. Does nothing until `run`; what was asked before waits for it."""

    def __init__(
        self,
        clock: Clock,
        *,
        calls: BcryptCalls | None = None,
        failures: Failures | None = None,
        issue_queue: int = ISSUE_QUEUE,
        verify_queue: int = VERIFY_QUEUE,
    ) -> None:
        self._clock = clock
        self._calls = calls or Bcrypt()
        self._failures = failures if failures is not None else Failures()
        self._issue_queue = issue_queue
        self._verify_queue = verify_queue
        self._issues: deque[_Job[str]] = deque()
        self._verifications: deque[_Attempt] = deque()
        self._attempts: dict[str, _Attempt] = {}  # by subject: waiting or being looked at
        self._serving: _Job[Any] | None = None
        self._in_thread: asyncio.Future[Any] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bcrypt")  # starts at the first job
        self._wake = asyncio.Event()
        self._closed = False

    @property
    def waiting(self) -> dict[str, int]:
        """How many wait for the thread: to be hashed (issue), and to be compared (verify)."""
        return {"issue": len(self._issues), "verify": len(self._verifications)}

    async def run(self) -> None:
        """Serves both queues, issues first, until `close` or cancellation; whoever waits then is refused."""
        try:
            while (job := await self._next_job()) is not None:
                await self._serve(job)
        finally:
            self._refuse_everyone()

    async def close(self) -> None:
        """Refuses everyone from now on; returns when the thread has ended, at most one bcrypt later. May be repeated."""
        self._refuse_everyone()
        if self._in_thread is not None:
            await asyncio.wait((self._in_thread,))
            self._in_thread.exception()  # looked at, or asyncio would log one that nobody waited for any more
        self._thread.shutdown()  # its thread is idle

    async def hash(self, secret: Secret) -> str:
        """A new bcrypt hash of `secret`, before any verification that waits.

        Raises:
            Exhausted: `issue_queue` are waiting already (HASHING_BUSY).
            Unavailable: closed, before or meanwhile (SHUTTING_DOWN).
        """
        self._require_open()
        if len(self._issues) >= self._issue_queue:
            raise _busy()
        job = _Job(lambda: self._calls.hash(secret))
        self._issues.append(job)
        self._wake.set()
        return await self._answer_of(job)

    async def verify(self, subject_id: str, secret: Secret, bcrypt_hash: str) -> bool:
        """Whether `bcrypt_hash` is one of `secret`. Raises as `find_version` does."""
        return await self.find_version(subject_id, secret, {0: bcrypt_hash}) is not None

    async def find_version(self, subject_id: str, secret: Secret, bcrypt_hashes: Mapping[int, str]) -> int | None:
        """The first version whose hash is one of `secret`; None: wrong for all. All of them together are one attempt.

        Raises:
            Exhausted: this subject backs off, or the queue is full (HASHING_BUSY, with the time to wait).
            Unavailable: closed, before or meanwhile (SHUTTING_DOWN).
            HashMalformed: a stored hash is none.
        """
        require_well_formed(bcrypt_hashes.values())
        proofs = {
            version: self._failures.proof_of(subject_id, secret, bcrypt_hash)
            for version, bcrypt_hash in bcrypt_hashes.items()
        }
        while True:
            # no await until there is an attempt to wait for
            untried = tuple(version for version, proof in proofs.items() if not self._failures.holds(proof))
            if not untried:
                return None
            attempt = self._attempts.get(subject_id)
            if attempt is not None and attempt.proofs != proofs:
                await self._end_of(attempt)
                continue
            if attempt is None:
                candidates = {version: bcrypt_hashes[version] for version in untried}
                attempt = self._enter(_Attempt(self._calls, secret, subject_id, candidates, proofs))
            version = await self._answer_of(attempt)
            await reach(Failpoint.BCRYPT_BEFORE_RESULT)
            return version

    def _enter(self, attempt: _Attempt) -> _Attempt:
        self._require_open()
        back_off_ns = self._failures.back_off_ns(attempt.subject_id, self._clock.now_ns())
        if back_off_ns:
            raise _busy(back_off_ns / _NS)
        if len(self._verifications) >= self._verify_queue:
            raise _busy()
        self._attempts[attempt.subject_id] = attempt
        self._verifications.append(attempt)
        self._wake.set()
        return attempt

    async def _answer_of(self, job: _Job[T]) -> T:
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job.waiters.add(waiter)
        try:
            return await waiter
        finally:
            job.waiters.discard(waiter)
            if not job.waiters:
                self._withdraw(job)

    async def _end_of(self, attempt: _Attempt) -> None:
        if len(attempt.behind) >= WAITING_BEHIND_AN_ATTEMPT:
            raise _busy()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        attempt.behind.add(turn)
        try:
            await turn
        finally:
            attempt.behind.discard(turn)

    def _withdraw(self, job: _Job[Any]) -> None:
        """Takes a job that nobody waits for out of its queue; one that the thread has runs to its end."""
        if isinstance(job, _Attempt):
            if job in self._verifications:
                self._verifications.remove(job)
                self._leave(job)
        elif job in self._issues:
            self._issues.remove(job)

    def _leave(self, attempt: _Attempt) -> None:
        del self._attempts[attempt.subject_id]
        for turn in attempt.behind:
            if not turn.done():
                turn.set_result(None)

    async def _next_job(self) -> _Job[Any] | None:
        while not self._closed:
            if self._issues:
                return self._issues.popleft()
            if self._verifications:
                return self._verifications.popleft()
            self._wake.clear()
            await self._wake.wait()
        return None

    async def _serve(self, job: _Job[Any]) -> None:
        self._serving = job
        self._in_thread = asyncio.get_running_loop().run_in_executor(self._thread, job.work)
        # Not awaited itself: the end of this task would cancel the future, and `close` could not wait for the thread.
        await asyncio.wait((self._in_thread,))
        # no await until everyone is answered
        self._serving = None
        failure = self._in_thread.exception()
        if isinstance(job, _Attempt) and not self._closed:
            if failure is None:
                self._record(job, self._in_thread.result())
            self._leave(job)
        if failure is None:
            job.settle(self._in_thread.result())
        else:
            job.fail(lambda: _failed(failure))

    def _record(self, attempt: _Attempt, version: int | None) -> None:
        if version is None:
            self._failures.record_failure(attempt.subject_id, attempt.tried, self._clock.now_ns())
        else:
            self._failures.record_success(attempt.subject_id)

    def _require_open(self) -> None:
        if self._closed:
            raise _closing()

    def _refuse_everyone(self) -> None:
        self._closed = True
        self._wake.set()
        serving = () if self._serving is None else (self._serving,)
        for job in itertools.chain(serving, self._issues, self._verifications):
            job.fail(_closing)
        for attempt in tuple(self._attempts.values()):
            self._leave(attempt)  # whoever waits behind it looks again, and is refused
        self._issues.clear()
        self._verifications.clear()


def _busy(retry_after_s: float | None = None) -> errors.Exhausted:
    # One text for a full queue and for a back-off, so that nobody learns which tokens others try.
    busy = errors.Exhausted("HASHING_BUSY", "too many secrets are being hashed or verified; try again later")
    if retry_after_s is not None:
        busy.retry_after_s = retry_after_s
    return busy


def _closing() -> errors.Unavailable:
    return errors.Unavailable("SHUTTING_DOWN", "this server is stopping; another one can answer")


def _failed(cause: BaseException) -> HashingFailed:
    failed = HashingFailed("bcrypt raised")
    failed.__cause__ = cause
    return failed
