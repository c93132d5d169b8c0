"""How a command ends that cannot do its work: one sentence on standard error, exit code 2, never a traceback.

Wrong input of one option is a `typer.BadParameter` in the same way. Called by every module of the command line. Design
section 9.
"""

from __future__ import annotations

import contextlib
from typing import Final, NoReturn

import typer

from doorward_server import telemetry

__all__ = ["FAILED", "fail", "quoted"]

FAILED: Final = 2  # 1 is `check`'s "denied", and nothing else's


def fail(problem: str) -> NoReturn:
    """Says what is wrong and what would be right, and ends the command.

    Raises:
        typer.Exit: always, with the exit code 2.
    """
    # Whoever closed standard error reads the exit code alone.
    with contextlib.suppress(OSError):
        typer.echo(f"Error: {telemetry.redact(problem)}", err=True)
    raise typer.Exit(FAILED)


def quoted(text: str) -> str:
    """What somebody gave, for a sentence: shortened, on one line, and nothing in it that looks like a secret."""
    shown = telemetry.redact(text)
    return repr(shown if len(shown) <= 80 else f"{shown[:80]}…")
