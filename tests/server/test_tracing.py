"""Traces of a real listener, in memory: what has a span, whose child it is, and what is never in one."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from doorward.core.secret import SecretKind, generate, new_id
from doorward_server import tracing
from doorward_server.api.access import Access
from doorward_server.api.methods import Method, Peer
from doorward_server.errors import NotFound, Unavailable
from doorward_server.otel import OtelRecorder
from tests.server.api.test_server import PATH, PATIENCE_S, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLERS = ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01")


@pytest.fixture
def ended() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.record_with(OtelRecorder(SimpleSpanProcessor(exporter), "1.2.3"))
    yield exporter
    tracing.stop()


def spans(ended: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in ended.get_finished_spans()}


async def ask(method: Method, *metadata: tuple[str, str]) -> str:
    """The status of one call."""
    async with listening(method) as address, grpc.aio.insecure_channel(address) as channel:
        rpc: Any = channel.unary_unary(PATH)
        call = rpc(b"", metadata=metadata, timeout=PATIENCE_S)
        code: grpc.StatusCode = await call.code()
        return code.name


def waiting(failure: Exception | None = None) -> Method:
    """A method whose work has a part of its own."""

    async def cold(_request: bytes, _peer: Peer) -> bytes:
        with tracing.span("part") as part:
            part.note("revision", "1.7")
            if failure is not None:
                raise failure
        return b"yes"

    return Method(PATH, Access(frozenset()), None, cold)


async def test_a_call_that_waits_is_a_child_of_its_callers_span(ended: InMemorySpanExporter) -> None:
    assert await ask(waiting(), CALLERS) == "OK"

    found = spans(ended)
    call, part = found[PATH[1:]], found["part"]
    assert call.kind is SpanKind.SERVER
    assert call.parent is not None
    assert (f"{call.context.trace_id:032x}", f"{call.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert part.parent is not None
    assert part.parent.span_id == call.context.span_id
    assert part.attributes == {"doorward.revision": "1.7"}
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": PATH[1:],
        "rpc.response.status_code": "OK",
    }


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", f"ff-{TRACE_ID}-{SPAN_ID}-01"])
async def test_a_traceparent_that_is_none_begins_a_trace(ended: InMemorySpanExporter, traceparent: str) -> None:
    assert await ask(waiting(), ("traceparent", traceparent)) == "OK"

    assert spans(ended)[PATH[1:]].parent is None


async def test_a_refusal_is_no_fault_and_an_outage_is(ended: InMemorySpanExporter) -> None:
    assert await ask(waiting(NotFound("TOKEN_NOT_FOUND", "there is no such token"))) == "NOT_FOUND"
    refused = spans(ended)[PATH[1:]]
    ended.clear()
    assert await ask(waiting(Unavailable("NO_LEASE", "this replica holds no lease"))) == "UNAVAILABLE"
    failed = spans(ended)[PATH[1:]]

    assert refused.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    for span, reason in ((refused, "TOKEN_NOT_FOUND"), (failed, "NO_LEASE")):
        assert span.attributes is not None
        assert span.attributes["doorward.reason"] == reason


async def test_what_memory_answers_has_no_span(ended: InMemorySpanExporter) -> None:
    method = waiting()._replace(warm=lambda _request, _credential: b"yes")

    assert await ask(method, CALLERS) == "OK"

    assert ended.get_finished_spans() == ()


async def test_no_secret_is_in_a_span(ended: InMemorySpanExporter) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    fault = RuntimeError(f"this holds {secret}")

    assert await ask(waiting(fault), ("authorization", f"Bearer {secret}"), ("tracestate", f"a={secret}")) == "INTERNAL"
    with tracing.span("noted") as span:
        span.note("careless", f"of {secret}")

    text = "".join(span.to_json() for span in ended.get_finished_spans())
    assert "RuntimeError" in text
    assert secret not in text
    assert secret[30:] not in text


def test_without_traces_nothing_of_them_is_imported() -> None:
    program = (
        "import sys, doorward_server.app, doorward_server.workers.parent\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests'))])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "[]\n"


def test_who_asks_for_traces_without_the_extra_is_told_what_to_install() -> None:
    program = (
        "import sys\nsys.modules['opentelemetry'] = None\nfrom doorward_server import tracing\n"
        "try: tracing.start('1')\nexcept tracing.TracingUnavailable as told: print(told)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "install doorward-server[otel]" in told.stdout
