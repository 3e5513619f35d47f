"""Put the trained model where the package keeps its default model, with its figures and its card.

    python examples/c2v_mini/install_model.py RUNS c2v_engine/default_model

RUNS holds what ``make train compare eval`` wrote. ``results.json`` and ``log/`` are written beside
this program, the model and its card to the target; ``make figures`` fills in the card's figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10")
SYSTEMS = ("c2v-mini", "start", "untrained", "last-token", "start-last-token", "BM25")


def read_results(folder: Path) -> dict[str, Any]:
    """The figures of every system, from the evaluations' JSON files."""
    systems: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        these = {key: report[key] for key in ("queries", "passages")}
        if facts not in ({}, these):
            raise SystemExit(f"{path}: was measured on other data than the rest")
        facts = these
        for system in report["systems"]:
            name = "BM25" if system["name"] == "BM25" else path.stem
            kinds = {
                kind: {metric: round(scores[metric], 4) for metric in ("ndcg@10", "recall@10")}
                for kind, scores in system["kinds"].items()
            }
            systems[name] = {metric: round(system[metric], 4) for metric in METRICS}
            systems[name]["kinds"] = kinds
    missing = set(SYSTEMS) - set(systems)
    if missing:
        raise SystemExit(f"{folder}: no figures of {', '.join(sorted(missing))}")
    return {**facts, "systems": {name: systems[name] for name in SYSTEMS}}


def fingerprints(model: Path) -> dict[str, str]:
    """SHA-256 of the model's weights, by file."""
    return {
        path.relative_to(model).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(model.rglob("*.safetensors"))
    }


def main() -> int:
    """Install the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    runs, target = arguments.runs, arguments.target
    results = read_results(runs / "eval")
    model = runs / "c2v-mini" / "model"
    results["weights"] = fingerprints(model)
    if not results["weights"]:
        raise SystemExit(f"{model}: holds no weights")
    if target.exists() and not (target / "config.json").is_file():
        raise SystemExit(f"{target}: is no model, and is left alone")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(model, target)
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)
    shutil.copyfile(HERE / "card.md", target / "README.md")
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name in ("c2v-mini", "last-token"):
        log = HERE / "log" / name
        log.mkdir(parents=True, exist_ok=True)
        for file in ("metrics.jsonl", "metrics.png"):
            shutil.copyfile(runs / name / file, log / file)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
