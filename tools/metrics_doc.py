"""Writes the table in docs/metrics.md from the metrics' descriptions, or with --check says whether it is what they make.

python tools/metrics_doc.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from doorward_server import monitoring  # noqa: F401 - it describes metrics of its own
from doorward_server.metrics import DESCRIBED, Described

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- begin: tools/metrics_doc.py -->\n", "<!-- end -->\n"
HEAD = "| Name | Kind | Labels | Meaning |\n| --- | --- | --- | --- |\n"


def rendered(page: str) -> str:
    """The page, with the table anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + HEAD + "".join(map(_row, sorted(DESCRIBED, key=lambda metric: metric.name))) + END + after


def _row(metric: Described) -> str:
    name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{name}` | {metric.kind} | {labels} | {metric.meaning} |\n"


def main() -> int:
    """The exit status."""
    page = PAGE.read_text(encoding="utf-8")
    if sys.argv[1:] == ["--check"]:
        if page == rendered(page):
            return 0
        print("docs/metrics.md is not what the metrics make; run: python tools/metrics_doc.py", file=sys.stderr)
        return 1
    PAGE.write_text(rendered(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
