"""Puts the benchmarks' folder where their own scripts find it, and gives tests what they share."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture
def settings():
    """Few repetitions on the CPU, without ``torch.compile``, against made-up ceilings."""
    from kernel_benchmark.measure import Settings

    from c2v_engine.bench.machine.ceilings import TINY, Ceilings

    ceilings = Ceilings(10.0, 0.1, "bfloat16", [1.0], [1.0], TINY)
    return Settings(torch.device("cpu"), ceilings, repetitions=3, compiler=None)


@pytest.fixture
def quick(monkeypatch):
    """Repetitions of a call or two, where only what they come to is looked at."""
    from c2v_engine.bench.machine import clock

    monkeypatch.setattr(clock, "SHORTEST_MS", 0.0)


@pytest.fixture
def small():
    """``small("silu_and_mul")`` gives that op's tiny case."""
    from kernel_benchmark.catalogue import small_cases

    def find(op, dtype=torch.bfloat16):
        return next(case for case in small_cases(dtype) if case.op.name == op)

    return find
