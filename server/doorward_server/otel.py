"""Spans as OpenTelemetry has them: the only module that imports it. Used by `tracing.py`, if traces are asked for.

Names and attributes follow its semantic conventions for RPC; what is ours begins with `doorward.`. An exception's text is
never recorded: it may quote what a caller sent.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from doorward_server.telemetry import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["OtelRecorder", "otlp_recorder"]

# W3C Trace Context; what else a caller sends along is its own business.
CARRIED: Final = frozenset({"traceparent", "tracestate"})
# Faults of a server, as the conventions have it; to refuse a caller is none.
FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class _Recorded:
    """A `tracing.Span`."""

    def __init__(self, recorded: trace.Span) -> None:
        self._recorded = recorded

    def note(self, name: str, value: str | int) -> None:
        self._recorded.set_attribute(f"doorward.{name}", redact(value) if isinstance(value, str) else value)

    def ended(self, code: str, reason: str) -> None:
        self._recorded.set_attribute("rpc.response.status_code", code)
        if reason:
            self.note("reason", reason)
        if code in FAULTS:
            self._recorded.set_status(Status(StatusCode.ERROR))


class OtelRecorder:
    """A `tracing.Recorder` that hands what ended to `processor`."""

    def __init__(self, processor: SpanProcessor, service_version: str) -> None:
        resource = Resource.create({"service.name": "doorward", "service.version": service_version})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("doorward_server", service_version)
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[_Recorded]:
        """One within the present one."""
        with self._recording(name) as recorded:
            yield recorded

    @contextlib.contextmanager
    def call_span(self, path: str, metadata: Iterable[tuple[str, Any]] | None) -> Iterator[_Recorded]:
        """One of a call, within the caller's."""
        carrier = {key: value for key, value in metadata or () if key in CARRIED and isinstance(value, str)}
        context = self._propagator.extract(carrier)
        attributes = {"rpc.system.name": "grpc", "rpc.method": path.removeprefix("/")}
        with self._recording(
            path.removeprefix("/"), context=context, kind=SpanKind.SERVER, attributes=attributes
        ) as recorded:
            yield recorded

    def stop(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()

    @contextlib.contextmanager
    def _recording(self, name: str, **how: Any) -> Iterator[_Recorded]:
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False, **how
        ) as recorded:
            try:
                yield _Recorded(recorded)
            except BaseException as raised:
                recorded.set_attribute("error.type", type(raised).__name__)
                raise


def otlp_recorder(service_version: str) -> OtelRecorder:
    """One that sends over OTLP (HTTP), in a thread of its own, as the `OTEL_…` variables say."""
    return OtelRecorder(BatchSpanProcessor(OTLPSpanExporter()), service_version)
