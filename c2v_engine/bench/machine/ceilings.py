"""What the machine can do at best: bytes copied and operations multiplied, measured like a case."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from c2v_engine.bench.machine.clock import make_timer
from c2v_engine.model.linear import make_linear

__all__ = ["Ceilings", "measure_ceilings", "measure_ceilings_by_dtype"]

REPETITIONS = 15


class Work(NamedTuple):
    """What is copied and multiplied.

    Attributes:
        copied: bytes read; as many are written.
        size: rows and columns of the square matrices.
    """

    copied: int
    size: int


# A copy far beyond any cache; matrices that fill the device.
WORK = {"cuda": Work(2**30, 8192), "cpu": Work(2**28, 1536)}
TINY = Work(2**20, 64)


class Ceilings(NamedTuple):
    """Medians of the two, and every repetition.

    Attributes:
        copy_gb_per_s: bytes read and written over time, in 10^9.
        gemm_tflops: operations of a matrix product over time, in 10^12.
        dtype: of the matrices.
        copy_ms: each copy.
        gemm_ms: each product.
        work: what was copied and multiplied.
    """

    copy_gb_per_s: float
    gemm_tflops: float
    dtype: str
    copy_ms: list[float]
    gemm_ms: list[float]
    work: Work

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**self._asdict(), "work": self.work._asdict()}


def measure_ceilings(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Ceilings:
    """Measures both on random data.

    Args:
        device: where.
        dtype: of the matrices.
        tiny: with little work, to try the harness; no ceiling of anything.
    """
    work = TINY if tiny else WORK[device.type]
    source = torch.randn(work.copied // 4, device=device)
    copy = {"source": source, "target": torch.empty_like(source)}
    left, right = (torch.randn(work.size, work.size, device=device).to(dtype) for _ in range(2))
    product = {"left": left, "right": right, "target": torch.empty_like(left)}
    timers = (
        make_timer(lambda given: given["target"].copy_(given["source"]), [copy]),
        make_timer(
            lambda given: torch.mm(given["left"], given["right"], out=given["target"]), [product]
        ),
    )
    copy_ms, gemm_ms = ([timer.repetition() for _ in range(REPETITIONS)] for timer in timers)
    return Ceilings(
        2 * source.nbytes / statistics.median(copy_ms) / 1e6,
        2 * work.size**3 / statistics.median(gemm_ms) / 1e9,
        str(dtype).removeprefix("torch."),
        copy_ms,
        gemm_ms,
        work,
    )


def measure_ceilings_by_dtype(
    device: torch.device, dtypes: Sequence[torch.dtype], *, tiny: bool = False
) -> dict[str, Any]:
    """Both for several dtypes, as result files hold them.

    Args:
        device: where.
        dtypes: of the matrices.
        tiny: with little work, to try the harness; no ceiling of anything.

    Returns:
        ``copy_gb_per_s``, the best of as many measurements as there are dtypes; ``gemm_tflops``,
        by dtype, on a CPU the better of a plain product and of one whose weight was laid out for
        it before; and ``repetitions``, every one.
    """
    copies: list[float] = []
    best: dict[str, float] = {}
    repetitions: dict[str, Any] = {}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        found = measure_ceilings(device, dtype, tiny=tiny)
        copies.append(found.copy_gb_per_s)
        best[name] = found.gemm_tflops
        repetitions[name] = found.as_json()
        if device.type == "cpu":
            packed_ms = measure_packed_product(dtype, found.work.size)
            repetitions[name]["packed_gemm_ms"] = packed_ms
            packed = 2 * found.work.size**3 / statistics.median(packed_ms) / 1e9
            best[name] = max(best[name], packed)
    return {"copy_gb_per_s": max(copies), "gemm_tflops": best, "repetitions": repetitions}


def measure_packed_product(dtype: torch.dtype, size: int) -> list[float]:
    """Milliseconds of products of square matrices by a linear layer as the engine makes it."""
    linear = make_linear(torch.randn(size, size).to(dtype), None)
    rows = {"rows": torch.randn(size, size).to(dtype)}
    with torch.inference_mode():
        timer = make_timer(lambda given: linear(given["rows"]), [rows])
        return [timer.repetition() for _ in range(REPETITIONS)]
