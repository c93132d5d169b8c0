"""Every event that the server logs is in docs/logs.md, with its levels and fields, and no other."""

from __future__ import annotations

import ast
import re

from tests.repository.sources import ROOT, calls_in, modules_in, tree_of

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
ROW = re.compile(r"^\| `(\w+)` \| ([a-z, ]+) \| (.*?) \| \S.* \|$", re.MULTILINE)


def test_every_event_is_documented_and_nothing_else() -> None:
    logged: dict[str, tuple[set[str], set[str]]] = {}
    for path in modules_in("server/doorward_server"):
        for name, call in calls_in(tree_of(path)):
            logger, _, method = name.rpartition(".")
            if logger not in {"log", "_log"} or method not in LEVELS:
                continue
            (event,) = call.args
            assert isinstance(event, ast.Constant), f"{path}: an event has a constant name"
            levels, fields = logged.setdefault(str(event.value), (set(), set()))
            levels.add(LEVELS[method])
            fields |= {"exception" if one.arg == "exc_info" else str(one.arg) for one in call.keywords}
            fields |= {"exception"} if method == "exception" else set()

    events = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8").partition("## Events")[2]
    told = {
        event: (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields)))
        for event, levels, fields in ROW.findall(events)
    }

    assert told == logged
