"""Result files, and what all of them say of themselves."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MINI = ROOT / "examples" / "c2v_mini"

Content = dict[str, Any]

H100 = "h100-2026-11-26-f38528f"
H100_FIRST = "h100-2026-11-26-3f0887c"
RUNS = {"h100": f"{H100}/engine.json", "h100-first": f"{H100_FIRST}/engine.json", "cpu": "cpu-engine.json"}
"""Names that marks use for results of the engine benchmark."""


@functools.cache
def read_path(path: Path) -> Content:
    """A file of JSON; nobody changes what is given."""
    content: Content = json.loads(path.read_text(encoding="utf-8"))
    return content


def read(name: str) -> Content:
    """A file of ``benchmarks/results``.

    Args:
        name: below it, or one of ``RUNS``.
    """
    return read_path(RESULTS / RUNS.get(name, name))


def machine(content: Content) -> str:
    """What computed: the GPU, or the processor and its cores."""
    if content.get("gpu"):
        return str(content["gpu"])
    threads = content.get("threads")
    return f"{content['cpu']}, {threads} cores" if threads else str(content["cpu"])


def commit(content: Content) -> str:
    """The seven digits of the commit that was measured; empty where that was not recorded."""
    return str(content.get("commit") or "")[:7]


def setting(content: Content) -> str:
    """Machine, releases and commit, as far as the file says them, for the text above a table."""
    parts = [machine(content)]
    if content.get("gpu") and content.get("threads"):
        parts.append(f"{content['threads']} processors")
    parts += [
        f"{name} {str(content[key]).partition('+')[0]}"
        for name, key in (("torch", "torch"), ("Triton", "triton"))
        if content.get(key) and (key == "torch" or content.get("gpu"))
    ]
    return ", ".join([*parts, f"commit {commit(content)}"])
