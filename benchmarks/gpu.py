"""What a GPU says of this engine, in one run: build, tests, kernel bandwidth, throughput.

Usage: python benchmarks/gpu.py [--results DIR]

Writes ``gpu-<name>.json`` as it goes, so that an interrupted run keeps what it had measured. Needs
torch with CUDA, a CUDA toolkit of its major version, pytest; fetches nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
TESTS = ("tests/gpu", "tests/kernels", "tests/csrc")
REPEATS = 7


def step(name: str, *command: str) -> dict[str, Any]:
    """Run one command, show its output, and say how it ended."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    tail = (result.stdout + result.stderr).strip().splitlines()[-25:]
    print("\n".join(tail), flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return {"exit": result.returncode, "seconds": seconds, "last": tail[-1:] or [""]}


def event_times(run: Any, repeats: int = REPEATS) -> list[float]:
    """Device milliseconds of several runs, after two that warm up."""
    import torch

    times = []
    for index in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if index >= 2:
            times.append(start.elapsed_time(end))
    return times


def ceilings() -> dict[str, float]:
    """The machine's measured limits: bfloat16 product in TFLOP/s, copy in GB/s."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = statistics.median(event_times(lambda: a @ b))
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = statistics.median(event_times(lambda: target.copy_(source)))
    return {
        "gemm_bfloat16_tflops": 2 * 8192**3 / product / 1e9,
        "copy_gb_per_s": 2 * source.nbytes / copy / 1e6,
    }


def pooling(copy_gb_per_s: float) -> dict[str, Any]:
    """The pooling op at the width of a 7B decoder, against its PyTorch form."""
    import torch

    from c2v_engine.kernels.dual_token_pool import dual_token_pool, dual_token_pool_reference

    texts, width = 8192, 4096
    hidden = torch.randn(4 * texts, width, device="cuda", dtype=torch.bfloat16)
    rows = torch.randperm(len(hidden), device="cuda")[: 2 * texts].int()
    offsets = torch.arange(2 * texts + 1, device="cuda", dtype=torch.int32)
    weight = torch.ones(width, device="cuda", dtype=torch.bfloat16)
    arguments = (hidden, rows, offsets, weight)
    options: dict[str, Any] = {"eps": 1e-6, "segments": 2, "keep": width}
    op = event_times(lambda: dual_token_pool(*arguments, **options))
    form = event_times(lambda: dual_token_pool_reference(*arguments, **options))
    moved = 2 * texts * width * (2 + 4)  # bfloat16 rows in, float32 embeddings out
    rate = moved / statistics.median(op) / 1e6
    return {
        "op_ms": op,
        "pytorch_form_ms": form,
        "op_gb_per_s": rate,
        "fraction_of_copy": rate / copy_gb_per_s,
    }


def throughput(directory: Path) -> dict[str, Any]:
    """Texts a second of the benchmark checkpoint, by attention backend, in bfloat16."""
    from workload import make_checkpoint, make_texts

    from c2v_engine import Causal2Vec
    from c2v_engine.errors import BackendError
    from c2v_engine.model.attention.select import BACKENDS

    checkpoint, texts = make_checkpoint(directory / "checkpoint"), make_texts(20_000)
    results: dict[str, Any] = {}
    for name in BACKENDS:
        try:
            engine = Causal2Vec.from_pretrained(checkpoint, device="cuda", attention=name)
        except BackendError as error:
            results[name] = str(error)
            continue
        engine.encode(texts[:2000])
        before, seconds = engine.stats.tokens, []
        for _ in range(3):
            start = time.perf_counter()
            engine.encode(texts)
            seconds.append(time.perf_counter() - start)
        tokens = (engine.stats.tokens - before) / 3
        median = statistics.median(seconds)
        results[name] = {
            "seconds": seconds,
            "texts_per_s": len(texts) / median,
            "decoder_tokens_per_s": tokens / median,
        }
        print(name, results[name], flush=True)
    return results


def main() -> None:
    """Run every step; a failing one is recorded and the next is run all the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    import torch
    from workload import git_commit

    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA GPU; there is nothing to measure")
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name().replace(" ", "-")
    path = arguments.results / f"gpu-{name}.json"
    results: dict[str, Any] = {
        "commit": git_commit(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }

    def keep(key: str, value: Any) -> Any:
        results[key] = value
        path.write_text(json.dumps(results, indent=1) + "\n")
        return value

    python = sys.executable
    keep("build", step("build", python, "setup.py", "build_ext", "--inplace"))
    keep("tests", step("tests", python, "-m", "pytest", "-q", *TESTS))
    limits = keep("ceilings", ceilings())
    print(limits, flush=True)
    print(keep("pooling", pooling(limits["copy_gb_per_s"])), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        keep("throughput", throughput(Path(directory)))
    print(f"results in {path}")


if __name__ == "__main__":
    main()
