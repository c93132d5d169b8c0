"""Tables as `docs/performance.md` has them, and what was missed of the targets."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def undisturbed(rounds: Sequence[float]) -> float:
    """What a round takes when nothing else disturbs it: the mean of the lowest fifth, since all else can only add."""
    return statistics.fmean(sorted(rounds)[: max(1, len(rounds) // 5)])


@dataclass
class Table:
    """A title, the names of the columns, the rows; and a sentence for each target that was missed."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """One more row."""
        self.rows.append(cells)

    def require(self, is_met: bool, sentence: str) -> None:
        """Notes the sentence unless the target is met."""
        if not is_met:
            self.missed.append(sentence)

    def text(self) -> str:
        """The table in Markdown, its columns aligned."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        rule = "| " + " | ".join("-" * width for width in widths) + " |"
        formed = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        return "\n".join([f"**{self.title}**", "", formed[0], rule, *formed[1:]])
