"""Both dialects of the client, called alike: one case table tests `doorward.aio` and `doorward.threads`.

    def test_…(dialect: Dialect):
        authorizer = dialect.client("Authorizer", target, credential=…)      # closed after the test
        authorizer.check(secret, "jobs:read", project_id="p")                # returns, or raises, in either dialect
        begun = authorizer.begin("check", secret, "jobs:read", project_id="p")
        begun.result(); begun.cancel()                                       # cancelling is asyncio's alone
        local = dialect.local(target, credential=…).ready()                  # a LocalAuthorizer that holds a sub-lease

Clients of asyncio run in one event loop beside the tests, and after each test nothing of theirs may be left there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from doorward import aio, threads
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from doorward._watch_shared import Watching

PATIENCE_S: Final = 30.0
MOST_THREADS: Final = 320


class Begun:
    """A call that was begun."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def result(self) -> Any:
        """What it returns; what it raises is raised."""
        return self._future.result(PATIENCE_S)

    def error(self) -> Any:
        """What it raises; that it does is asserted."""
        error = self._future.exception(PATIENCE_S)
        assert error is not None, f"it returned {self._future.result()!r}"
        return error

    @property
    def is_done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        """Cancels the task that called."""
        self._future.cancel()


class Called:
    """A client whose methods block, whatever its dialect."""

    def __init__(self, dialect: Dialect, client: Any) -> None:
        self._dialect = dialect
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.begin(name, *args, **kwargs).result()

    def begin(self, name: str, *args: Any, **kwargs: Any) -> Begun:
        """Calls a method without awaiting its end."""
        return Begun(self._dialect.start(getattr(self.client, name), *args, **kwargs))

    def outstanding(self) -> int:
        """How many of its checks wait for others, sent or not."""
        lanes = self.client._checks._lanes
        found: int = self._dialect.run(lambda: sum(1 for lane in lanes.values() for _ in lane.line.outstanding()))
        return found

    def with_bounds(self, **bounds: Any) -> None:
        """Gives its checks other bounds, before the first one."""
        checks = self.client._checks
        self.client._checks = type(checks)(self.client._send_one, self.client._send_many, **bounds)


class Local(Called):
    """A `LocalAuthorizer` whose methods block, whatever its dialect."""

    @property
    def holds_lease(self) -> bool:
        """Whether it would decide by itself now."""
        return bool(self.client.holds_lease)

    @property
    def watching(self) -> Watching:
        """What it keeps."""
        watching: Watching = self.client._feed.watching
        return watching

    def ready(self) -> Self:
        """The same, once it holds a sub-lease."""
        self.wait_ready(timeout=PATIENCE_S)
        return self

    def hold_messages(self, *kinds: type) -> Held:
        """From now on messages of these kinds (of `core.watch_messages`) are held back before they are applied."""
        return Held(self._dialect, self.client._feed, kinds)


class Held:
    """What a watcher has received and not applied. `let_go` applies it, and everything from then on."""

    def __init__(self, dialect: Dialect, feed: Any, kinds: tuple[type, ...]) -> None:
        self._kinds = kinds
        self._may_go = threading.Event()
        self._is_held = threading.Event()
        take = feed._take

        async def held_in_loop(session: Any, message: Any) -> Any:
            if self._holds(message):
                await asyncio.to_thread(self._may_go.wait, PATIENCE_S)
            return await take(session, message)

        def held_in_thread(session: Any, message: Any) -> Any:
            if self._holds(message):
                self._may_go.wait(PATIENCE_S)
            return take(session, message)

        feed._take = held_in_loop if dialect.is_aio else held_in_thread

    def await_one(self) -> None:
        """Returns once a message is held."""
        assert self._is_held.wait(PATIENCE_S)

    def let_go(self) -> None:
        """Holds nothing any more."""
        self._may_go.set()

    def _holds(self, message: Any) -> bool:
        if not isinstance(message.body, self._kinds) or self._may_go.is_set():
            return False
        self._is_held.set()
        return True


class Dialect:
    """One of the two."""

    def __init__(self, name: str, module: ModuleType, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.module = module
        self._loop = loop
        self._pool = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="caller")
        self._clients: list[Called] = []

    @property
    def is_aio(self) -> bool:
        return self.module is aio

    def client(self, service: str, target: Any, **options: Any) -> Called:
        """A client of a service, closed after the test."""
        called = Called(self, getattr(self.module, f"{service}Client")(target, **options))
        self._clients.append(called)
        return called

    def local(self, target: Any, **options: Any) -> Local:
        """A `LocalAuthorizer`, closed after the test."""
        local = Local(self, self.module.LocalAuthorizer(target, **options))
        self._clients.append(local)
        return local

    def forget(self, called: Called) -> None:
        """Closes it no more: the test drops it."""
        self._clients.remove(called)

    def start(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls in a task or a thread of its own."""
        if not self.is_aio:
            return self._pool.submit(method, *args, **kwargs)

        async def calls() -> Any:
            return await method(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(calls(), self._loop)

    def start_at_once(self, calls: list[Callable[[], Any]]) -> list[Begun]:
        """Begins several calls in the same moment: in one round of the loop, or in as many threads."""
        if not self.is_aio:
            return [Begun(self._pool.submit(call)) for call in calls]
        futures: list[Future[Any]] = [Future() for _ in calls]

        async def each(call: Callable[[], Any], future: Future[Any]) -> None:
            try:
                future.set_result(await call())
            except BaseException as error:  # noqa: BLE001 - it is what the call ended with
                future.set_exception(error)

        async def all_of_them() -> None:
            await asyncio.gather(*(each(call, future) for call, future in zip(calls, futures, strict=True)))

        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop)
        return [Begun(future) for future in futures]

    def run(self, look: Callable[[], Any]) -> Any:
        """What `look` returns, asked where the clients live."""
        if not self.is_aio:
            return look()
        found: Future[Any] = Future()
        self._loop.call_soon_threadsafe(lambda: found.set_result(look()))
        return found.result(PATIENCE_S)

    def close(self) -> None:
        """Closes the clients; nothing of theirs may be left."""
        for called in self._clients:
            self.start(called.client.close).result(PATIENCE_S)
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.is_aio:
            eventually(lambda: not asyncio.all_tasks(self._loop), within_s=PATIENCE_S)


@pytest.fixture(scope="session")
def dialect_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop beside the tests in which clients of asyncio live."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="dialect aio", daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE_S)
    loop.close()


@pytest.fixture(params=[aio, threads], ids=["aio", "threads"])
def dialect(request: pytest.FixtureRequest, dialect_loop: asyncio.AbstractEventLoop) -> Iterator[Dialect]:
    """Each dialect in turn."""
    dialect = Dialect(request.param.__name__.rpartition(".")[2], request.param, dialect_loop)
    try:
        yield dialect
    finally:
        dialect.close()


def results_of(begun: list[Begun]) -> list[Any]:
    """What each returned, or raised, as a value."""
    concurrent.futures.wait([one._future for one in begun], PATIENCE_S)
    return [one.error() if one._future.exception() is not None else one.result() for one in begun]
