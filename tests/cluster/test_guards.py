"""Every rule that can be taken away is taken away by some test: a guard that nobody misses proves nothing."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cluster.guards import GUARDS


def test_each_rule_is_missed_in_some_test() -> None:
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    taken = {
        name
        for text in texts
        for names in re.findall(r"without=\(([^)]*)\)", text)
        for name in re.findall(r'"(\w+)"', names)
    }
    assert taken == set(GUARDS)
