"""The benchmarks under pytest: each agrees with the engine before it is timed and described."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_suite(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, *arguments, "--bench-quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_one_of_each_suite_is_checked_and_runs_once():
    chosen = "(passages and engine-float32) or (silu_and_mul-tiny and ours)"
    assert "2 passed" in run_suite("benchmarks", "-k", chosen, "--benchmark-disable")


def test_providers_of_a_workload_are_timed_and_described(tmp_path):
    path = tmp_path / "suite.json"
    suite = "benchmarks/test_encode_benchmark.py"
    run_suite(suite, "-k", "queries and float32", "--benchmark-json", str(path))
    found = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    assert [each["extra_info"]["provider"] for each in found] == [
        "engine float32",
        "padded float32",
    ]
    for each in found:
        entry = each["extra_info"]
        assert each["group"] == "default/queries"
        assert entry["cosine_min"] > 0.9999
        median = each["stats"]["median"]
        assert entry["tokens_per_s"] == pytest.approx(entry["decoder_tokens"] / median)
        assert entry["gflop_per_s"] == pytest.approx(entry["operations"] / median / 1e9)
        assert entry["of_gemm"] == pytest.approx(entry["gflop_per_s"] / entry["gemm_tflops"] / 1e3)
