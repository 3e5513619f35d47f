"""Planning and reading a large file takes no more memory than a small one."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from c2v_engine.jobs.corpus.source.inputs import find_inputs
from c2v_engine.jobs.corpus.source.plan import make_plan
from c2v_engine.jobs.corpus.source.reading import UnitReader

def run(name):
    plan = make_plan(find_inputs([name]), shard_rows=200_000)
    reader = UnitReader(plan)
    for unit in plan.units[-2:]:
        assert sum(len(block) for block in reader.read(unit)) == unit.rows
    return plan.rows

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

run(sys.argv[1])
before = peak()
print(run(sys.argv[2]), peak() - before)
"""


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_memory_does_not_grow_with_a_file_of_200_mb(tmp_path, format):
    line = b'{"text": "some words of a text that is not long", "id": 5}\n'
    if format == "csv":
        line = b'"some words of a text, that is ""not"" long",5\n'
    paths = [tmp_path / f"{name}.{format}" for name in ("small", "large")]
    counts = [50_000, 200_000_000 // len(line) // 1000 * 1000]
    for path, count in zip(paths, counts, strict=True):
        with path.open("wb") as file:
            file.write(b"text,id\n" if format == "csv" else b"")
            for _ in range(count // 1000):
                file.write(line * 1000)
    command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows, grown = map(int, told.split())
    assert rows == counts[1]
    assert grown < 50_000  # KiB: what the allocators keep, and not the file's 200,000
