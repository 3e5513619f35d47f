"""How commands print facts."""

from __future__ import annotations

from typing import Any


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def print_table(rows: list[list[str]], text_columns: int) -> None:
    """Print rows in aligned columns: the first ones to the left, those of figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:<{width}}" if number < text_columns else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def size_text(size: int) -> str:
    """A number of bytes as a person reads it."""
    if size < 10_000:
        return f"{size:,} bytes"
    if size < 1e7:
        return f"{size / 1e3:,.0f} kB"
    return f"{size / 1e6:,.0f} MB" if size < 1e10 else f"{size / 1e9:,.1f} GB"
