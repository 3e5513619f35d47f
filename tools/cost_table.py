"""Computes from result files what a billion rows cost, as the table of docs/corpora.md.

    python tools/cost_table.py              # print the table
    python tools/cost_table.py --write      # put it into the page

Read are ``benchmarks/results``: of the engine benchmark (``cpu-engine.json`` and ``*/engine.json``)
the cases of ordinary texts, of the corpus benchmark (``corpus-*.json``) the job with the most rows.
Of equal cases on one machine the latest run counts. Each rate is that of a short run; a billion
rows at that rate are computed, and were not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "corpora.md"
BEGIN = "<!-- made by tools/cost_table.py -->"
END = "<!-- end of what it makes -->"
BILLION = 1_000_000_000

_CASE = re.compile(r"(?P<model>[^/]+)/(?P<texts>128|log-normal)(?:/(?:peers|deterministic))?")
_PROVIDER = re.compile(r"engine (?P<how>\w+(?: deterministic)?)")
_TEXTS = {"128": "one length", "log-normal": "log-normal lengths"}
_CORPORA = {"tiny": ("a tiny model", "short rows"), "default": ("c2v-mini", "docstrings")}


class Cost(NamedTuple):
    """A rate that was measured, and where.

    Attributes:
        on_gpu: whether a GPU computed.
        machine: what computed.
        what: call or job, and its model.
        texts: of what kind.
        tokens: decoder rows of a text, on average; None where that was not recorded.
        rate: rows a second.
        measured: rows or texts of the run.
        commit: that was measured; empty where that was not recorded.
    """

    on_gpu: bool
    machine: str
    what: str
    texts: str
    tokens: float | None
    rate: float
    measured: int
    commit: str

    @property
    def hours(self) -> float:
        """Hours of the machine for a billion rows at that rate."""
        return BILLION / self.rate / 3600


def engine_costs(content: dict[str, Any]) -> Iterator[Cost]:
    """What a result of the engine benchmark says of ordinary texts.

    Args:
        content: of the file.
    """
    for entry in content["results"]:
        case = _CASE.fullmatch(entry["case"])
        provider = _PROVIDER.fullmatch(entry["provider"])
        if not case or not provider or entry["status"] != "ok":
            continue
        yield Cost(
            on_gpu=bool(content["gpu"]),
            machine=_machine(content),
            what=f"`encode`, {case['model']}, {provider['how']}",
            texts=_TEXTS[case["texts"]],
            tokens=entry["decoder_tokens"] / entry["texts"],
            rate=entry["texts_per_s"],
            measured=entry["texts"],
            commit=content["commit"],
        )


def corpus_costs(content: dict[str, Any]) -> Iterator[Cost]:
    """What a result of the corpus benchmark says of the job with the most rows.

    Args:
        content: of the file.
    """
    if not content["scaling"]:
        return
    most = max(content["scaling"], key=lambda entry: int(entry["rows"]))
    model, texts = _CORPORA[content["model"]]
    yield Cost(
        on_gpu=content["device"] != "cpu",
        machine=_machine(content),
        what=f"the job, {model}",
        texts=texts,
        tokens=most["tokens"] / most["rows"] if most.get("tokens") else None,
        rate=most["rows"] / most["seconds"],
        measured=most["rows"],
        commit=content["commit"] or "",
    )


def all_costs(folder: Path) -> list[Cost]:
    """What all result files say, GPUs first, the dearest first on each machine.

    Args:
        folder: of the results.
    """
    contents = [_read(path) for path in (*folder.glob("*/engine.json"), folder / "cpu-engine.json")]
    contents.sort(key=lambda content: str(content["started"]))
    costs = [cost for content in contents for cost in engine_costs(content)]
    for path in sorted(folder.glob("corpus-*.json")):
        costs += corpus_costs(_read(path))
    latest = {(cost.machine, cost.what, cost.texts): cost for cost in costs}
    return sorted(latest.values(), key=lambda cost: (not cost.on_gpu, cost.machine, cost.rate))


def make_table(costs: list[Cost]) -> str:
    """The table, in Markdown.

    Args:
        costs: its rows.
    """
    lines = [
        "| what ran | on | texts | tokens a text | rows/s, measured | over | at commit "
        "| hours per billion rows, computed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        tokens = "" if cost.tokens is None else f"{cost.tokens:.0f}"
        unit = "GPU" if cost.on_gpu else "machine"
        lines.append(
            f"| {cost.what} | {cost.machine} | {cost.texts} | {tokens} | {rounded(cost.rate)} "
            f"| {cost.measured:,} | {cost.commit[:7]} | {rounded(cost.hours)} {unit} hours |"
        )
    return "\n".join(lines) + "\n"


def rounded(value: float) -> str:
    """A figure with three digits that say something."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    scale = 10 ** max(0, math.floor(math.log10(value)) - 2)
    return f"{round(value / scale) * scale:,}" if scale > 1 else f"{value:,.{digits}f}"


def put_into(page: str, table: str, begin_mark: str = BEGIN) -> str:
    """Put the table into the page.

    Args:
        page: the text, with the two marks.
        table: in Markdown.
        begin_mark: the first of them.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = page.partition(f"{begin_mark}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {END if begin else begin_mark}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="put it into docs/corpora.md")
    table = make_table(all_costs(RESULTS))
    if parser.parse_args().write:
        PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    else:
        sys.stdout.write(table)


def _machine(content: dict[str, Any]) -> str:
    if content.get("gpu"):
        return str(content["gpu"])
    threads = content.get("threads")
    return f"{content['cpu']}, {threads} cores" if threads else str(content["cpu"])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main()
