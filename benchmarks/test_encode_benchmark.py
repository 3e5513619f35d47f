"""The embedded default model through pytest-benchmark, on the harness of ``c2v bench``.

pytest -o addopts="" benchmarks/test_encode_benchmark.py [--bench-quick] [-k "passages and padded"]

On the CPU, from texts to vectors. Every provider's vectors are held against those of the engine in
float32 before it is timed. ``extra_info`` of ``--benchmark-json`` has the fields of a result file's
entry, ``gflop_per_s`` of useful operations, and ``of_gemm``: their fraction of what matrix products
of the same dtype reach in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from c2v_engine.bench.case import Case
from c2v_engine.bench.machine.ceilings import measure_ceilings
from c2v_engine.bench.measure import BOUNDS, CHECKED_TEXTS, describe, judge
from c2v_engine.bench.models.source import StoredCheckpoint
from c2v_engine.bench.plan import WORKLOADS
from c2v_engine.bench.providers.base import Spec, UnusableError
from c2v_engine.bench.session import Session
from c2v_engine.bench.workloads import INSTRUCTION, Workload, make_workload
from c2v_engine.engine import default_model_path

CPU = torch.device("cpu")
NAMES = ("32", "128", "passages", "queries")
EXPECTED = Spec("engine", "float32")
SPECS = (EXPECTED, Spec("engine", "bfloat16"), Spec("padded", "float32"))
TOKENS, QUICK_TOKENS = 2**12, 2**9
ROUNDS, QUICK_ROUNDS = 5, 2


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(StoredCheckpoint(default_model_path(), CPU, "default"))


@pytest.fixture(scope="module")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--bench-quick"))


@pytest.fixture(scope="module")
def gemm_tflops(quick: bool) -> Callable[[str], float]:
    """Of a dtype, measured once."""
    return cache(lambda dtype: measure_ceilings(CPU, getattr(torch, dtype), tiny=quick).gemm_tflops)


@pytest.fixture(scope="module")
def workload_of(session: Session, quick: bool) -> Callable[[str], tuple[Case, Workload]]:
    """A workload by its name, drawn once."""
    tokens = QUICK_TOKENS if quick else TOKENS

    @cache
    def make(name: str) -> tuple[Case, Workload]:
        prompt = INSTRUCTION if name == "queries" else ""
        case = Case("default", WORKLOADS[name], tokens, SPECS, prompt=prompt)
        drawn = make_workload(
            session.corpus, session.tokenizer, case.lengths, case.tokens, prompt=prompt
        )
        return case, drawn

    return make


@pytest.fixture(scope="module")
def expected_of(
    session: Session, workload_of: Callable[[str], tuple[Case, Workload]]
) -> Callable[[str], torch.Tensor]:
    """The engine's vectors in float32 of some of a workload's texts."""
    return cache(
        lambda name: session.provider(EXPECTED).embed(workload_of(name)[1].some(CHECKED_TEXTS))
    )


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name.replace(" ", "-"))
@pytest.mark.parametrize("name", NAMES)
def test_encode(
    benchmark: BenchmarkFixture,
    name: str,
    spec: Spec,
    session: Session,
    quick: bool,
    workload_of: Callable[[str], tuple[Case, Workload]],
    expected_of: Callable[[str], torch.Tensor],
    gemm_tflops: Callable[[str], float],
) -> None:
    case, workload = workload_of(name)
    entry: dict[str, Any] = describe(case, spec, session, workload)
    try:
        provider = session.provider(spec)
    except UnusableError as error:
        pytest.skip(str(error))
    judge(
        entry, provider.embed(workload.some(CHECKED_TEXTS)), expected_of(name), BOUNDS[spec.dtype]
    )
    assert "status" not in entry, entry["reason"]
    call = provider.prepare(workload)
    benchmark.group = case.name
    benchmark.pedantic(call, rounds=QUICK_ROUNDS if quick else ROUNDS, warmup_rounds=1)
    if benchmark.stats is None:  # --benchmark-disable: checked and run once
        return
    seconds = list(benchmark.stats.stats.data)
    median = statistics.median(seconds)
    gflop_per_s = entry["operations"] / median / 1e9
    ceiling = gemm_tflops(spec.dtype)
    benchmark.extra_info.update(
        {
            **entry,
            "seconds": seconds,
            "tokens_per_s": entry["decoder_tokens"] / median,
            "gflop_per_s": gflop_per_s,
            "gemm_tflops": ceiling,
            "of_gemm": gflop_per_s / 1e3 / ceiling,
        }
    )
