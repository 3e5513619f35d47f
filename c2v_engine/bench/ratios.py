"""Speed as ratios within one run: the engine against stock modules, the machine, other dtypes.

Whoever is compared takes turns, so that a machine that is slow that day is slow for both; and the
ratios of single turns say how far they can be believed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from c2v_engine.bench.case import Case
from c2v_engine.bench.machine.ceilings import WORK
from c2v_engine.bench.measure import (
    agreeing_calls,
    describe,
    noted,
    time_call,
    useful_operations,
)
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.source import ModelSource, StoredCheckpoint
from c2v_engine.bench.models.synthetic import SyntheticCheckpoint
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.session import Session
from c2v_engine.bench.workloads import Lengths, make_workload
from c2v_engine.engine import default_model_path
from c2v_engine.model.linear import onednn_serves

__all__ = ["Ratio", "cpu_cases", "measure_ratios", "ratios_of"]

CPU = torch.device("cpu")
DEFAULT, INT8 = "default", "int8"
# A turn of a tenth of a second or more each on two cores, of which one that is interrupted shows.
TOKENS = {DEFAULT: 2**12, "llama-130m": 2**10}


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another a provider is, over turns.

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
    """Quick ones: passages on the default model, and on a Llama of 130 M in bfloat16 and int8."""
    dtype = "bfloat16" if onednn_serves(torch.bfloat16) else "float32"
    specs = [Spec("engine", dtype), Spec("padded", dtype)]
    if dtype == "bfloat16":
        specs.append(Spec("engine", INT8))
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
    size: int = WORK["cpu"].size,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """The ratios of some cases, by name; see ``ratios_of``.

    Args:
        cases: of the default model, or of a shape with random weights.
        repetitions: turns of every provider.
        size: of the matrices whose products are the machine's best.
        say: called with a line that tells what begins.
    """
    found: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            session = Session(open_source(case, Path(folder, str(number))))
            say(f"{case.name}: {', '.join(spec.name for spec in case.specs)}")
            found |= ratios_of(*measure_turns(case, session, repetitions, size))
            session.keep(())
    return found


def measure_turns(
    case: Case, session: Session, repetitions: int, size: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The entries of a case's providers, each checked, and one of matrix products in their turns.

    The products are of about as many operations as the texts need.
    """
    workload = make_workload(
        session.corpus, session.tokenizer, case.lengths, case.tokens, prompt=case.prompt
    )
    entries = {spec: describe(case, spec, session, workload) for spec in case.specs}
    calls = agreeing_calls(case, session, workload, entries, lambda provider: None)
    left, right = (torch.randn(size, size).to(getattr(torch, case.specs[0].dtype)) for _ in "ab")
    count = max(1, round(useful_operations(session, workload) / (2 * size**3)))
    products: dict[str, Any] = {"operations": count * 2 * size**3}

    def multiply() -> None:
        for _ in range(count):
            torch.mm(left, right)

    turns = [(products, multiply), *((entries[spec], call) for spec, call in calls.items())]
    for entry, call in turns:  # once that is not timed
        noted(entry, call)
    for _ in range(repetitions):
        for entry, call in turns:
            if "status" not in entry:
                noted(entry, partial(time_call, entry, call, CPU))
    for entry, _ in turns:
        entry.setdefault("status", "ok")
    return list(entries.values()), products


def open_source(case: Case, directory: Path) -> ModelSource:
    """The model of a case."""
    if case.model == DEFAULT:
        return StoredCheckpoint(default_model_path(), CPU, DEFAULT)
    return SyntheticCheckpoint.write(directory, MODELS[case.model], CPU, case.template)


def ratios_of(
    entries: Sequence[Mapping[str, Any]], products: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The ratios of a case's entries, turn by turn; of each more is better.

    Args:
        entries: of the providers.
        products: of matrix products.

    Returns:
        By name: the first provider over every other one, but one in ``int8`` over the first; and
        the first one's useful operations a second over those of the products. Of one that was not
        timed ``reason`` says why.
    """
    engine, *others = entries
    first = f"{engine['case']}: {engine['provider']} over"
    found = {}
    for other in others:
        if other["provider"].endswith(INT8):
            name = f"{engine['case']}: {other['provider']} over {engine['provider']}"
            found[name] = ratio_of(other, engine)
        else:
            found[f"{first} {other['provider']}"] = ratio_of(engine, other)
    work = engine["operations"] / products["operations"]
    found[f"{first} matrix products alone"] = ratio_of(engine, products, work)
    return found


def ratio_of(fast: Mapping[str, Any], slow: Mapping[str, Any], work: float = 1.0) -> dict[str, Any]:
    """How many times as fast one is as the other, or why that is not known.

    Args:
        fast: the entry of the one.
        slow: of the other.
        work: how many times the other's the one's is.
    """
    for entry in (fast, slow):
        if entry["status"] != "ok":
            return {"reason": f"{entry['provider']} is {entry['status']}: {entry['reason']}"}
    turns = zip(fast["seconds"], slow["seconds"], strict=True)
    return Ratio.of([work * theirs / ours for ours, theirs in turns]).as_json()
