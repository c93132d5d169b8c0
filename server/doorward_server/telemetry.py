"""Logs behind one redactor (design section 4: no secret in any log).

`configure` is called once by the process's entry point. The type of a secret keeps it out of logs; the redactor here is
only the second wall: whatever looks like one is masked, in every field of every event, tracebacks included.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["configure", "redact"]

# Looser than the form of a secret, on purpose: a truncated or mistyped one is masked too.
_SECRET = re.compile(r"(dw(?:st|op)_[0-9A-Za-z]{4})[0-9A-Za-z_]{4,}|(?i:\b(bearer\s+))[^\s,;\"'<]{4,}")


def redact(text: str) -> str:
    """`text` with everything that looks like a secret or a Bearer credential masked."""
    return _SECRET.sub(lambda match: f"{match.group(1) or match.group(2)}***", text)


def _redact_value(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes):
        return redact(value.decode("latin-1"))
    if isinstance(value, dict):
        return {key: _redact_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact_value(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def _redactor(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _redact_value(value) for key, value in event.items()}


class _LibraryRecords(logging.Handler):
    """Sends what libraries log through the same chain, so that the redactor sees it too."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        structlog.get_logger().log(record.levelno, record.getMessage(), **fields)


def configure(level: Literal["debug", "info", "warning", "error"], style: Literal["text", "json"]) -> None:
    """Events of `level` and above go to standard error, one a line, as text for people or JSON for programs."""
    number = getattr(logging, level.upper())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redactor,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # A line and its end in one write: workers share standard error, and print makes two.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryRecords()]
    # Libraries at debug level describe whole messages; they are quieter than we are.
    root.setLevel(max(number, logging.INFO))
