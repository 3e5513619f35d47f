"""The server under load, for docs/serving.md.

Read are the files that ``benchmarks/bench_serving.py --json`` wrote, ``serving-*.json`` in
``benchmarks/results``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from figures_registry.formats import markdown_table, rounded
from figures_registry.registry import figure, table
from figures_registry.results import RESULTS, Content, commit, machine, read, read_path

HEAD = (
    "load", "texts/s", "of offline", "answers", "queries: p50, p99", "8 to 32 documents: p50, p99",
)  # fmt: skip


@table
def serving() -> str:
    """What all result files say."""
    return make_tables(RESULTS)


@figure
def serving_of_offline(load: str) -> str:
    """Tokens computed at that load, as a fraction of what ``encode`` does."""
    return f"{_offered(load)['ratio']:.0%}"


@figure
def serving_requests_per_s(load: str) -> str:
    """Requests that were answered or refused in a second at that load."""
    row = _offered(load)
    return rounded(sum(row["statuses"].values()) / row["seconds"])


def make_tables(folder: Path) -> str:
    """What all result files of a folder say, in Markdown.

    Args:
        folder: with them.
    """
    return "\n\n".join(
        make_table(read_path(path)) for path in sorted(folder.glob("serving-*.json"))
    )


def make_table(result: Content) -> str:
    """What one result file says.

    Args:
        result: its content.
    """
    return "\n\n".join([_setting(result), markdown_table(HEAD, _rows(result)), _beside(result)])


def _setting(result: Content) -> str:
    return (
        f"{machine(result)}, of which the client takes its share; model {result['model']} on "
        f"{result['device']}; {result['seconds']:g} seconds each; commit {commit(result)}."
    )


def _offered(load: str) -> Content:
    rows = read("serving-cpu.json")["offered"]
    [row] = [row for row in rows if row["load"] == float(load)]
    return dict(row)


def _rows(result: Content) -> Iterator[list[str]]:
    for row in result["saturated"]:
        yield _row(f"{result['connections']} requests at any time", row)
    for row in result["offered"]:
        offered = rounded(row["offered_texts_per_second"])
        yield _row(f"{row['load']:g}x of offline, at random moments: {offered} texts/s", row)


def _row(name: str, row: Content) -> list[str]:
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


def _beside(result: Content) -> str:
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
