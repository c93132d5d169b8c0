"""Traces, for who installed `doorward-server[otel]` and asked for them with `--traces otlp` (design sections 4 and 9).

Spans stand around each call that waits, each transaction that changes something, and each wait for the replicas; a caller's
`traceparent` is taken up. What memory answers has none. Until `start`, a span is nothing at all and OpenTelemetry is not
imported. No attribute has a secret in it: ids, codes and counts alone are noted, each through the redactor, and never the
text of an exception. Imports nothing of ours but `telemetry`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    Metadata = Iterable[tuple[str, Any]] | None

__all__ = ["Recorder", "Span", "TracingUnavailable", "call_span", "record_with", "span", "start", "stop"]


class TracingUnavailable(Exception):
    """Traces were asked for and cannot be had; the text says what to install."""


class Span(Protocol):
    """Something that takes a while."""

    def note(self, name: str, value: str | int) -> None:
        """Notes a fact about it."""
        ...

    def ended(self, code: str, reason: str) -> None:
        """Notes how a call ended, by gRPC's code and ErrorInfo.reason."""
        ...


class Recorder(Protocol):
    """What records spans (`otel.py`)."""

    def span(self, name: str) -> AbstractContextManager[Span]:
        """One within the present one."""
        ...

    def call_span(self, path: str, metadata: Metadata) -> AbstractContextManager[Span]:
        """One of a call, within the caller's if it tells of one."""
        ...

    def stop(self) -> None:
        """Sends what is left; returns when that is done, or has taken too long."""
        ...


class _Nothing:
    def note(self, name: str, value: str | int) -> None:
        """Nothing."""

    def ended(self, code: str, reason: str) -> None:
        """Nothing."""


# May be entered by any number at once: it keeps nothing.
_UNRECORDED: Final[AbstractContextManager[Span]] = contextlib.nullcontext(_Nothing())
_recorder: Recorder | None = None


def span(name: str) -> AbstractContextManager[Span]:
    """One within the present one, for the block."""
    return _UNRECORDED if _recorder is None else _recorder.span(name)


def call_span(path: str, metadata: Callable[[], Metadata]) -> AbstractContextManager[Span]:
    """One of a call, for the block; `metadata` is asked only if it is recorded."""
    return _UNRECORDED if _recorder is None else _recorder.call_span(path, metadata())


def start(service_version: str) -> None:
    """Records from now on and sends to where the environment says (`OTEL_EXPORTER_OTLP_ENDPOINT` and its like).

    Raises:
        TracingUnavailable: the extra is not installed.
    """
    try:
        from doorward_server.otel import otlp_recorder  # noqa: PLC0415 - only who asks for traces needs it
    except ModuleNotFoundError as missing:
        raise TracingUnavailable(
            f"--traces: {missing.name} is not installed; install doorward-server[otel], or leave traces off"
        ) from None
    record_with(otlp_recorder(service_version))


def record_with(recorder: Recorder | None) -> None:
    """Records with this one from now on; None: no longer."""
    global _recorder  # noqa: PLW0603 - one for the process, as the log is
    _recorder = recorder


def stop() -> None:
    """Sends what is left, and records no longer."""
    if _recorder is not None:
        _recorder.stop()
        record_with(None)
