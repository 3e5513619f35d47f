"""Numbers and tables as the pages write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def rounded(value: float) -> str:
    """A figure with three digits that say something."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    scale = 10 ** max(0, math.floor(math.log10(value)) - 2)
    return f"{round(value / scale) * scale:,}" if scale > 1 else f"{value:,.{digits}f}"


def joined(values: Iterable[float]) -> str:
    """Figures of three digits, ``and`` before the last."""
    *rest, last = map(rounded, values)
    return f"{', '.join(rest)} and {last}" if rest else last


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        head: a cell for each column.
        rows: likewise.
    """
    rule = "|" + "---|" * len(head)
    return "\n".join([_line(head), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"
