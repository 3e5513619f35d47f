"""The tests that a GPU is for, one process a file: what ends one file leaves the others."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from processes import ROOT, Ended, end_all, run_command

from c2v_engine.bench.record import Record

__all__ = ["GPU_TEST_FOLDERS", "gpu_test_files", "run_test_files"]

GPU_TEST_FOLDERS = ("tests/gpu", "tests/kernels", "tests/csrc")
# They compile for GPUs that are not here, or ask nothing of one, take from ten seconds to minutes,
# and are part of the tests of any machine.
LEFT_OUT = (
    "test_aot",
    "test_build_settings",
    "test_compilations",
    "test_compile_and_export",
    "test_cuda_compile",
    "test_dispatch",
    "test_extension",
    "test_linear_int8",
    "test_namespace",
    "test_qk_norm_rope_rounding",
    "test_rows",
)
# What has failed on a GPU, and what compiles the most kernels, 50 to 190 of them: begun last, they
# would be cut.
FIRST = (
    "test_cuda_parity.py",
    "test_packed_attention_triton.py",
    "test_cuda_speed.py",
    "test_quantize_rows.py",
    "test_silu_and_mul_fp8.py",
    "test_silu_and_mul.py",
    "test_qk_norm_rope.py",
    "test_cuda_engine.py",
    "test_linear_fp8.py",
    "test_add_layer_norm.py",
    "test_add_rms_norm.py",
    "test_dual_token_pool_refusals.py",
    "test_segment_pool.py",
    "test_bias_act.py",
    "test_packed_attention_last_rows_triton.py",
)
# Files that would take minutes in one process.
SHARDS = {"test_cuda_parity.py": 3, "test_cuda_speed.py": 3, "test_packed_attention_triton.py": 2}
MOST_JOBS = 14
# With less time than all tests take, some cases of each test function run.
SECONDS_FOR_ALL = 140.0
MOST_CASES = 24


def gpu_test_files() -> list[Path]:
    """The files in the order in which they begin: those to know first, then by folder."""
    found = [path for name in GPU_TEST_FOLDERS for path in sorted(ROOT.glob(f"{name}/test_*.py"))]
    order = {name: number for number, name in enumerate(FIRST)}
    found.sort(key=lambda path: order.get(path.name, len(FIRST)))
    return [path for path in found if not path.name.startswith(LEFT_OUT)]


def run_test_files(
    files: Sequence[Path], record: Record, seconds: float, jobs: int | None = None
) -> dict[str, Any]:
    """Runs the files, some at a time, and records each as it ends.

    Args:
        files: to run.
        record: gets an entry for each file under ``files``, and the totals.
        seconds: for all.
        jobs: files at a time; by default as many as the processors bear.

    Returns:
        The totals: passed, failed, skipped, and the problems as lines.
    """
    processors = os.cpu_count() or 1
    jobs = jobs or max(1, min(MOST_JOBS, processors - 2))
    deadline = time.monotonic() + seconds
    extra = {
        "OMP_NUM_THREADS": str(max(1, processors // jobs)),
        # Every file is a pytest of its own: whatever else is installed would be loaded for each.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    most = MOST_CASES if seconds < SECONDS_FOR_ALL else None
    units = [
        (path, f"{number + 1}/{count}")
        for path in files
        for count in (SHARDS.get(path.name, 1),)
        for number in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(run_file, path, shard, most, Path(folder), deadline, extra)
            for path, shard in units
        ]
        try:
            for future in as_completed(futures):
                record.extend("files", [future.result()])
        except BaseException:  # a signal: the pool would wait for what still runs
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    totals = add_up(record.content.get("files", []))
    for key, value in totals.items():
        record.put(key, value)
    return totals


def run_file(
    path: Path,
    shard: str,
    most: int | None,
    folder: Path,
    deadline: float,
    extra: dict[str, str],
) -> dict[str, Any]:
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    name += "" if shard == "1/1" else f" {shard}"
    left = deadline - time.monotonic()
    if left <= 0:
        return {"file": name, "note": "not begun, the time was up", "complete": False}
    stem = f"{path.stem}-{shard.replace('/', '-')}"
    outcomes = folder / f"{stem}.jsonl"
    python_path = os.pathsep.join(
        filter(None, (str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")))
    )
    command = [sys.executable, "-m", "pytest", str(path), "-q", "--tb=short", "--color=no"]
    command += ["-p", "no:cacheprovider", "-p", "outcomes_plugin", "--outcomes", str(outcomes)]
    command += ["--shard", shard, *([] if most is None else ["--most-cases", str(most)])]
    log = folder / f"{stem}.log"
    ended = run_command(command, left, log, {**extra, "PYTHONPATH": python_path})
    lines = outcomes.read_text(encoding="utf-8").splitlines() if outcomes.is_file() else []
    return {"file": name, **judge([json.loads(line) for line in lines if line[-1:] == "}"], ended)}


def judge(outcomes: Sequence[dict[str, Any]], ended: Ended) -> dict[str, Any]:
    """What a file's outcomes and the end of its process come to."""
    left_out = sum(outcome["count"] for outcome in outcomes if outcome["outcome"] == "left out")
    outcomes = [outcome for outcome in outcomes if outcome["outcome"] != "left out"]
    counts = Counter(outcome["outcome"] for outcome in outcomes)
    reported = {outcome["test"] for outcome in outcomes if outcome["outcome"] != "started"}
    started = [outcome["test"] for outcome in outcomes if outcome["outcome"] == "started"]
    # pytest's own statuses: all passed, some failed, no test in the file.
    complete = ended.status in (0, 1, 5)
    entry: dict[str, Any] = {
        "complete": complete,
        "note": ended.note,
        "seconds": ended.seconds,
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "left_out": left_out,
        "skips": Counter(o["message"] for o in outcomes if o["outcome"] == "skipped"),
        "failures": [o for o in outcomes if o["outcome"] == "failed"],
        "slowest": sorted(
            (o for o in outcomes if "seconds" in o), key=lambda o: o["seconds"], reverse=True
        )[:3],
    }
    if not complete:
        entry["running"] = [test for test in started if test not in reported][-1:]
        entry["output"] = ended.output[-2000:]
    elif ended.status == 1 and not entry["failures"]:
        entry["output"] = ended.output[-2000:]
    return entry


def add_up(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The totals of all files; a file that did not come to its end is a problem."""
    problems = []
    for entry in entries:
        if not entry["complete"]:
            at = "".join(f", in {test}" for test in entry.get("running", []))
            problems.append(f"{entry['file']}: {entry['note']}{at}")
        elif entry["failed"] or entry["note"] == "ended with status 1":
            problems.append(f"{entry['file']}: {entry['failed']} failed")
    totals = {
        name: sum(entry.get(name, 0) for entry in entries)
        for name in ("passed", "failed", "skipped", "left_out")
    }
    return {**totals, "problems": problems}
