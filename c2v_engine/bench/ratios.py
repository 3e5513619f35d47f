"""Speed as ratios within one run: the engine against stock modules, the machine, other dtypes.

Whoever is compared takes turns, so that a machine that is slow that day is slow for both; and the
ratios of single turns say how far they can be believed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from c2v_engine.bench.budget import Budget
from c2v_engine.bench.case import Case
from c2v_engine.bench.machine.ceilings import measure_ceilings
from c2v_engine.bench.measure import measure_case
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.source import ModelSource, StoredCheckpoint
from c2v_engine.bench.models.synthetic import SyntheticCheckpoint
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.session import Session
from c2v_engine.bench.workloads import Lengths
from c2v_engine.engine import default_model_path
from c2v_engine.model.linear import onednn_serves

__all__ = ["Ratio", "cpu_cases", "measure_ratios", "ratios_of"]

CPU = torch.device("cpu")
DEFAULT = "default"
# A turn of a tenth of a second or more each on two cores, of which one that is interrupted shows.
TOKENS = {DEFAULT: 2**14, "llama-130m": 2**11}


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another the first provider of a case is; of many turns.

    Attributes:
        median: of the turns.
        low: the least.
        high: the most.
        each: of the turns.
    """

    median: float
    low: float
    high: float
    each: tuple[float, ...]

    @classmethod
    def of(cls, each: Sequence[float]) -> Ratio:
        """From the turns."""
        return cls(statistics.median(each), min(each), max(each), tuple(each))

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "each": list(self.each),
        }


def cpu_cases() -> list[Case]:
    """Quick ones: passages on the default model, and on a Llama of 130 M in the CPU's best dtypes."""
    dtype = "bfloat16" if onednn_serves(torch.bfloat16) else "float32"
    specs = [Spec("engine", dtype), Spec("padded", dtype)]
    if dtype == "bfloat16":
        specs.append(Spec("engine", "int8"))
    passages = Lengths(label="passages")
    small = (Spec("engine", "float32"), Spec("padded", "float32"))
    return [
        Case(DEFAULT, passages, TOKENS[DEFAULT], small),
        Case("llama-130m", passages, TOKENS["llama-130m"], tuple(specs)),
    ]


def measure_ratios(
    cases: Sequence[Case],
    repetitions: int,
    *,
    tiny: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """The ratios of some cases, by name; see ``ratios_of``.

    Args:
        cases: of the default model, or of a shape with random weights.
        repetitions: turns of every provider.
        tiny: measure no real ceilings, to try it.
        say: called with a line that tells what begins.
    """
    found: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            session = Session(open_source(case, Path(folder, str(number))))
            dtype = getattr(torch, case.specs[0].dtype)
            say(f"{case.name}: {', '.join(spec.name for spec in case.specs)}")
            before = measure_ceilings(CPU, dtype, tiny=tiny).gemm_tflops
            entries = measure_case(case, session, session.corpus, Budget(None), repetitions)
            after = measure_ceilings(CPU, dtype, tiny=tiny).gemm_tflops
            found |= ratios_of(entries, (before, after))
            session.keep(())
    return found


def open_source(case: Case, directory: Path) -> ModelSource:
    """The model of a case."""
    if case.model == DEFAULT:
        return StoredCheckpoint(default_model_path(), CPU, DEFAULT)
    return SyntheticCheckpoint.write(directory, MODELS[case.model], CPU, case.template)


def ratios_of(
    entries: Sequence[Mapping[str, Any]], gemm_tflops: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """The ratios of a case's entries, of each more is better.

    Args:
        entries: of ``measure_case``.
        gemm_tflops: of the machine, before and after.

    Returns:
        By name: the first provider against every other one, turn by turn, but one in ``int8``
        against the first; and the first one's useful operations against the best and the worst of
        the machine's. Of one that was not timed ``reason`` says why.
    """
    engine, *others = entries
    found: dict[str, dict[str, Any]] = {}
    for other in others:
        pair = (other, engine) if other["provider"].endswith("int8") else (engine, other)
        name = f"{engine['case']}: {pair[0]['provider']} over {pair[1]['provider']}"
        reason = why_not_timed(pair)
        if reason:
            found[name] = {"reason": reason}
            continue
        turns = zip(pair[0]["seconds"], pair[1]["seconds"], strict=True)
        found[name] = Ratio.of([theirs / ours for ours, theirs in turns]).as_json()
    name = f"{engine['case']}: {engine['provider']} over matrix products alone"
    reason = why_not_timed((engine,))
    if reason:
        return {**found, name: {"reason": reason}}
    rates = [engine["operations"] / seconds / 1e12 for seconds in engine["seconds"]]
    each = [rate / statistics.mean(gemm_tflops) for rate in rates]
    low, high = min(rates) / max(gemm_tflops), max(rates) / min(gemm_tflops)
    found[name] = Ratio(statistics.median(each), low, high, tuple(each)).as_json()
    return found


def why_not_timed(entries: Sequence[Mapping[str, Any]]) -> str:
    """Why there is no time of one of them; empty where there is."""
    for entry in entries:
        if entry["status"] != "ok":
            return f"{entry['provider']} is {entry['status']}: {entry['reason']}"
    return ""
