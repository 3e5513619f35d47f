"""Has the engine choose its attention by what this machine has just measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from c2v_engine.model.attention import select
from c2v_engine.model.attention.measured import Measurement, read_table

__all__ = ["follow_result"]

ROOT = Path(__file__).resolve().parents[2]


def follow_result(path: Path) -> list[str]:
    """Has ``attention="auto"`` of this process follow a result of the kernel benchmark.

    As though ``tools/attention_table.py`` had written it into the table; nothing is written.

    Args:
        path: the result file.

    Returns:
        What it says, as lines for the record.

    Raises:
        OSError: it can not be read.
        ValueError: it is no result of a GPU.
    """
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from attention_table import measurements, merged
    finally:
        sys.path.pop(0)
    measured = measurements(json.loads(path.read_text(encoding="utf-8")), path.name)
    table = tuple(merged(list(read_table()), measured))
    setattr(select, "read_table", lambda: table)  # noqa: B010  (mypy takes no other function)
    return [line(entry) for entry in measured]


def line(entry: Measurement) -> str:
    shape = f"{entry.dtype} D={entry.head_dim} group={entry.group} {entry.mask}"
    return f"{shape}, up to {entry.mean_length_up_to}: {', '.join(entry.backends)}"
