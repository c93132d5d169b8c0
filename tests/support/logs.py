"""Keeps what one test does to the logs of this process from the next.

A command that runs in the tests' process may set up its logs as a process of its own would: on a standard error that
is gone when the command ends. Nothing that logs in a later test could then do so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What a test does to this process's logs is undone."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
