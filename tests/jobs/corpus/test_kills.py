"""A job that is killed, at any moment and however often, ends as one that nobody disturbed.

Bit for bit: the engine is deterministic, and a shard's bytes are a function of its rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Recipe

KILLS = 55
KILLS_AT_CALLS = 25


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_and_at_every_kind_of_call_change_nothing(checkpoint, tmp_path):
    source = tmp_path / "corpus.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for row in range(200):
            text = None if row % 41 == 7 else f"row {row} " + "of a corpus " * (row % 5)
            file.write(json.dumps({"id": f"r{row}", "text": text, "n": row}) + "\n")
    work = tmp_path / "work"
    work.mkdir()
    script = Path(__file__).with_name("killed_jobs.py")
    command = [sys.executable, str(script), str(checkpoint(Recipe())), str(source), str(work)]
    found = subprocess.run(
        [*command, str(KILLS), str(KILLS_AT_CALLS), "20261126"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    counts = json.loads(found.stdout.splitlines()[-1])
    assert counts["random"] == KILLS
    # A start counts its calls anew; the last ones of a longer one may never come.
    assert counts["at calls"] >= KILLS_AT_CALLS * 3 // 4, counts
