"""The benchmarks under pytest: each agrees with the engine before it is timed and described."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Without the plugins that happen to be installed, which take longer to import than this runs.
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider")


def run_suites(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", *PLUGINS, "--bench-quick"]
    result = subprocess.run(
        [*command, "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_some_of_both_suites_are_checked_timed_and_described(tmp_path):
    path = tmp_path / "suite.json"
    chosen = "(queries and float32) or (silu_and_mul-tiny and ours)"
    assert "3 passed" in run_suites("-k", chosen, "--benchmark-json", str(path))
    found = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    *encoding, kernel = sorted(found, key=lambda each: each["name"])
    assert kernel["extra_info"]["provider"] == "ours"
    names = ["engine float32", "padded float32"]
    assert [each["extra_info"]["provider"] for each in encoding] == names
    for each in encoding:
        entry = each["extra_info"]
        assert each["group"] == "default/queries"
        assert entry["cosine_min"] > 0.9999
        median = each["stats"]["median"]
        assert entry["tokens_per_s"] == pytest.approx(entry["decoder_tokens"] / median)
        assert entry["gflop_per_s"] == pytest.approx(entry["operations"] / median / 1e9)
        assert entry["of_gemm"] == pytest.approx(entry["gflop_per_s"] / entry["gemm_tflops"] / 1e3)
