"""One case from arguments to result entries: check each provider, then time them in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from c2v_engine.bench.machine.ceilings import Ceilings
from c2v_engine.bench.machine.clock import Timer, make_timer
from c2v_engine.bench.machine.trouble import device_answers, one_line
from kernel_benchmark.agreement import Agreement, check_provider, expected_outputs
from kernel_benchmark.case import Arguments, Case, Provider, Unusable
from kernel_benchmark.providers import all_providers

__all__ = [
    "DeviceLostError",
    "Settings",
    "describe",
    "draw_sets",
    "figures",
    "measure_case",
]


class DeviceLostError(RuntimeError):
    """The GPU refuses every further call of this process, as after an illegal access."""


@dataclass(frozen=True)
class Settings:
    """How every case is measured.

    Attributes:
        device: where.
        ceilings: of this run; fractions are of these.
        repetitions: of every provider.
        cache_bytes: of the device's last cache; arguments are drawn so often that together they are
            three times as large.
        compiler: backend of ``torch.compile``, or None to leave it out.
        announce: called with the provider before it runs, so that a crash can be laid to it.
        backends_only: whether none but the engine's attention backends take part.
        excluded: providers, by their names, that a case does without, and why.
    """

    device: torch.device
    ceilings: Ceilings
    repetitions: int = 30
    cache_bytes: int = 0
    compiler: str | None = "inductor"
    backends_only: bool = False
    announce: Callable[[str], None] = lambda provider: None
    excluded: dict[str, str] = field(default_factory=dict)


def measure_case(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """Checks and times all providers of a case.

    Returns:
        An entry for each, ``status`` telling what became of it: ``ok``, ``wrong`` (it disagrees
        with the reference and was not timed), ``failed`` (it raised), ``unusable`` or ``crashed``
        (it ended the process of an earlier attempt).

    Raises:
        DeviceLostError: the GPU can not go on in this process.
    """
    settings.announce("arguments")
    sets = draw_sets(case, settings)
    entries, agreeing = check_all(case, sets[0], settings)
    timers: dict[str, Timer] = {}
    # Only now: a timer writes to what the checks compare.
    for provider in agreeing:
        settings.announce(provider.name)
        with noted_failure(case, provider, entries[provider.name], settings.device):
            timers[provider.name] = make_timer(provider.call, sets)
    settings.announce("timing")
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(settings.repetitions):
        for name, timer in timers.items():
            times[name].append(timer.repetition())
    spoiled = spoiled_arguments(case, sets)
    for name, timer in timers.items():
        entry = entries[name]
        entry.update(status="ok", timing=timer.method, calls=timer.calls, sets=len(sets))
        entry.update(ms=times[name], **figures(case, times[name], settings.ceilings))
        if timer.note:
            entry["timing_note"] = timer.note
        if spoiled:
            entry.update(status="wrong", reason=f"after the timing {spoiled}")
    return list(entries.values())


def check_all(
    case: Case, arguments: Arguments, settings: Settings
) -> tuple[dict[str, dict[str, Any]], list[Provider]]:
    """An entry for every provider, and the providers that may be timed."""
    expected = expected_outputs(case, arguments)
    entries: dict[str, dict[str, Any]] = {}
    agreeing = []
    compiler = settings.compiler if case.compiled else None
    for provider in all_providers(case, arguments, compiler):
        if settings.backends_only and provider.backend is None:
            continue
        entry = entries[provider.name] = describe(case, provider, settings)
        if isinstance(provider, Unusable):
            entry.update(status="unusable", reason=provider.reason)
        elif provider.name in settings.excluded:
            entry.update(status="crashed", reason=settings.excluded[provider.name])
        else:
            settings.announce(provider.name)
            with noted_failure(case, provider, entry, settings.device):
                agreement = check_provider(case, provider, arguments, expected)
                note_agreement(entry, agreement)
                agreeing += [provider] if agreement.passed else []
    return entries, agreeing


def draw_sets(case: Case, settings: Settings) -> list[Arguments]:
    """Arguments for calls in turn, enough that a cache does not hold what the next call reads."""
    count = max(1, math.ceil(3 * settings.cache_bytes / case.moved_bytes))
    count = 1 if case.moved_bytes >= 3 * settings.cache_bytes else count
    first = case.arguments(settings.device, seed=0)
    kept = {name: first[name] for name in case.op.shared}
    sets = [first]
    for seed in range(1, count):
        sets.append({**case.arguments(settings.device, seed), **kept})
    return sets


@contextmanager
def noted_failure(
    case: Case, provider: Provider, entry: dict[str, Any], device: torch.device
) -> Iterator[None]:
    """Notes in the entry what a provider raises.

    Raises:
        DeviceLostError: it took the GPU with it.
    """
    try:
        yield
    except Exception as error:
        entry.update(status="failed", reason=one_line(error))
        if not device_answers(device):
            raise DeviceLostError(f"{case.name}, {provider.name}: {one_line(error)}") from error


def note_agreement(entry: dict[str, Any], agreement: Agreement) -> None:
    entry.update(error=agreement.error, bound=agreement.bound)
    if not agreement.passed:
        found = f"worst row's relative error is {agreement.error:.2e}, over {agreement.bound:.0e}"
        entry.update(status="wrong", reason=agreement.complaint or found)


def spoiled_arguments(case: Case, sets: Sequence[Arguments]) -> str:
    """What has become of arguments written over and over, where they are no data any more."""
    for arguments in sets:
        for name in case.op.written:
            values: Tensor = arguments[name]
            if not bool(values.isfinite().all()):
                return f"{name} holds values that are not finite"
            if float((values == 0).float().mean()) > 0.5:
                return f"{name} is mostly zeros"
    return ""


def describe(case: Case, provider: Provider | Unusable, settings: Settings) -> dict[str, Any]:
    """The fields of an entry that are known before anything runs."""
    entry: dict[str, Any] = {
        "op": case.op.name if provider.backend is None else "attention",
        "case": case.name,
        "provider": provider.name,
        "shape": case.shape,
        **case.sizes,
        "dtype": str(case.dtype).removeprefix("torch."),
        "bytes": case.moved_bytes,
        "operations": case.operations,
        "device": settings.device.type,
    }
    if isinstance(provider, Provider) and provider.form is not None:
        entry["form"] = provider.form
    if case.op.variant:
        entry["variant"] = case.op.variant
    if provider.backend is not None:
        entry["backend"] = provider.backend
    if "causal" in case.sizes:
        entry["mask"] = "causal" if case.sizes["causal"] else "bidirectional"
    return entry


def figures(case: Case, times: Sequence[float], ceilings: Ceilings) -> dict[str, Any]:
    """Median, spread and rates of some repetitions, as fractions of this run's ceilings too."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (median,) * 3
    rate = case.moved_bytes / median / 1e6
    found = {
        "median_ms": median,
        "spread_ms": high - low,
        "least_ms": min(times),
        "most_ms": max(times),
        "gb_per_s": rate,
        "fraction_of_copy": rate / ceilings.copy_gb_per_s,
    }
    if case.operations is not None:
        tflops = case.operations / median / 1e9
        found.update(tflops=tflops, fraction_of_gemm=tflops / ceilings.gemm_tflops)
    return found
