"""Tests of what this machine may lack: left out where it does, and said so in the report.

@pytest.mark.needs_node(*packages)      # runs where `node` is, and npm can be had these packages from
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Final

import pytest

ASKING_S: Final = 20.0
LEFT_OUT: Final = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark."""
    config.addinivalue_line("markers", "needs_node(*packages): only where node is and npm finds these packages")
    config.stash[LEFT_OUT] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what cannot run here. Asks only for what was collected."""
    for item in items:
        for mark in item.iter_markers("needs_node"):
            lacking = lacks(tuple(mark.args))
            if lacking:
                config.stash[LEFT_OUT][item.nodeid] = lacking
    left_out = [item for item in items if item.nodeid in config.stash[LEFT_OUT]]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Says what was left out, and why."""
    return [f"left out: {name}: {lacking}" for name, lacking in config.stash[LEFT_OUT].items()]


@cache
def lacks(packages: tuple[str, ...]) -> str:
    """What is missing for a test that needs node with these packages; empty if nothing is."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    for package in packages:
        command = ["npm", "view", package, "version"]
        try:
            found = subprocess.run(command, capture_output=True, timeout=ASKING_S, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            found = False
        if not found:
            return f"npm cannot be had {package} from"
    return ""
