"""Runs the compiled pooling op on a GPU once over odd sizes: for compute-sanitizer, and by itself.

    compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/check_pooling.py

Ends with status 1 where the compiled op does not serve, disagrees with its reference on the CPU, or
does not refuse what it should.
Everything but the op itself happens on the CPU, so that the tool has little else to watch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# An allocation of its own for each tensor, so that a step beyond its end is seen.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from kernel_benchmark.providers import form_of  # noqa: E402
from torch import Tensor  # noqa: E402

from c2v_engine.kernels.dual_token_pool import (  # noqa: E402
    Precision,
    dual_token_pool,
    dual_token_pool_reference,
    extension_status,
)

WIDTHS = (1, 5, 64, 123, 4096)
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "ubinary")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def make_arguments(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, rows in segments of one to four, their offsets, the norm's weight."""
    generator = torch.Generator().manual_seed(width)
    lengths = torch.randint(1, 5, (2 * 33,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    total = int(offsets[-1])
    hidden = torch.randn(total + 3, width, generator=generator).to(dtype)
    rows = torch.randperm(total + 3, generator=generator)[:total].int()
    weight = (torch.rand(width, generator=generator) + 0.5).to(dtype)
    return hidden, rows, offsets, weight


def disagreement(found: Tensor, expected: Tensor, precision: Precision) -> str:
    """What is wrong with embeddings, or nothing; float32 sums in another order may tip a level."""
    if precision == "int8":
        levels = (found.int() - expected.int()).abs().max().item()
        return f"{levels} levels apart" if levels > 1 else ""
    if precision == "ubinary":
        share = (found != expected).float().mean().item()
        return f"{share:.1%} of the bytes differ" if share > 0.01 else ""
    error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
    bound = 1e-5 if precision == "float32" else 1e-3
    return "" if error <= bound else f"relative error {error:.1e}"


def missing_refusals(device: torch.device) -> list[str]:
    """Where the op itself takes a precision that is none; one that can not throw crashes here."""
    found = []
    for place in (torch.device("cpu"), device):
        hidden, rows, offsets, weight = (t.to(place) for t in make_arguments(64, torch.float32))
        try:
            torch.ops.c2v.dual_token_pool(hidden, rows, offsets, weight, 0.0, 2, 64, True, 7, None)
        except RuntimeError as error:
            if "precision must be a code in [0, 6], got 7" not in str(error):
                found.append(f"{place}: a wrong precision is refused with {error}")
        else:
            found.append(f"{place}: a wrong precision is not refused")
    return found


def main() -> None:
    """Run all and compare."""
    device = torch.device("cuda")
    if form_of("dual_token_pool", device) != "csrc":
        sys.exit(f"error: the extension has no CUDA kernel: {extension_status().reason}")
    problems = missing_refusals(device)
    for width in WIDTHS:
        bounds = torch.full((2 * width,), width**-0.5)
        ranges = torch.stack([-2 * bounds, 2 * bounds])
        for dtype in DTYPES:
            arguments = make_arguments(width, dtype)
            for precision in PRECISIONS:
                options: dict[str, Any] = {
                    "eps": 1e-6,
                    "segments": 2,
                    "keep": width,
                    "precision": precision,
                }
                on_gpu = [tensor.to(device) for tensor in arguments]
                found = dual_token_pool(*on_gpu, **options, ranges=ranges.to(device))
                expected = dual_token_pool_reference(*arguments, **options, ranges=ranges)
                complaint = disagreement(found[0].cpu(), expected[0], precision)
                if complaint:
                    problems.append(f"width {width}, {dtype}, {precision}: {complaint}")
    print("\n".join(problems) or "the compiled pooling op agrees with its reference")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
