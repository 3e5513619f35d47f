"""A run over cases: within a budget, every result written as it comes, resumed after a crash."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from c2v_engine.bench.budget import Budget
from c2v_engine.bench.machine.trouble import device_answers, one_line
from c2v_engine.bench.record import Record
from kernel_benchmark.case import Case
from kernel_benchmark.measure import (
    DeviceLostError,
    Settings,
    measure_case,
)

__all__ = ["run_cases"]


def run_cases(
    cases: Sequence[Case],
    settings: Settings,
    record: Record,
    budget: Budget,
    show: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> None:
    """Measures cases one after the other, and notes in the record what was left out and why.

    What the record already holds is not measured again. A provider that lost the GPU in an earlier
    attempt, or ended the process twice, is left out of its case; one that ended it once may have
    been at work when the process was killed, and is tried again.

    Raises:
        DeviceLostError: the GPU refuses further calls; a new process can go on from the record.
    """
    crashes = note_crash(record)
    done = {entry["case"] for entry in record.content.get("results", [])}
    record.put("cut", None)
    for number, case in enumerate(cases):
        if case.name in done:
            continue
        if budget.over:
            left = [case.name for case in cases[number:] if case.name not in done]
            record.put("cut", {"after_s": round(budget.spent, 1), "not_measured": left})
            break
        try:
            entries = attempt_case(case, settings, record, crashes.get(case.name, {}))
            record.content["running"] = None
            record.extend("results", entries)
        except (KeyboardInterrupt, SystemExit):  # stopped, and no fault of what was running
            record.put("running", None)
            raise
        for entry in entries:
            show(entry)
    record.put("seconds", round(record.content.get("seconds", 0.0) + budget.spent, 1))


def attempt_case(
    case: Case, settings: Settings, record: Record, excluded: dict[str, str]
) -> list[dict[str, Any]]:
    """The entries of a case, or one that says why it has none."""

    def announce(provider: str) -> None:
        record.put("running", {"case": case.name, "provider": provider})

    if set(excluded) & {"arguments", "timing"}:
        reason = next(iter(excluded.values()))
        return [{"op": case.op.name, "case": case.name, "status": "crashed", "reason": reason}]
    try:
        return measure_case(
            case, dataclasses.replace(settings, announce=announce, excluded=excluded)
        )
    except Exception as error:
        reason = f"{running(record)}: {one_line(error)}"
        if isinstance(error, DeviceLostError) or not device_answers(settings.device):
            note = {"case": case.name, "provider": running(record), "reason": one_line(error)}
            record.extend("crashes", [note])
            record.put("running", None)
            raise DeviceLostError(f"{case.name}: {reason}") from error
        return [{"op": case.op.name, "case": case.name, "status": "failed", "reason": reason}]


def running(record: Record) -> str:
    current: dict[str, str] = record.content.get("running") or {}
    return current.get("provider", "")


def note_crash(record: Record) -> dict[str, dict[str, str]]:
    """The providers to leave out, by case, and why; what the last process left is noted first."""
    current = record.content.get("running")
    record.content["running"] = None
    if current and current not in record.content.get("interrupted", []):
        record.extend("interrupted", [current])
    elif current:
        record.extend("crashes", [{**current, "reason": "the process ended twice while it ran"}])
    found: dict[str, dict[str, str]] = {}
    for crash in record.content.get("crashes", []):
        found.setdefault(crash["case"], {})[crash["provider"]] = crash["reason"]
    return found
