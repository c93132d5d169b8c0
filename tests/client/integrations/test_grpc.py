"""Both interceptors in servers of the test's own: handlers of every kind, and what a client of the examples never sees."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import pytest

from doorward.errors import Status, Unavailable
from doorward.integrations import grpc_aio, grpc_threads
from doorward.integrations.grpc_aio import HEALTH, OPEN, Needs, from_metadata, identity
from examples import jobs_pb2 as pb
from tests.support.deciders import Decider, a_secret
from tests.support.guarded import Answer, answer_of
from tests.support.server import bearer
from tests.support.wire import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SECRET: Final = a_secret()
REQUEST: Final = pb.StartJobRequest(project_id="p1", name="n")
MAKE: Final = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}
PLACES: Final[dict[str, Any]] = {
    "a field": "project_id",
    "metadata": from_metadata("project-id"),
    "a callable": lambda message: message.project_id,
}


def handler(kind: str, behaviour: Callable[..., Any]) -> Any:
    # grpc.aio encodes a str before it hands it to the serializer.
    return MAKE[kind](
        behaviour, pb.StartJobRequest.FromString, lambda text: bytes(text, "utf-8") if isinstance(text, str) else text
    )


# ---- handlers that say what they got and for whom


async def aio_unary_unary(request: Any, _context: Any) -> str:
    return f"{request.project_id} {identity().token_id}"


async def aio_unary_stream(request: Any, _context: Any) -> AsyncIterator[str]:
    for number in range(2):
        yield f"{number} {request.project_id} {identity().token_id}"


async def aio_unary_stream_written(request: Any, context: Any) -> None:
    for number in range(2):
        await context.write(f"{number} {request.project_id} {identity().token_id}")


async def aio_stream_unary(requests: Any, _context: Any) -> str:
    return f"{' '.join([request.name async for request in requests])} {identity().token_id}"


async def aio_stream_unary_read(_requests: Any, context: Any) -> str:
    names = []
    while (request := await context.read()) is not grpc.aio.EOF:
        names.append(request.name)
    return f"{' '.join(names)} {identity().token_id}"


async def aio_stream_stream(requests: Any, _context: Any) -> AsyncIterator[str]:
    async for request in requests:
        yield f"{request.name} {identity().token_id}"


async def aio_stream_stream_both(_requests: Any, context: Any) -> None:
    assert context.peer()  # all else of the context is there
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(f"{request.name} {identity().token_id}")


def threads_unary_unary(request: Any, _context: Any) -> str:
    return f"{request.project_id} {identity().token_id}"


def threads_unary_stream(request: Any, _context: Any) -> Iterator[str]:
    for number in range(2):
        yield f"{number} {request.project_id} {identity().token_id}"


def threads_stream_unary(requests: Any, _context: Any) -> str:
    return f"{' '.join([request.name for request in requests])} {identity().token_id}"


def threads_stream_stream(requests: Any, _context: Any) -> Iterator[str]:
    for request in requests:
        yield f"{request.name} {identity().token_id}"


# By dialect: the handlers of each kind.
HANDLERS: Final[dict[str, dict[str, list[Callable[..., Any]]]]] = {
    "aio": {
        "unary_unary": [aio_unary_unary],
        "unary_stream": [aio_unary_stream, aio_unary_stream_written],
        "stream_unary": [aio_stream_unary, aio_stream_unary_read],
        "stream_stream": [aio_stream_stream, aio_stream_stream_both],
    },
    "threads": {
        "unary_unary": [threads_unary_unary],
        "unary_stream": [threads_unary_stream],
        "stream_unary": [threads_stream_unary],
        "stream_stream": [threads_stream_stream],
    },
}
ALL: Final = [
    pytest.param(dialect, kind, behaviour, id=behaviour.__name__)
    for dialect, kinds in HANDLERS.items()
    for kind, behaviours in kinds.items()
    for behaviour in behaviours
]


@contextlib.asynccontextmanager
async def served(
    dialect: str, decider: Decider, rules: Any, handlers: dict[str, Any], **options: Any
) -> AsyncIterator[grpc.aio.Channel]:
    """A guarded server of one service, /t.T/…, and a channel to it."""
    generic = grpc.method_handlers_generic_handler("t.T", handlers)
    named = {method if method.startswith("/") else f"/t.T/{method}": rule for method, rule in rules.items()}
    async with contextlib.AsyncExitStack() as ends:
        if dialect == "aio":
            aio_server = grpc.aio.server(interceptors=[grpc_aio.Guard(decider.aio, named, **options)])
            aio_server.add_generic_rpc_handlers((generic,))
            port = aio_server.add_insecure_port("127.0.0.1:0")
            await aio_server.start()
            ends.push_async_callback(aio_server.stop, None)
        else:
            pool = ThreadPoolExecutor(4)
            interceptor = grpc_threads.Guard(decider.threads, named, **options)
            server = grpc.server(pool, handlers=[generic], interceptors=[interceptor])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            ends.callback(lambda: server.stop(None).wait(TIMEOUT_S))
        yield await ends.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))


# In what grpc.aio says of a write that failed at its own side; no server's status has it.
UNWRITTEN = "SendMessageOperation"
TRIES = 10


async def said(
    channel: grpc.aio.Channel, kind: str, metadata: Any, *requests: Any, method: str = "M", timeout_s: float = TIMEOUT_S
) -> list[str] | Answer:
    """What a call answers, or what it is refused with."""
    call = getattr(channel, kind)(
        f"/t.T/{method}", lambda message: message.SerializeToString(), lambda content: content.decode()
    )
    for _ in range(TRIES):
        argument = iter(requests) if kind.startswith("stream") else requests[0]
        try:
            answer = call(argument, metadata=metadata, timeout=timeout_s)
            return [text async for text in answer] if kind.endswith("stream") else [await answer]
        except grpc.aio.AioRpcError as error:
            # A write that fails because the call was refused meanwhile hides how: nothing was said, so it is asked again.
            if UNWRITTEN not in (error.debug_error_string() or ""):
                return answer_of(error)
    raise AssertionError(f"of {TRIES} calls none was written whole")


@pytest.mark.parametrize(("dialect", "kind", "behaviour"), ALL)
@pytest.mark.parametrize("place", PLACES)
async def test_a_handler_of_every_kind_gets_all_that_was_sent_and_knows_for_whom(
    dialect: str, kind: str, behaviour: Callable[..., Any], place: str
) -> None:
    decider, rules = Decider(), {"M": Needs("jobs:read", project_id=PLACES[place])}
    metadata = (*bearer(SECRET), ("project-id", "p1"))
    requests = [pb.StartJobRequest(project_id="p1", name=name) for name in ("a", "b")]
    async with served(dialect, decider, rules, {"M": handler(kind, behaviour)}) as channel:
        answers = await said(channel, kind, metadata, *requests)
    assert (
        answers
        == {
            "unary_unary": ["p1 token-1"],
            "unary_stream": ["0 p1 token-1", "1 p1 token-1"],
            "stream_unary": ["a b token-1"],
            "stream_stream": ["a token-1", "b token-1"],
        }[kind]
    )
    assert [(asked.secret, asked.project_id) for asked in decider.asked] == [(SECRET, "p1")]


@pytest.mark.parametrize(("dialect", "kind", "behaviour"), ALL)
async def test_a_handler_of_no_kind_runs_without_a_credential_or_without_a_rule(
    dialect: str, kind: str, behaviour: Callable[..., Any]
) -> None:
    decider, rules = Decider(), {"M": Needs("jobs:read", project_id="project_id")}
    handlers = {"M": handler(kind, behaviour), "Forgotten": handler(kind, behaviour)}
    async with served(dialect, decider, rules, handlers) as channel:
        refused = await said(channel, kind, (), REQUEST)
        forgotten = await said(channel, kind, bearer(SECRET), REQUEST, method="Forgotten")
    assert isinstance(refused, Answer)
    assert refused[:2] == ("unauthenticated", "CREDENTIAL_MISSING")
    assert isinstance(forgotten, Answer)
    assert forgotten[:2] == ("denied", "NO_RULE")
    assert decider.asked == []


@pytest.mark.parametrize(
    ("dialect", "kind", "behaviour"), [one for one in ALL if str(one.values[1]).startswith("stream")]
)
async def test_a_stream_that_comes_to_name_another_project_ends(
    dialect: str, kind: str, behaviour: Callable[..., Any]
) -> None:
    requests = [pb.StartJobRequest(project_id=project_id, name="x") for project_id in ("p1", "", "p2")]
    rules = {"M": Needs("jobs:read", project_id="project_id")}
    async with served(dialect, Decider(), rules, {"M": handler(kind, behaviour)}) as channel:
        answer = await said(channel, kind, bearer(SECRET), *requests)
    assert isinstance(answer, Answer)
    assert answer[:2] == ("denied", "RESOURCE_CHANGED")
    assert answer.said.metadata == {"permission": "jobs:read"}


# ---- both dialects, one method


def own(dialect: str, behaviour: Callable[[], Any]) -> Any:
    """A unary handler that does something of its own."""

    def threads(_request: Any, _context: Any) -> Any:
        return behaviour()

    async def aio(_request: Any, _context: Any) -> Any:
        return behaviour()

    return handler("unary_unary", aio if dialect == "aio" else threads)


@pytest.fixture(params=list(HANDLERS))
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize(
    "place", ["no_such_field", "project_id.of_nothing", lambda message: message["project_id"], lambda _: 1 / 0]
)
async def test_a_rule_that_does_not_fit_its_message_admits_nobody(
    dialect: str, place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rules = {"M": Needs("jobs:read", project_id=place)}
    async with served(dialect, Decider(), rules, {"M": own(dialect, lambda: "run")}) as channel:
        answer = await said(channel, "unary_unary", bearer(SECRET), REQUEST)
    assert isinstance(answer, Answer)
    assert answer[:2] == ("failed", "GUARD_FAILED")
    assert "no_such_field" not in answer.said.text
    assert "could not check" in caplog.text


@pytest.mark.parametrize("found", [None, "", 7, b"p1", "a b"])
async def test_a_callable_that_finds_no_id_admits_nobody(dialect: str, found: Any) -> None:
    rules = {"M": Needs("jobs:read", project_id=lambda _: found)}
    async with served(dialect, Decider(), rules, {"M": own(dialect, lambda: "run")}) as channel:
        answer = await said(channel, "unary_unary", bearer(SECRET), REQUEST)
    assert isinstance(answer, Answer)
    assert answer[:2] == ("unclear", "RESOURCE_UNCLEAR")


@pytest.mark.parametrize("error", [RuntimeError(f"Bearer {SECRET}"), ValueError(SECRET)])
async def test_the_text_of_an_unknown_error_goes_to_no_caller(dialect: str, error: Exception) -> None:
    rules = {"M": Needs("jobs:read", project_id="project_id")}
    async with served(dialect, Decider(error), rules, {"M": own(dialect, lambda: "run")}) as channel:
        answer = await said(channel, "unary_unary", bearer(SECRET), REQUEST)
    assert isinstance(answer, Answer)
    assert answer[:2] == ("failed", "GUARD_FAILED")
    assert SECRET not in answer.said.text


async def test_no_answer_is_said_with_the_time_to_come_back(dialect: str) -> None:
    rules = {"M": Needs("jobs:read", project_id="project_id")}
    error = Unavailable(Status(grpc.StatusCode.UNAVAILABLE, "away", retry_after_s=0.25))
    async with served(dialect, Decider(error), rules, {"M": own(dialect, lambda: "run")}) as channel:
        answer = await said(channel, "unary_unary", bearer(SECRET), REQUEST)
    assert isinstance(answer, Answer)
    assert answer[:2] == ("undecided", "NOT_DECIDED")
    assert answer.said.retry_after_s == 0.25
    assert "away" not in answer.said.text


async def test_a_stream_without_a_credential_is_not_even_read(dialect: str) -> None:
    behaviour = HANDLERS[dialect]["stream_unary"][0]
    rules = {"M": Needs("jobs:read", project_id="project_id")}
    async with served(dialect, Decider(), rules, {"M": handler("stream_unary", behaviour)}) as channel:
        call: Any = channel.stream_unary("/t.T/M")()
        # It says nothing and does not end.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert answer_of(caught.value)[:2] == ("unauthenticated", "CREDENTIAL_MISSING")


async def test_what_is_open_is_handed_on_as_it_is(dialect: str) -> None:
    decider = Decider()
    rules = {"M": OPEN, **dict.fromkeys(HEALTH, OPEN)}
    found = own(dialect, lambda: str(grpc_aio.find_identity()))
    async with served(dialect, decider, rules, {"M": found}) as channel:
        assert await said(channel, "unary_unary", (), REQUEST) == ["None"]
    assert decider.asked == []


async def test_one_call_does_not_know_of_another(dialect: str) -> None:
    """The threads of a pool, and the connection, are the same; who was let in is not."""
    rules = {"M": Needs("jobs:read", project_id="project_id"), "Open": OPEN}
    found = own(dialect, lambda: str(grpc_aio.find_identity()))
    async with served(dialect, Decider(), rules, {"M": found, "Open": found}) as channel:
        for _ in range(8):
            assert "token-1" in str(await said(channel, "unary_unary", bearer(SECRET), REQUEST))
            assert await said(channel, "unary_unary", (), REQUEST, method="Open") == ["None"]


async def test_a_check_gets_no_more_time_than_the_call_has_left(dialect: str) -> None:
    decider, rules = Decider(), {"M": Needs("jobs:read", project_id="project_id")}
    async with served(dialect, decider, rules, {"M": own(dialect, lambda: "run")}, timeout=20.0) as channel:
        await said(channel, "unary_unary", bearer(SECRET), REQUEST, timeout_s=10.0)
        await said(channel, "unary_unary", bearer(SECRET), REQUEST, timeout_s=1_000.0)
        call: Any = channel.unary_unary("/t.T/M", lambda message: message.SerializeToString())
        await call(REQUEST, metadata=bearer(SECRET))  # without a deadline
    first, *others = (asked.timeout or 0.0 for asked in decider.asked)
    # gRPC's own reading of what is left may be a little more than was given.
    assert 0.0 < first < 15.0
    assert others == [20.0, 20.0]


async def test_an_account_level_permission_is_asked_on_the_account(dialect: str) -> None:
    decider, rules = Decider(), {"M": Needs("billing:read", account_id="project_id")}
    async with served(dialect, decider, rules, {"M": own(dialect, lambda: "run")}) as channel:
        await said(channel, "unary_unary", bearer(SECRET), REQUEST)
    assert [(asked.project_id, asked.account_id) for asked in decider.asked] == [(None, "p1")]


# ---- asyncio alone


async def test_a_handler_that_is_no_coroutine_function_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    decider, rules = Decider(), {"M": Needs("jobs:read", project_id="project_id")}
    async with served("aio", decider, rules, {"M": own("threads", lambda: "run")}) as channel:
        answer = await said(channel, "unary_unary", bearer(SECRET), REQUEST)
    assert isinstance(answer, Answer)
    assert answer[:2] == ("failed", "GUARD_FAILED")
    assert "no coroutine function" in caplog.text
    assert decider.asked == []
