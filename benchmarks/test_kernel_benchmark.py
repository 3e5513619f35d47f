"""The kernel benchmark through pytest-benchmark: the cases, checks and timers of bench_kernels.py.

pytest -o addopts="" benchmarks/test_kernel_benchmark.py [-k add_rms_norm] [--kernel-results FILE]

On a GPU at the sizes of real models, elsewhere at tiny ones, which try the harness and say nothing
of speed. Times are of one call, by the device's clock where there is one. ``--benchmark-json`` has
each entry's fields under ``extra_info``; ``--kernel-results`` writes the file that
``bench_kernels.py`` writes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_benchmark.agreement import check_provider, expected_outputs
from kernel_benchmark.case import Case, Provider
from kernel_benchmark.catalogue import attention_cases, full_cases, small_cases
from kernel_benchmark.measure import Settings, describe, draw_sets, figures
from kernel_benchmark.providers import all_providers
from pytest_benchmark.fixture import BenchmarkFixture

from c2v_engine.bench.machine.ceilings import measure_ceilings
from c2v_engine.bench.machine.clock import make_timer
from c2v_engine.bench.machine.facts import describe_machine, describe_sources
from c2v_engine.bench.record import Record
from c2v_engine.model.attention.select import BACKENDS

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16
CASES = [*full_cases(DTYPE), *attention_cases(DTYPE)] if ON_GPU else small_cases(DTYPE)
ROUNDS = 30 if ON_GPU else 5


class MeasuredTime:
    """A clock that stands still but for the time that a timer measured."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """The clock's seconds."""
        return self.seconds


measured_time = MeasuredTime()


def provider_names(case: Case) -> list[str]:
    """All that may compute a case; those that can not here are skipped with the reason."""
    rivals = list(BACKENDS) if case.op.rivals is not None else []
    return ["ours", *rivals, "eager", *(["compile"] if case.compiled else [])]


@pytest.fixture(scope="module")
def settings(pytestconfig: pytest.Config) -> Settings:
    quick = bool(pytestconfig.getoption("--bench-quick"))
    ceilings = measure_ceilings(DEVICE, DTYPE, tiny=quick)
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size if ON_GPU else 0
    return Settings(DEVICE, ceilings, repetitions=ROUNDS, cache_bytes=cache)


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest, settings: Settings) -> Record | None:
    path = request.config.getoption("--kernel-results")
    if path is None:
        return None
    record = Record(path)
    record.content.update({**describe_sources(), **describe_machine()})
    record.put("ceilings", settings.ceilings.as_json())
    return record


@pytest.mark.benchmark(timer=measured_time)
@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in CASES
        for name in provider_names(case)
    ],
)
@torch.inference_mode()
def test_kernel(
    benchmark: BenchmarkFixture,
    case: Case,
    name: str,
    settings: Settings,
    record: Record | None,
    pytestconfig: pytest.Config,
) -> None:
    if name == "compile" and pytestconfig.getoption("--bench-quick"):
        pytest.skip("compiling takes longer than all the rest: without --bench-quick")
    sets = draw_sets(case, settings)
    compiler = settings.compiler if name == "compile" else None
    found = {each.name: each for each in all_providers(case, sets[0], compiler)}
    provider = found[name]
    if not isinstance(provider, Provider):
        pytest.skip(provider.reason)
    agreement = check_provider(case, provider, sets[0], expected_outputs(case, sets[0]))
    assert agreement.passed, f"{agreement.complaint or agreement.error}, bound {agreement.bound}"
    timer = make_timer(provider.call, sets)

    def repetition() -> None:
        measured_time.seconds += timer.repetition() / 1e3

    benchmark.group = case.name
    benchmark.pedantic(repetition, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.stats is None:  # --benchmark-disable: checked and run once
        return
    times = [1e3 * seconds for seconds in benchmark.stats.stats.data]
    entry: dict[str, Any] = {
        **describe(case, provider, settings),
        "status": "ok",
        "timing": timer.method,
        "calls": timer.calls,
        "sets": len(sets),
        "error": agreement.error,
        "bound": agreement.bound,
        **figures(case, times, settings.ceilings),
    }
    benchmark.extra_info.update(entry)
    if record is not None:
        record.extend("results", [{**entry, "ms": times}])
