"""Texts per second on the CPU: the engine against sorted, padded batches of stock transformers.

    python benchmarks/bench_cpu_encode.py                    # 500 texts, 3 repetitions: long
    python benchmarks/bench_cpu_encode.py --texts 50 --repeats 2

The reference runs the way sentence-transformers does: longest first, batches of 32, padded. Every
repetition runs all providers one after the other, and ratios are taken within a repetition, so a
machine that slows down slows all of them. Vectors are compared with the reference, one text at a
time in float32, before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel_benchmark.record import processor_name
from workload import git_commit, make_checkpoint, make_texts

from c2v_engine import Causal2Vec
from c2v_engine.reference import Causal2VecReference

Provider = Callable[[Sequence[str]], np.ndarray]

REFERENCE_BATCH = 32
PROVIDERS = ("engine bfloat16", "reference bfloat16", "engine float32", "reference float32")
RATIOS = (
    ("engine bfloat16", "reference bfloat16"),
    ("engine float32", "reference float32"),
    ("engine bfloat16", "reference float32"),
)


def load_provider(name: str, path: Path) -> Provider:
    """``engine`` or ``reference``, in a dtype."""
    kind, dtype = name.split()
    if kind == "engine":
        engine = Causal2Vec.from_pretrained(path, device="cpu", dtype=dtype)
        return lambda texts: engine.encode(list(texts), show_progress_bar=False)
    reference = Causal2VecReference.from_pretrained(path, dtype=getattr(torch, dtype))
    return lambda texts: reference.encode(texts, batch_size=REFERENCE_BATCH).numpy()


def count_work(reference: Causal2VecReference, texts: Sequence[str]) -> dict[str, float]:
    """Tokens and useful operations of the texts: 2 x non-embedding parameters x tokens."""
    features = reference.tokenize(texts)
    work: dict[str, float] = {
        "decoder_tokens": int((features["entries"] >= 0).sum()),
        "encoder_tokens": int(features["encoder_attention_mask"].sum()),
    }
    for name in ("decoder", "encoder"):
        counts: dict[bool, int] = {True: 0, False: 0}
        for parameter, value in getattr(reference, name).named_parameters():
            if "pooler" not in parameter:
                counts["embed" in parameter] += value.numel()
        work[f"{name}_embedding_parameters"] = counts[True]
        work[f"{name}_other_parameters"] = counts[False]
    work["operations"] = 2 * sum(
        work[f"{name}_other_parameters"] * work[f"{name}_tokens"] for name in ("decoder", "encoder")
    )
    return work


def check(provider: Provider, name: str, texts: Sequence[str], expected: np.ndarray) -> float:
    """The largest difference (float32) or smallest cosine (bfloat16); exits where it is wrong."""
    actual = provider(texts)
    if name.endswith("float32"):
        figure = float(np.abs(actual - expected).max())
        right = figure <= 1e-5
    else:
        figure = float((actual * expected).sum(axis=1).min())
        right = figure >= 0.999
    if not right:
        sys.exit(f"{name}: vectors differ from the reference: {figure}")
    return figure


def gemm_peak(dtype: torch.dtype, size: int = 3072, repeats: int = 5) -> float:
    """Operations per second of the machine's matrix product, the best of some."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    torch.mm(left, right)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def measure(
    providers: dict[str, Provider], texts: Sequence[str], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every provider in every repetition, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for repeat in range(repeats):
        for name, provider in providers.items():
            start = time.perf_counter()
            provider(texts)
            seconds[name].append(time.perf_counter() - start)
            print(f"  repetition {repeat + 1}, {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def report(
    seconds: dict[str, list[float]],
    count: int,
    work: dict[str, float],
    peaks: dict[str, float],
) -> list[dict[str, Any]]:
    """Print the table and the ratios; returns the rows."""
    tokens = work["decoder_tokens"]
    print(
        f"\n{'provider':<20}{'median s':>10}{'min':>9}{'max':>9}{'texts/s':>10}{'tokens/s':>11}"
        f"{'GFLOP/s':>10}{'of peak':>9}"
    )
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        row = {
            "provider": name,
            "seconds": times,
            "texts_per_second": count / median,
            "tokens_per_second": tokens / median,
            "fraction_of_gemm_peak": work["operations"] / median / peaks[name.split()[1]],
        }
        rows.append(row)
        print(
            f"{name:<20}{median:>10.2f}{min(times):>9.2f}{max(times):>9.2f}"
            f"{row['texts_per_second']:>10.1f}{row['tokens_per_second']:>11.0f}"
            f"{work['operations'] / median / 1e9:>10.0f}{row['fraction_of_gemm_peak']:>9.1%}"
        )
    print()
    for fast, slow in RATIOS:
        if fast in seconds and slow in seconds:
            ratios = [b / a for a, b in zip(seconds[fast], seconds[slow], strict=True)]
            print(
                f"{fast} against {slow}: {statistics.median(ratios):.2f}x "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
            rows.append({"ratio": f"{fast} / {slow}", "per_repetition": ratios})
    return rows


def run(arguments: argparse.Namespace, cache: Path) -> None:
    """Check, measure and report."""
    path, texts = make_checkpoint(cache / "bench-130m"), make_texts(arguments.texts)
    alone = Causal2VecReference.from_pretrained(path)
    work = count_work(alone, texts)
    bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    setting = {
        "commit": git_commit(),
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "bfloat16_instructions": bool(bf16),
        "torch": torch.__version__,
        "texts": len(texts),
        "repeats": arguments.repeats,
        **work,
    }
    print("\n".join(f"{name}: {value}" for name, value in setting.items()))
    by_length = sorted(texts, key=len)
    checked = [*by_length[:: max(1, len(texts) // 12)], by_length[-1]]
    expected = alone.encode(checked).numpy()
    similarity = expected[:1] @ expected[1:].T
    print(f"shortest text's cosine to the others: {similarity.min():.3f} to {similarity.max():.3f}")
    del alone
    providers = {name: load_provider(name, path) for name in arguments.providers}
    for name, provider in providers.items():
        figure = check(provider, name, checked, expected)
        exact = name.endswith("float32")
        found = f"largest difference {figure:.1e}" if exact else f"smallest cosine {figure:.5f}"
        print(f"{name}: {len(checked)} vectors checked, {found}", flush=True)
    dtypes = {name.split()[1] for name in providers}
    before = {dtype: gemm_peak(getattr(torch, dtype)) for dtype in sorted(dtypes)}
    seconds = measure(providers, texts, arguments.repeats)
    # Taken twice: whatever else the machine does, the ceiling is the better of the two.
    peaks = {dtype: max(peak, gemm_peak(getattr(torch, dtype))) for dtype, peak in before.items()}
    for dtype, peak in peaks.items():
        print(f"GEMM peak {dtype}: {peak / 1e9:.0f} GFLOP/s (before: {before[dtype] / 1e9:.0f})")
    rows = report(seconds, len(texts), work, peaks)
    if arguments.json:
        result = {"setting": setting, "gemm_peak": peaks, "results": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="by default as torch decides")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--cache", type=Path, help="keep the checkpoint (440 MB) in this folder")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.cache:
        run(arguments, arguments.cache)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments, Path(temporary))


if __name__ == "__main__":
    main()
