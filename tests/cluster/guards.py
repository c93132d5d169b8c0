"""The rules of design section 7 that a test takes away in one process, to see its verdict go red.

Each is named after the flag of the model (`model/core.cpp`) or the sentence of `model/faults.md`, and changes the running
code in this process only, before the app is built. Used by `replica_process.py` alone: no setting and no endpoint can.
"""

from __future__ import annotations

from tests.cluster import guards_of_changes, guards_of_checks, guards_of_watchers

__all__ = ["GUARDS", "take_away"]

GUARDS = {**guards_of_checks.GUARDS, **guards_of_changes.GUARDS, **guards_of_watchers.GUARDS}


def take_away(name: str) -> None:
    """From now on this process does without the rule."""
    GUARDS[name]()
