"""The bcrypt thread and its queues: what costs a bcrypt, who is served first, who is refused.

`Watched` stands where the worker calls bcrypt: it counts, and can hold the thread inside a call, so that every order of
events here is made and none is waited for. Below it is real bcrypt, at the cheapest cost.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server import failpoints
from doorward_server.credentials.bcrypt_calls import Bcrypt, HashMalformed
from doorward_server.credentials.failures import FIRST_BACK_OFF_NS
from doorward_server.credentials.hashing import WAITING_BEHIND_AN_ATTEMPT, Hasher, HashingFailed
from doorward_server.errors import Exhausted, Unavailable
from doorward_server.failpoints import Failpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from _pytest.logging import LogCaptureFixture

CHEAP = Bcrypt(cost=4)


class FakeClock:
    def __init__(self) -> None:
        self.ns = 1_000

    def now_ns(self) -> int:
        return self.ns


class Watched:
    """Real bcrypt that tells what it was called for, in order, and waits within a call while `held`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.breaks: BaseException | None = None
        self._free = threading.Event()
        self._free.set()
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()

    def hash(self, secret: Secret) -> str:
        self._begin("hash", secret)
        return CHEAP.hash(secret)

    def check(self, secret: Secret, bcrypt_hash: str) -> bool:
        self._begin("check", secret)
        return CHEAP.check(secret, bcrypt_hash)

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    async def begun(self, count: int) -> None:
        """Returns once the thread is in its `count`-th call."""
        while len(self.calls) < count:
            self._begun.clear()
            await self._begun.wait()

    def _begin(self, call: str, secret: Secret) -> None:
        self.calls.append((call, secret.subject_id))
        self._loop.call_soon_threadsafe(self._begun.set)
        assert self._free.wait(60)
        if self.breaks is not None:
            raise self.breaks


class Bench:
    """A running hasher with what stands around it."""

    def __init__(self, **bounds: int) -> None:
        self.clock = FakeClock()
        self.bcrypt = Watched()
        self.hasher = Hasher(self.clock, calls=self.bcrypt, **bounds)  # type: ignore[arg-type]  # bounds are ints


@asynccontextmanager
async def a_bench(**bounds: int) -> AsyncIterator[Bench]:
    bench = Bench(**bounds)
    running = asyncio.create_task(bench.hasher.run())
    try:
        yield bench
    finally:
        bench.bcrypt.release()
        await bench.hasher.close()
        await running


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with a_bench() as bench:
        yield bench


def a_secret(subject_id: str | None = None) -> Secret:
    return generate(SecretKind.TOKEN, subject_id or new_id())


async def started(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """The task of `call`, which has run until it first waits."""
    task = asyncio.create_task(call)
    turn = asyncio.Event()
    asyncio.get_running_loop().call_soon(turn.set)  # behind the task's first step
    await turn.wait()
    return task


async def hold_the_thread(bench: Bench) -> asyncio.Task[Any]:
    """A verification that stays in the thread until `release`."""
    secret, before = a_secret(), len(bench.bcrypt.calls)
    bench.bcrypt.hold()
    task = await started(bench.hasher.verify(secret.subject_id, secret, CHEAP.hash(secret)))
    await bench.bcrypt.begun(before + 1)
    return task


def bcrypt_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("bcrypt")]


# What is answered, and what it costs


async def test_hash_is_one_of_its_secret(bench: Bench) -> None:
    secret = a_secret()

    assert CHEAP.check(secret, await bench.hasher.hash(secret))


async def test_right_secret_is_verified_and_a_wrong_one_is_not(bench: Bench) -> None:
    right, wrong = a_secret(), a_secret()
    bcrypt_hash = CHEAP.hash(right)

    assert await bench.hasher.verify("a", right, bcrypt_hash)
    assert not await bench.hasher.verify("a", wrong, bcrypt_hash)


async def test_each_live_version_is_found_in_one_attempt(bench: Bench) -> None:
    newest, oldest, wrong = a_secret(), a_secret(), a_secret()
    hashes = {2: CHEAP.hash(newest), 1: CHEAP.hash(oldest)}

    assert await bench.hasher.find_version("a", newest, hashes) == 2
    assert await bench.hasher.find_version("a", oldest, hashes) == 1  # its failure with version 2 is none
    assert await bench.hasher.find_version("a", wrong, hashes) is None
    assert len(bench.bcrypt.calls) == 1 + 2 + 2


async def test_nothing_to_verify_against_is_wrong(bench: Bench) -> None:
    assert await bench.hasher.find_version("a", a_secret(), {}) is None
    assert bench.bcrypt.calls == []


async def test_wrong_secret_again_costs_no_bcrypt_and_is_answered_during_the_back_off(bench: Bench) -> None:
    wrong, bcrypt_hash = a_secret(), CHEAP.hash(a_secret())
    assert not await bench.hasher.verify("a", wrong, bcrypt_hash)

    for _ in range(3):
        assert not await bench.hasher.verify("a", wrong, bcrypt_hash)

    assert len(bench.bcrypt.calls) == 1


async def test_wrong_secret_of_before_a_rotation_is_looked_at_against_the_new_hash(bench: Bench) -> None:
    new, old_hash = a_secret(), CHEAP.hash(a_secret())
    assert await bench.hasher.find_version("a", new, {1: old_hash}) is None
    bench.clock.ns += FIRST_BACK_OFF_NS

    assert await bench.hasher.find_version("a", new, {2: CHEAP.hash(new), 1: old_hash}) == 2


async def test_same_secret_many_times_at_once_is_one_bcrypt(bench: Bench) -> None:
    secret = a_secret()
    bcrypt_hash = CHEAP.hash(secret)

    answers = await asyncio.gather(*(bench.hasher.verify("a", secret, bcrypt_hash) for _ in range(50)))

    assert answers == [True] * 50
    assert len(bench.bcrypt.calls) == 1


# Back-off and one attempt at a time


async def test_after_a_failure_the_subject_backs_off_and_says_for_how_long(bench: Bench) -> None:
    right = a_secret()
    bcrypt_hash = CHEAP.hash(right)
    assert not await bench.hasher.verify("a", a_secret(), bcrypt_hash)

    with pytest.raises(Exhausted) as raised:
        await bench.hasher.verify("a", right, bcrypt_hash)
    assert raised.value.reason == "HASHING_BUSY"
    assert raised.value.retry_after_s == FIRST_BACK_OFF_NS / 1e9
    bench.clock.ns += FIRST_BACK_OFF_NS - 1
    with pytest.raises(Exhausted):
        await bench.hasher.verify("a", right, bcrypt_hash)
    assert len(bench.bcrypt.calls) == 1

    bench.clock.ns += 1
    assert await bench.hasher.verify("a", right, bcrypt_hash)


async def test_back_off_grows_with_each_failure_and_ends_with_success(bench: Bench) -> None:
    right = a_secret()
    bcrypt_hash = CHEAP.hash(right)

    async def length_ns() -> int:
        with pytest.raises(Exhausted) as raised:
            await bench.hasher.verify("a", right, bcrypt_hash)
        return round((raised.value.retry_after_s or 0) * 1e9)

    lengths = []
    for _ in range(3):
        assert not await bench.hasher.verify("a", a_secret(), bcrypt_hash)
        lengths.append(await length_ns())
        bench.clock.ns += lengths[-1]
    assert await bench.hasher.verify("a", right, bcrypt_hash)
    assert not await bench.hasher.verify("a", a_secret(), bcrypt_hash)
    lengths.append(await length_ns())

    assert lengths == [FIRST_BACK_OFF_NS * factor for factor in (1, 2, 4, 1)]


async def test_back_off_of_one_subject_holds_no_other(bench: Bench) -> None:
    right = a_secret()
    bcrypt_hash = CHEAP.hash(right)
    assert not await bench.hasher.verify("a", a_secret(), bcrypt_hash)

    assert await bench.hasher.verify("b", right, bcrypt_hash)


async def test_second_text_for_a_subject_waits_for_the_end_of_the_first(bench: Bench) -> None:
    newest, oldest = a_secret(), a_secret()
    hashes = {2: CHEAP.hash(newest), 1: CHEAP.hash(oldest)}
    bench.bcrypt.hold()
    first = await started(bench.hasher.find_version("a", newest, hashes))
    second = await started(bench.hasher.find_version("a", oldest, hashes))
    await bench.bcrypt.begun(1)
    assert not second.done()

    bench.bcrypt.release()

    assert (await first, await second) == (2, 1)


async def test_second_text_is_refused_when_the_first_was_wrong(bench: Bench) -> None:
    right = a_secret()
    bcrypt_hash = CHEAP.hash(right)
    bench.bcrypt.hold()
    first = await started(bench.hasher.verify("a", a_secret(), bcrypt_hash))
    second = await started(bench.hasher.verify("a", right, bcrypt_hash))

    bench.bcrypt.release()

    assert not await first
    with pytest.raises(Exhausted):
        await second
    assert len(bench.bcrypt.calls) == 1


async def test_subject_with_many_texts_takes_one_place_in_the_queue(bench: Bench) -> None:
    """Whoever floods one token with wrong secrets delays the others by one bcrypt, not by a thousand."""
    holding = await hold_the_thread(bench)
    bcrypt_hash, right = CHEAP.hash(a_secret()), a_secret()
    flood = [
        await started(bench.hasher.verify("flooded", a_secret(), bcrypt_hash))
        for _ in range(1 + WAITING_BEHIND_AN_ATTEMPT)
    ]
    other = await started(bench.hasher.verify("other", right, CHEAP.hash(right)))
    with pytest.raises(Exhausted):
        await bench.hasher.verify("flooded", a_secret(), bcrypt_hash)

    bench.bcrypt.release()

    assert await holding
    assert await other
    assert [type(answer) for answer in await asyncio.gather(*flood, return_exceptions=True)] == [
        bool,
        *[Exhausted] * WAITING_BEHIND_AN_ATTEMPT,
    ]
    assert len(bench.bcrypt.calls) == 3


# The queues


async def test_issue_is_served_before_verifications_that_waited_longer(bench: Bench) -> None:
    holding = await hold_the_thread(bench)
    verified, issued = [a_secret() for _ in range(2)], [a_secret() for _ in range(2)]
    waiting = [await started(bench.hasher.verify(s.subject_id, s, CHEAP.hash(s))) for s in verified]
    waiting += [await started(bench.hasher.hash(secret)) for secret in issued]

    bench.bcrypt.release()
    await asyncio.gather(holding, *waiting)

    assert bench.bcrypt.calls[1:] == [
        *(("hash", secret.subject_id) for secret in issued),
        *(("check", secret.subject_id) for secret in verified),
    ]


async def test_verify_queue_is_bounded_and_issue_does_not_stand_in_it() -> None:
    async with a_bench(verify_queue=2) as bench:
        await hold_the_thread(bench)
        secrets = [a_secret() for _ in range(3)]
        waiting = [await started(bench.hasher.verify(s.subject_id, s, CHEAP.hash(s))) for s in secrets[:2]]

        with pytest.raises(Exhausted) as raised:
            await bench.hasher.verify(secrets[2].subject_id, secrets[2], CHEAP.hash(secrets[2]))
        issue = await started(bench.hasher.hash(secrets[2]))
        bench.bcrypt.release()

        assert raised.value.reason == "HASHING_BUSY"
        assert raised.value.retry_after_s
        assert await asyncio.gather(*waiting) == [True, True]
        assert await issue
        assert await bench.hasher.verify(secrets[2].subject_id, secrets[2], CHEAP.hash(secrets[2]))


async def test_issue_queue_is_bounded_and_verification_does_not_stand_in_it() -> None:
    async with a_bench(issue_queue=2) as bench:
        await hold_the_thread(bench)
        waiting = [await started(bench.hasher.hash(a_secret())) for _ in range(2)]
        secret = a_secret()

        with pytest.raises(Exhausted) as raised:
            await bench.hasher.hash(a_secret())
        verification = await started(bench.hasher.verify("a", secret, CHEAP.hash(secret)))
        bench.bcrypt.release()

        assert raised.value.reason == "HASHING_BUSY"
        assert len(await asyncio.gather(*waiting)) == 2
        assert await verification


async def test_one_thread_does_it_all(bench: Bench) -> None:
    secrets = [a_secret() for _ in range(8)]

    await asyncio.gather(
        *(bench.hasher.hash(secret) for secret in secrets),
        *(bench.hasher.verify(secret.subject_id, secret, CHEAP.hash(secret)) for secret in secrets),
    )

    assert len(bcrypt_threads()) == 1


# Callers that leave


async def test_caller_that_leaves_takes_no_other_waiter_with_it(bench: Bench) -> None:
    secret = a_secret()
    bcrypt_hash = CHEAP.hash(secret)
    bench.bcrypt.hold()
    first = await started(bench.hasher.verify("a", secret, bcrypt_hash))
    second = await started(bench.hasher.verify("a", secret, bcrypt_hash))

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    bench.bcrypt.release()

    assert await second


async def test_thread_serves_on_after_the_caller_of_its_work_left(bench: Bench) -> None:
    holding = await hold_the_thread(bench)
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    following = await started(bench.hasher.hash(a_secret()))

    bench.bcrypt.release()

    assert await following


async def test_failure_is_recorded_although_its_caller_left(bench: Bench) -> None:
    wrong, bcrypt_hash = a_secret(), CHEAP.hash(a_secret())
    bench.bcrypt.hold()
    leaving = await started(bench.hasher.verify("a", wrong, bcrypt_hash))
    await bench.bcrypt.begun(1)
    leaving.cancel()
    following = await started(bench.hasher.hash(a_secret()))
    bench.bcrypt.release()
    await following

    assert not await bench.hasher.verify("a", wrong, bcrypt_hash)
    assert [call for call, _ in bench.bcrypt.calls] == ["check", "hash"]


async def test_work_that_nobody_waits_for_any_more_costs_no_bcrypt_and_no_place() -> None:
    async with a_bench(verify_queue=1, issue_queue=1) as bench:
        holding = await hold_the_thread(bench)
        secret = a_secret()
        bcrypt_hash = CHEAP.hash(secret)
        leaving = [
            await started(bench.hasher.verify("a", secret, bcrypt_hash)),
            await started(bench.hasher.hash(secret)),
        ]
        behind = await started(bench.hasher.verify("a", a_secret(), bcrypt_hash))
        for task in leaving:
            task.cancel()
        assert [type(answer) for answer in await asyncio.gather(*leaving, return_exceptions=True)] == [
            asyncio.CancelledError,
            asyncio.CancelledError,
        ]

        staying = await started(bench.hasher.hash(secret))
        bench.bcrypt.release()

        assert await holding
        assert await staying
        assert not await behind
        assert [call for call, _ in bench.bcrypt.calls] == ["check", "hash", "check"]


# Start and end


async def test_making_one_starts_no_thread_and_no_task() -> None:
    threads, tasks = threading.active_count(), asyncio.all_tasks()

    hasher = Hasher(FakeClock())

    assert threading.active_count() == threads
    assert asyncio.all_tasks() == tasks
    await hasher.close()


async def test_what_was_asked_before_run_is_served_by_it() -> None:
    bench = Bench()
    waiting = await started(bench.hasher.hash(a_secret()))
    running = asyncio.create_task(bench.hasher.run())

    assert await waiting
    await bench.hasher.close()
    await running


async def test_close_refuses_everyone_and_ends_the_thread() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.hasher.run())
    holding = await hold_the_thread(bench)
    secret, bcrypt_hash = a_secret(), CHEAP.hash(a_secret())
    waiting = [
        holding,
        await started(bench.hasher.hash(secret)),
        await started(bench.hasher.verify("a", secret, bcrypt_hash)),
        await started(bench.hasher.verify("a", a_secret(), bcrypt_hash)),  # behind the former
    ]

    closing = await started(bench.hasher.close())
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert not closing.done()  # the thread is in its call
    bench.bcrypt.release()
    await closing
    await running
    await bench.hasher.close()

    assert [getattr(error, "reason", error) for error in refused] == ["SHUTTING_DOWN"] * 4
    assert len({id(error) for error in refused}) == 4
    assert bcrypt_threads() == []
    for call in (bench.hasher.hash(secret), bench.hasher.verify("b", secret, bcrypt_hash)):
        with pytest.raises(Unavailable):
            await call
    assert len(bench.bcrypt.calls) == 1


async def test_cancelled_run_refuses_everyone_and_close_still_waits_for_the_thread() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.hasher.run())
    holding = await hold_the_thread(bench)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(Unavailable):
        await holding
    closing = await started(bench.hasher.close())
    assert not closing.done()
    bench.bcrypt.release()
    await closing

    assert bcrypt_threads() == []


# Faults, and what they show


async def test_rotation_goes_on_while_a_verification_is_stopped_before_its_result(bench: Bench) -> None:
    secret, stopped, go = a_secret(), asyncio.Event(), asyncio.Event()

    async def stop() -> None:
        stopped.set()
        await go.wait()

    failpoints.arm(Failpoint.BCRYPT_BEFORE_RESULT, stop)
    try:
        verification = await started(bench.hasher.verify("a", secret, CHEAP.hash(secret)))
        await stopped.wait()

        assert await bench.hasher.hash(a_secret("a" * 16))
        assert not verification.done()
    finally:
        failpoints.disarm(Failpoint.BCRYPT_BEFORE_RESULT)
        go.set()
    assert await verification


async def test_damaged_hash_is_refused_before_it_takes_the_thread(bench: Bench) -> None:
    with pytest.raises(HashMalformed):
        await bench.hasher.find_version("a", a_secret(), {2: CHEAP.hash(a_secret()), 1: "$2b$31$" + 53 * "a"})

    assert bench.bcrypt.calls == []


@pytest.mark.parametrize("broken", [ValueError("broken"), BaseException("a panic in bcrypt's Rust")])
async def test_bcrypt_that_raises_fails_its_own_callers_and_the_thread_serves_on(
    bench: Bench, broken: BaseException
) -> None:
    secret = a_secret()
    bcrypt_hash = CHEAP.hash(secret)
    bench.bcrypt.breaks = broken

    failed = await asyncio.gather(
        bench.hasher.verify("a", secret, bcrypt_hash),
        bench.hasher.verify("a", secret, bcrypt_hash),
        bench.hasher.hash(secret),
        return_exceptions=True,
    )
    bench.bcrypt.breaks = None

    assert [type(error) for error in failed] == [HashingFailed] * 3
    assert failed[0] is not failed[1]
    assert [error.__cause__ for error in failed if isinstance(error, HashingFailed)] == [broken] * 3
    assert await bench.hasher.verify("a", secret, bcrypt_hash)  # an error is no failure of the secret: no back-off


async def test_no_error_and_no_log_shows_a_secret_or_a_hash(caplog: LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0  # so that asyncio prints every callback it runs
    secret = a_secret()
    bcrypt_hash = CHEAP.hash(secret)
    errors: list[BaseException] = []
    async with a_bench(verify_queue=1) as bench:

        async def ask() -> None:
            try:
                await bench.hasher.verify("a", secret, bcrypt_hash)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must show nothing
                errors.append(error)

        bench.bcrypt.breaks = ValueError("broken")
        await ask()
        bench.bcrypt.breaks = None
        assert not await bench.hasher.verify("a", a_secret(), bcrypt_hash)
        await ask()  # backs off
        await bench.hasher.close()
        bench.clock.ns += FIRST_BACK_OFF_NS
        await ask()  # closed
    gc.collect()  # what asyncio says of exceptions that nobody looked at, it says here

    assert [type(error) for error in errors] == [HashingFailed, Exhausted, Unavailable]
    shown = "".join("".join(traceback.format_exception(error)) + repr(vars(error)) for error in errors) + caplog.text
    inner = "".join(locals_below_the_test(error) for error in errors)
    assert "asyncio" in caplog.text  # the log was on
    assert secret.reveal() not in shown + inner
    assert bcrypt_hash not in shown


def locals_below_the_test(error: BaseException | None) -> str:
    """Every local variable of every frame of the error and its causes that is not in this file."""
    shown = ""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename != __file__:
                shown += repr(frame.f_locals)
        error = error.__cause__ or error.__context__
    return shown


def test_failure_that_nobody_waits_for_any_more_is_not_logged_at_random(caplog: LogCaptureFixture) -> None:
    async def stopped_while_bcrypt_fails() -> None:
        bench = Bench()
        running = asyncio.create_task(bench.hasher.run())
        holding = await hold_the_thread(bench)
        bench.bcrypt.breaks = ValueError("broken")
        running.cancel()
        closing = await started(bench.hasher.close())
        bench.bcrypt.release()
        await closing
        ended = await asyncio.gather(running, holding, return_exceptions=True)
        assert [type(error) for error in ended] == [asyncio.CancelledError, Unavailable]

    asyncio.run(stopped_while_bcrypt_fails())
    gc.collect()  # asyncio says it when the future goes

    assert "never retrieved" not in caplog.text
