"""A run of ``c2v bench``: from what is asked for to a result file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from c2v_engine.bench.budget import Budget
from c2v_engine.bench.machine.ceilings import measure_ceilings_by_dtype
from c2v_engine.bench.machine.facts import describe_machine, describe_sources
from c2v_engine.bench.models.source import ModelSource
from c2v_engine.bench.plan import Plan, make_cases
from c2v_engine.bench.record import Record, RecordError
from c2v_engine.bench.run import run_cases
from c2v_engine.bench.session import Session
from c2v_engine.errors import InputError

__all__ = ["RESULTS", "open_record", "run_plan"]

RESULTS = "results.json"
KIND = "bench"


def open_record(folder: Path, kind: str, settings: Mapping[str, Any]) -> Record:
    """The result file of a folder, with what is measured and where at its head.

    Args:
        folder: is made; a result file in it is replaced.
        kind: ``bench`` or ``methods``.
        settings: what was asked for.

    Raises:
        InputError: it can not be written.
    """
    try:
        record = Record(folder / RESULTS)
    except RecordError as error:
        raise InputError(str(error)) from None
    record.describe({**describe_sources(), **describe_machine(), **settings, "kind": kind})
    return record


def run_plan(
    plan: Plan,
    sources: Mapping[str, ModelSource],
    device: torch.device,
    folder: Path,
    *,
    tiny: bool = False,
    show: Callable[[dict[str, Any]], None] = lambda entry: None,
    say: Callable[[str], None] = lambda line: None,
    arguments: Sequence[str] = (),
) -> Record:
    """Measure the ceilings, then every case, then the ceilings again.

    Args:
        plan: what is asked for.
        sources: the models, by the names that cases give them.
        device: where.
        folder: gets the result file.
        tiny: measure no real ceilings, to try the harness.
        show: called with every entry.
        say: called with a line that tells what begins.
        arguments: of the command that asked for it, for who wants to repeat it.

    Raises:
        ConfigError: a dtype, workload or provider that is not known.
        InputError: the result file can not be written.
        CheckpointError: a model that can not be read.
    """
    plan.check()
    for source in sources.values():  # a damaged model leaves what the folder holds as it is
        Session(source)
    settings = {
        "device": device.type,
        "dtypes": list(plan.dtypes),
        "workloads": list(plan.workloads),
        "providers": list(plan.providers),
        "repetitions_asked": plan.repetitions,
        "seconds_asked": plan.seconds,
        "arguments": list(arguments),
    }
    record = open_record(folder, KIND, settings)
    dtypes = [getattr(torch, name) for name in plan.dtypes]
    say("what the machine can do: copies and matrix products")
    started = time.monotonic()
    ceilings = measure_ceilings_by_dtype(device, dtypes, tiny=tiny)
    record.put("ceilings", ceilings)
    cases = make_cases(plan, sources, ceilings["gemm_tflops"])
    budget = Budget(plan.seconds + time.monotonic() - started)
    run_cases(
        cases,
        device,
        record,
        budget,
        lambda case: sources[case.model],
        plan.repetitions,
        show,
    )
    if not record.content.get("lost"):
        record.put("ceilings_at_end", measure_ceilings_by_dtype(device, dtypes, tiny=tiny))
    return record
