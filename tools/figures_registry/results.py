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
RUNS = {
    "h100": f"{H100}/engine.json",
    "h100-first": f"{H100_FIRST}/engine.json",
    "cpu": "cpu-engine.json",
}
"""Names that marks use for results of the engine benchmark."""


@functools.cache
def read_path(path: Path) -> Content:
    """A file of JSON; nobody changes what is given.

    Raises:
        LookupError: it is no JSON object.
    """
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        content: Content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LookupError(f"{name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise LookupError(f"{name} is not a JSON object")
    return content


def read(name: str) -> Content:
    """A file of ``benchmarks/results``.

    Args:
        name: below it, or one of ``RUNS``.
    """
    return read_path(RESULTS / RUNS.get(name, name))


def facts(content: Content) -> Content:
    """The part of a file that says what measured, on what: with its commit.

    Args:
        content: of the file; the facts stand in it, or in one of its parts.
    """
    parts = (part for part in content.values() if isinstance(part, dict))
    return next((part for part in (content, *parts) if "commit" in part), content)


def machine(content: Content) -> str:
    """What computed: the GPU, or the processor and its cores; empty if it is not said."""
    if content.get("gpu"):
        return str(content["gpu"])
    threads = content.get("threads")
    name = str(content.get("cpu") or "")
    return f"{name}, {threads} cores" if name and threads else name


def commit(content: Content) -> str:
    """The seven digits of the commit that was measured; empty where that was not recorded."""
    return str(content.get("commit") or "")[:7]


def setting(content: Content) -> str:
    """Machine and releases, as far as the file says them."""
    parts = [machine(content)]
    if content.get("gpu") and content.get("threads"):
        parts.append(f"{content['threads']} processors")
    if content.get("torch"):
        parts.append(f"torch {str(content['torch']).partition('+')[0]}")
    if content.get("triton") and content.get("gpu"):
        parts.append(f"Triton {content['triton']}")
    return ", ".join(filter(None, parts))
