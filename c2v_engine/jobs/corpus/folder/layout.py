"""The names of a job's files: what stands in its folder, and what of it is ours to remove."""

from __future__ import annotations

import re

JOB_NAME = "job.json"
PLAN_NAME = "plan.json.zst"
MANIFEST_NAME = "manifest.jsonl"
REJECTED_NAME = "rejected.jsonl"
TIMELINE_NAME = "timeline.jsonl"
REPORT_NAMES = ("report.json", "report.html")
LOCK_NAME = ".lock"
OWN_NAMES = (
    JOB_NAME,
    PLAN_NAME,
    MANIFEST_NAME,
    REJECTED_NAME,
    TIMELINE_NAME,
    *REPORT_NAMES,
    LOCK_NAME,
)

_SHARD = re.compile(r"part-(\d{6,})\.(?:parquet|arrow|npy|safetensors|ids\.parquet)")
# As AtomicFile and shards.py name what is not whole yet.
_TEMPORARY = re.compile(r"\.(.+)\.\d+\.[0-9a-f]{8}\.tmp")


def shard_names(unit: int, format: str) -> tuple[str, ...]:
    """The names of a shard's files: the embeddings', and the ids' where those stand apart."""
    name = f"part-{unit:06d}"
    if format in ("npy", "safetensors"):
        return f"{name}.{format}", f"{name}.ids.parquet"
    return (f"{name}.{format}",)


def shard_number(name: str) -> int | None:
    """The unit that a shard's file is of; None for any other name."""
    found = _SHARD.fullmatch(name)
    return None if found is None else int(found[1])


def is_temporary(name: str) -> bool:
    """Whether a name is that of a file of ours that was never completed."""
    found = _TEMPORARY.fullmatch(name)
    if found is None:
        return False
    names = (found[1], found[1].rpartition(".")[0])  # with a host's name after it, or without
    return any(name in OWN_NAMES or shard_number(name) is not None for name in names)


def is_own(name: str) -> bool:
    """Whether a name is one that jobs give."""
    return name in OWN_NAMES or shard_number(name) is not None or is_temporary(name)
