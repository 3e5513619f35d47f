"""What the machine can do, for several dtypes."""

import statistics

import pytest
import torch

from c2v_engine.bench.machine.ceilings import measure_ceilings_by_dtype


def test_the_better_of_a_plain_and_a_packed_product_is_the_ceiling():
    dtypes = [torch.float32, torch.bfloat16]
    found = measure_ceilings_by_dtype(torch.device("cpu"), dtypes, tiny=True)
    assert list(found["gemm_tflops"]) == ["float32", "bfloat16"]
    for name, tflops in found["gemm_tflops"].items():
        each = found["repetitions"][name]
        least = min(statistics.median(each[key]) for key in ("gemm_ms", "packed_gemm_ms"))
        assert tflops == pytest.approx(2 * each["work"]["size"] ** 3 / least / 1e9)
        assert tflops >= each["gemm_tflops"]
    copies = [each["copy_gb_per_s"] for each in found["repetitions"].values()]
    assert found["copy_gb_per_s"] == max(copies)
