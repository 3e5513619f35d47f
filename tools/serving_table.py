"""Makes of result files the table of docs/serving.md: the server under load.

    python tools/serving_table.py              # print it
    python tools/serving_table.py --write      # put it into the page

Read are the files that ``benchmarks/bench_serving.py --json`` wrote, ``serving-*.json`` in
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cost_table import RESULTS, ROOT, put_into, rounded

PAGE = ROOT / "docs" / "serving.md"
BEGIN = "<!-- made by tools/serving_table.py -->"
HEADER = (
    "| load | texts/s | of offline | answers | queries: p50, p99 | 8 to 32 documents: p50, p99 |\n"
    "|---|---|---|---|---|---|\n"
)


def make_tables(folder: Path) -> str:
    """What all result files of a folder say, in Markdown.

    Args:
        folder: with them.
    """
    paths = sorted(folder.glob("serving-*.json"))
    return "\n".join(make_table(json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def make_table(result: dict[str, Any]) -> str:
    """What one result file says.

    Args:
        result: its content.
    """
    rows = "".join(f"| {' | '.join(cells)} |\n" for cells in _rows(result))
    return f"{_setting(result)}\n\n{HEADER}{rows}\n{_beside(result)}\n"


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="put it into docs/serving.md")
    table = make_tables(RESULTS)
    if parser.parse_args().write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(put_into(page, table, BEGIN), encoding="utf-8")
    else:
        sys.stdout.write(table)


def _setting(result: dict[str, Any]) -> str:
    return (
        f"{result['cpu']}, {result['threads']} cores, of which the client takes its share; model "
        f"{result['model']} on {result['device']}; {result['seconds']:g} seconds each; commit "
        f"{result['commit'][:7]}."
    )


def _rows(result: dict[str, Any]) -> Iterator[list[str]]:
    for row in result["saturated"]:
        yield _row(f"{result['connections']} requests at any time", row)
    for row in result["offered"]:
        offered = rounded(row["offered_texts_per_second"])
        yield _row(f"{row['load']:g}x of offline, at random moments: {offered} texts/s", row)


def _row(name: str, row: dict[str, Any]) -> list[str]:
    statuses = ", ".join(f"{count:,} x {status}" for status, count in row["statuses"].items())
    return [
        name,
        rounded(row["texts_per_second"]),
        f"{row['ratio']:.0%}",
        statuses,
        _latencies(row["query_ms"]),
        _latencies(row["document_ms"]),
    ]


def _latencies(found: dict[str, float] | None) -> str:
    return f"{rounded(found['p50'])}, {rounded(found['p99'])} ms" if found else ""


def _beside(result: dict[str, Any]) -> str:
    alone, memory = result["alone"], result["memory"]
    parts = [f"One query at a time: p50 {rounded(alone['latency_ms']['p50'])} ms"]
    if alone["overhead_ms"]:
        parts[0] += (
            f", {rounded(alone['overhead_ms']['p50'])} ms of it outside tokenise and compute"
        )
    parts.append(
        f"Memory of the server: {rounded(memory['first_mib'])} MiB once it had been full, "
        f"{rounded(memory['last_mib'])} MiB at the end"
    )
    return ". ".join(parts) + "."


if __name__ == "__main__":
    main()
