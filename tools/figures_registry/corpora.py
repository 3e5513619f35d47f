"""What rows cost, and what a job adds to ``encode``, for docs/corpora.md.

Of costs, read are ``benchmarks/results``: of the engine benchmark (``cpu-engine.json`` and
``*/engine.json``) the cases of ordinary texts, of the corpus benchmark (``corpus-*.json``) the job
with the most rows. Of equal cases on one machine the latest run counts. Each rate is that of a
short run; a billion rows at that rate are computed, and were not measured.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from figures_registry.formats import markdown_table, rounded
from figures_registry.registry import figure, table
from figures_registry.results import RESULTS, Content, commit, machine, read, read_path

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


def engine_costs(content: Content) -> Iterator[Cost]:
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
            machine=machine(content),
            what=f"`encode`, {case['model']}, {provider['how']}",
            texts=_TEXTS[case["texts"]],
            tokens=entry["decoder_tokens"] / entry["texts"],
            rate=entry["texts_per_s"],
            measured=entry["texts"],
            commit=commit(content),
        )


def corpus_costs(content: Content) -> Iterator[Cost]:
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
        machine=machine(content),
        what=f"the job, {model}",
        texts=texts,
        tokens=most["tokens"] / most["rows"] if most.get("tokens") else None,
        rate=most["rows"] / most["seconds"],
        measured=most["rows"],
        commit=commit(content),
    )


def all_costs(folder: Path) -> list[Cost]:
    """What all result files say, GPUs first, the dearest first on each machine.

    Args:
        folder: of the results.
    """
    contents = [
        read_path(path) for path in (*folder.glob("*/engine.json"), folder / "cpu-engine.json")
    ]
    contents.sort(key=lambda content: str(content["started"]))
    costs = [cost for content in contents for cost in engine_costs(content)]
    for path in sorted(folder.glob("corpus-*.json")):
        costs += corpus_costs(read_path(path))
    latest = {(cost.machine, cost.what, cost.texts): cost for cost in costs}
    return sorted(latest.values(), key=lambda cost: (not cost.on_gpu, cost.machine, cost.rate))


@table
def costs() -> str:
    """What a billion rows cost, of all results."""
    head = (
        "what ran", "on", "texts", "tokens a text", "rows/s, measured", "over", "at commit",
        "hours per billion rows, computed",
    )  # fmt: skip
    return markdown_table(head, map(_cells, all_costs(RESULTS)))


def _cells(cost: Cost) -> list[str]:
    unit = "GPU" if cost.on_gpu else "machine"
    return [
        cost.what,
        cost.machine,
        cost.texts,
        "" if cost.tokens is None else f"{cost.tokens:.0f}",
        rounded(cost.rate),
        f"{cost.measured:,}",
        cost.commit,
        f"{rounded(cost.hours)} {unit} hours",
    ]


@figure
def job_ratios(name: str) -> str:
    """A job's speed as fractions of ``encode``'s, one for each repetition."""
    *rest, last = (f"{entry['ratio']:.1%}" for entry in read(name)["speed"])
    return f"{', '.join(rest)} and {last}"


@figure
def compared_rows(name: str) -> str:
    """Rows of the job and of ``encode`` that it is compared with."""
    return f"{read(name)['speed'][0]['job']['rows']:,}"


@figure
def encode_row_us(name: str) -> str:
    """Microseconds of ``encode`` for a row, the median of the repetitions."""
    taken = [entry["encode"]["seconds"] / entry["encode"]["rows"] for entry in read(name)["speed"]]
    return f"{statistics.median(taken) * 1e6:.0f}"


@figure
def job_extra_s(name: str) -> str:
    """Seconds that a job takes beyond ``encode``, the median of the repetitions."""
    extra = [entry["job"]["seconds"] - entry["encode"]["seconds"] for entry in read(name)["speed"]]
    return rounded(statistics.median(extra))


@figure
def job_peak_mib(name: str, rows: str) -> str:
    """Peak memory of a job of so many rows."""
    return rounded(_job(name, rows)["peak_mib"])


@figure
def job_seconds(name: str, rows: str) -> str:
    """Seconds of a job of so many rows."""
    return f"{_job(name, rows)['seconds']:.0f}"


def _job(name: str, rows: str) -> Content:
    [entry] = [entry for entry in read(name)["scaling"] if entry["rows"] == int(rows)]
    return dict(entry)
