"""A run over cases: within a budget, every result written as it comes, one model in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from c2v_engine.bench.budget import Budget
from c2v_engine.bench.case import Case
from c2v_engine.bench.machine.trouble import device_answers, one_line
from c2v_engine.bench.measure import measure_case
from c2v_engine.bench.models.source import ModelSource, Part
from c2v_engine.bench.providers.base import Spec
from c2v_engine.bench.record import Record
from c2v_engine.bench.session import Session

__all__ = ["run_cases"]

PARTS: tuple[Part, ...] = ("decoder", "encoder", "projector")


def run_cases(
    cases: Sequence[Case],
    device: torch.device,
    record: Record,
    budget: Budget,
    open_source: Callable[[Case], ModelSource],
    repetitions: int,
    show: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> None:
    """Measures cases one after the other, and notes in the record what was left out and why.

    Args:
        cases: in their order; those of one session that stand together share their providers.
        device: where.
        record: gets ``results``, ``models``, ``running``, ``cut``, where the device refuses to go
            on ``lost``, and ``not_closed``: what providers raised at their end.
        budget: when it is over no case begins.
        open_source: gives the model of a case; asked once for cases of one session that stand
            together.
        repetitions: of every provider.
        show: called with every entry.
    """
    session: Session | None = None
    record.put("cut", None)
    try:
        for number, case in enumerate(cases):
            if budget.over or record.content.get("lost"):
                left = [case.name for case in cases[number:]]
                record.put("cut", {"after_s": round(budget.spent, 1), "not_measured": left})
                break

            def announce(provider: str, case: Case = case) -> None:
                record.put("running", {"case": case.name, "provider": provider})

            announce("session")
            try:
                if number == 0 or cases[number - 1].session != case.session or session is None:
                    session = None
                    free(device)
                    session = Session(open_source(case))
                    note_model(record, case.model, session.source)
                entries = measure_case(case, session, session.corpus, budget, repetitions, announce)
            except Exception as error:
                entry = {"case": case.name, "model": case.model, "provider": "engine"}
                entries = [{**entry, "status": "failed", "reason": one_line(error)}]
            if not device_answers(device):
                record.put("lost", f"in {case.name}")
            record.content["running"] = None
            record.extend("results", entries)
            for each in entries:
                show(each)
            close(session, record, specs_to_come(cases[number + 1 :], case))
    finally:  # cut, lost, stopped by Ctrl-C: processes, servers and folders go all the same
        close(session, record)
    record.put("seconds", round(budget.spent, 1))


def close(session: Session | None, record: Record, keep: Iterable[Spec] = ()) -> None:
    """Closes what no case will ask for; what that raises takes no result with it."""
    if session is None or record.content.get("lost"):  # a lost device answers nobody
        return
    try:
        session.keep(keep)
    except Exception as error:
        record.extend("not_closed", [one_line(error)])


def specs_to_come(rest: Sequence[Case], case: Case) -> set[Spec]:
    """The providers that the next cases of the same session ask for."""
    found: set[Spec] = set()
    for later in rest:
        if later.session != case.session:
            break
        found |= set(later.specs)
    return found


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def note_model(record: Record, name: str, source: ModelSource) -> None:
    """Notes a model's parameters without embeddings, and the bytes of those."""
    counts = {part: source.multiplied_parameters(part) for part in PARTS}
    weight_bytes = sum(counts.values()) * source.description.stored_dtype.itemsize
    models = dict(record.content.get("models", {}))
    models[name] = {"parameters": counts, "weight_bytes": weight_bytes}
    record.put("models", models)
