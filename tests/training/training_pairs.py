"""Small data sets for training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOPICS = (
    "list", "dictionary", "file", "socket", "thread", "date", "string", "number",
    "archive", "image", "query", "password", "logger", "parser", "queue", "matrix",
)  # fmt: skip


def pairs(count: int = 32, negatives: bool = False) -> list[dict[str, str]]:
    """Questions about a topic, and the passage that answers each."""
    rows = []
    for index in range(count):
        topic, other = TOPICS[index % len(TOPICS)], TOPICS[(index + 5) % len(TOPICS)]
        row = {
            "query": f"how to open {topic} {index}",
            "positive": f"Open the {topic} numbered {index} and return it.",
        }
        if negatives:
            row["negative"] = f"Close the {other} numbered {index}."
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows, or lines as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_run(folder: Path, model: Path, **options: Any) -> Path:
    """Write a run's YAML file (JSON is YAML) beside its data."""
    if not (folder / "pairs.jsonl").exists():
        write_jsonl(folder / "pairs.jsonl", pairs())
    values = {
        "model": str(model),
        "output": "run",
        "data": [{"path": "pairs.jsonl", "query_prompt": "name:query"}],
        "batch_size": 8,
        "steps": 4,
        "dtype": "float32",
        "save_dtype": "float32",
        "device": "cpu",
        "logging_steps": 1,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(values | options), encoding="utf-8")
    return path
