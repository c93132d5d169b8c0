"""Logs as programs read them: one line an event, whatever is in it, and no secret in any."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from doorward.core.secret import SecretKind, generate, new_id

PROGRAM = """
import logging, sys
import structlog
from doorward_server import telemetry

telemetry.configure("info", sys.argv[1])
log = structlog.get_logger()
secret = sys.stdin.read().strip()
"""


def logged(style: str, program: str, secret: str = "") -> str:
    """What a process writes to standard error that runs `program` behind the set-up."""
    command = [sys.executable, "-c", PROGRAM + program, style]
    return subprocess.run(command, input=secret, capture_output=True, text=True, check=True, timeout=60).stderr


def events(program: str, secret: str = "") -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged("json", program, secret).splitlines()]


def test_an_event_is_one_line_of_json_with_its_fields() -> None:
    (event,) = events('log.info("replica_registered", replica_id="a", revision=7)')

    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "replica_registered", "level": "info", "replica_id": "a", "revision": 7}


def test_whatever_is_in_a_field_an_event_stays_one_line() -> None:
    program = r"""
class Strange:
    def __str__(self): return "strange\nthing"
log.warning("odd", text="two\nlines\r\u2028\x00\ud800", raw=b"\xff\n", thing=Strange(), many=[Strange(), {1: "a\nb"}])
try:
    raise ValueError("first\nsecond")
except ValueError:
    log.exception("failed")
logging.getLogger("asyncio").warning("a library's\nwords of %s", "more")
"""
    odd, failed, library = events(program)

    assert (odd["text"][:9], odd["thing"]) == ("two\nlines", "strange\nthing")
    assert failed["level"] == "error"
    assert "ValueError: first\nsecond" in failed["exception"]
    assert (library["event"], library["logger"]) == ("a library's\nwords of more", "asyncio")


def test_what_is_below_the_level_is_not_written() -> None:
    assert [event["event"] for event in events('log.debug("small"); log.info("large")')] == ["large"]


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("kind", SecretKind)
def test_a_secret_is_masked_in_every_field_of_every_event(style: str, kind: SecretKind) -> None:
    secret = generate(kind, new_id()).reveal()
    program = """
class Careless:
    def __repr__(self): return f"Careless({secret})"
half = secret[: len(secret) // 2]
log.info(f"event {secret}", text=secret, inside=f"x{secret}y", half=half, raw=secret.encode(), many=[{"a": (secret,)}])
log.info("header", metadata="authorization: Bearer " + secret[5:], lower="bearer " + secret[5:], thing=Careless())
logging.getLogger("grpc").error("a library says %s", secret)
try:
    raise RuntimeError(f"it was {secret}")
except RuntimeError:
    log.exception("failed")
"""
    text = logged(style, program, secret)

    assert text.count("***") >= 10
    assert secret not in text
    assert secret[10:30] not in text
    assert secret[-20:] not in text


def test_libraries_stay_quiet_at_debug_level() -> None:
    """They describe whole messages there."""
    program = 'telemetry.configure("debug", "json"); logging.getLogger("asyncio").debug("everything")'
    assert events(program) == []
