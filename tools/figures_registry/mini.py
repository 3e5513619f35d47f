"""c2v-mini's retrieval, from ``results.json`` and ``provenance.json`` of ``examples/c2v_mini``."""

from __future__ import annotations

import json

from figures_registry.formats import markdown_table
from figures_registry.registry import figure, table
from figures_registry.results import MINI, Content, read_path

METRICS = {
    "ndcg@10": "nDCG@10",
    "recall@10": "Recall@10",
    "recall@100": "Recall@100",
    "mrr@10": "MRR@10",
}
SYSTEMS = {
    "c2v-mini": "c2v-mini",
    "start": "the same before training: two bags of words",
    "untrained": "the same with random weights",
    "last-token": "the same decoder, data and steps, pooled at EOS, no contextual token",
    "start-last-token": "that one before training",
    "BM25": "BM25",
}


@table
def mini_retrieval() -> str:
    """Every system by every metric."""
    systems = _results()["systems"]
    rows = (
        [words, *(f"{systems[name][metric]:.3f}" for metric in METRICS)]
        for name, words in SYSTEMS.items()
    )
    return markdown_table(("", *METRICS.values()), rows)


@table
def mini_kinds() -> str:
    """Recall@10 by kind of query."""
    systems = _results()["systems"]
    kinds = sorted(systems["BM25"]["kinds"])
    rows = (
        [name, *(f"{systems[name]['kinds'][kind]['recall@10']:.3f}" for kind in kinds)]
        for name in ("c2v-mini", "last-token", "BM25")
    )
    return markdown_table(("Recall@10", *kinds), rows)


@figure
def mini(system: str, metric: str = "recall@10") -> str:
    """A system's metric in percent."""
    return f"{_results()['systems'][system][metric]:.1%}"


@figure
def mini_points(system: str, other: str, metric: str = "recall@10") -> str:
    """By how many points of a metric one system is ahead of another."""
    systems = _results()["systems"]
    return f"{(systems[system][metric] - systems[other][metric]) * 100:.1f}"


@figure
def mini_size(what: str) -> str:
    """How many ``queries`` or ``passages`` the held-out set has."""
    return f"{_results()[what]:,}"


@figure
def mini_packages(group: str) -> str:
    """How many packages are of a group, ``training`` (the standard library too) or ``held-out``."""
    return str(len(_packages(group)))


@figure
def mini_pairs() -> str:
    """How many pairs were mined for training."""
    return f"{sum(sum(package['counts'].values()) for package in _packages('training')):,}"


@figure
def mini_training_minutes() -> str:
    """Minutes of c2v-mini's own steps, as its log says."""
    log = MINI / "log" / "c2v-mini" / "metrics.jsonl"
    entries = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    [seconds] = [entry["train_runtime"] for entry in entries if "train_runtime" in entry]
    return f"{seconds / 60:.0f}"


def _results() -> Content:
    return read_path(MINI / "results.json")


def _packages(group: str) -> list[Content]:
    packages = read_path(MINI / "provenance.json")["packages"]
    return [package for package in packages if package["group"] == group]
