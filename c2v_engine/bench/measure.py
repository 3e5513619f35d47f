"""A case from texts to entries: providers agree with the first, then they are timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from c2v_engine.bench.budget import Budget
from c2v_engine.bench.case import Case
from c2v_engine.bench.corpus import Corpus
from c2v_engine.bench.machine.memory import PeakMemory
from c2v_engine.bench.machine.trouble import one_line
from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.session import Session
from c2v_engine.bench.stages import profile_stages
from c2v_engine.bench.workloads import Workload, make_workload

__all__ = [
    "BOUNDS",
    "TOO_ALIKE",
    "Agreement",
    "can_tell",
    "compare",
    "describe",
    "figures",
    "judge",
    "measure_case",
    "noted",
    "time_call",
    "troubles",
    "useful_operations",
]

CHECKED_TEXTS = 64
TOO_ALIKE = "vectors of different texts are too alike to tell a wrong provider"
PROFILED_TOKENS = 2**15
MEMORY = ("device_peak_bytes", "device_added_bytes", "host_peak_bytes", "host_added_bytes")


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of the same texts must be, as cosines.

    Attributes:
        mean: over all texts.
        least: of every text.
    """

    mean: float
    least: float


BOUNDS = {
    "float32": Agreement(0.99999, 0.99999),
    "float16": Agreement(0.999, 0.999),
    "bfloat16": Agreement(0.999, 0.999),
    "float8": Agreement(0.998, 0.99),
    "int8": Agreement(0.998, 0.99),
    # Finer than int8, whose scale is a whole row's: here 32 weights share one, and 32 activations.
    "q8_0": Agreement(0.999, 0.995),
}
"""By the provider's dtype."""


def useful_operations(session: Session, workload: Workload) -> float:
    """2 x parameters without embeddings x tokens, of decoder and encoder.

    Padding is no token; a prompt counts with every text, whoever computes it once.
    """
    parameters = session.source.multiplied_parameters
    return 2.0 * (
        parameters("decoder") * workload.decoder_tokens
        + parameters("encoder") * workload.encoder_tokens
    )


def compare(vectors: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Cosine of every text's two vectors, float64 ``[texts]``; NaN where one is not finite."""
    pair = (vectors.double(), expected.double())
    return torch.nn.functional.cosine_similarity(*pair, dim=1)


def can_tell(expected: torch.Tensor, bound: Agreement) -> bool:
    """Whether a text's vector is farther from those of other texts than a bound allows."""
    unit = torch.nn.functional.normalize(expected.double())
    nearest = (unit @ unit.T).fill_diagonal_(-1.0).amax(dim=1)
    return bool(nearest.median() < bound.least)


def measure_case(
    case: Case,
    session: Session,
    corpus: Corpus,
    budget: Budget,
    repetitions: int,
    announce: Callable[[str], None] = lambda provider: None,
) -> list[dict[str, Any]]:
    """Checks and times the providers of a case.

    Args:
        case: the case.
        session: of its model and template.
        corpus: of its texts.
        budget: when it is over, no further repetition begins after the first.
        repetitions: of every provider, after one that is not timed.
        announce: called with the provider that is about to run.

    Returns:
        An entry for each provider, ``status`` telling what became of it: ``ok``, ``wrong`` (it
        disagrees with the first and was not timed), ``failed`` (it raised) or ``unusable``.
    """
    workload = make_workload(
        corpus,
        session.tokenizer,
        case.lengths,
        case.tokens,
        case.prompt_tokens,
        case.texts_per_call,
        prompt=case.prompt,
        texts=case.texts,
    )
    entries = {spec: describe(case, spec, session, workload) for spec in case.specs}
    calls = agreeing_calls(case, session, workload, entries, announce)
    for spec in list(calls):  # compiles, allocates, and lets libraries choose their kernels
        announce(spec.name)
        noted(entries[spec], calls[spec])
        if "status" in entries[spec]:
            del calls[spec]
    announce("timing")
    for number in range(repetitions):
        if number and budget.over:
            break
        for spec, call in list(calls.items()):
            noted(entries[spec], partial(time_call, entries[spec], call, session.device))
            if "status" in entries[spec]:
                del calls[spec]
    for spec in calls:
        provider = session.provider(spec)
        entries[spec].update(status="ok", note=provider.note, **figures(entries[spec]))
        if provider.elsewhere:
            for field in MEMORY:
                entries[spec].pop(field, None)
    if case.stages and case.specs[0] in calls:
        announce("profile")
        note_stages(entries[case.specs[0]], case, session, workload)
    return list(entries.values())


def agreeing_calls(
    case: Case,
    session: Session,
    workload: Workload,
    entries: dict[Spec, dict[str, Any]],
    announce: Callable[[str], None],
) -> dict[Spec, Callable[[], Any]]:
    """What may be timed: the calls of providers whose vectors are the first one's."""
    checked = workload.some(CHECKED_TEXTS)
    expected: torch.Tensor | None = None
    calls: dict[Spec, Callable[[], Any]] = {}
    for spec in case.specs:
        announce(spec.name)
        entry = entries[spec]
        if expected is None and spec is not case.specs[0]:
            entry.update(status="failed", reason="there is nothing to compare its vectors with")
            continue
        found: list[tuple[Provider, torch.Tensor]] = []
        noted(entry, partial(open_and_embed, spec, session, checked, found))
        if not found:
            continue
        provider, vectors = found[0]
        compared = vectors if expected is None else expected
        if not can_tell(compared, BOUNDS[spec.dtype]):
            entry.update(status="failed", reason=TOO_ALIKE)
            continue
        judge(entry, vectors, compared, BOUNDS[spec.dtype])
        if "status" in entry:
            continue
        expected = compared
        noted(entry, partial(prepare, provider, spec, workload, calls))
        if provider.settles and "status" not in entry:
            noted(entry, partial(check_settled, entry, provider, checked, expected, spec))
        if "status" in entry:
            calls.pop(spec, None)
    return calls


def check_settled(
    entry: dict[str, Any],
    provider: Provider,
    workload: Workload,
    expected: torch.Tensor,
    spec: Spec,
) -> None:
    """Judges a provider again, as it has settled to compute: that is what is timed."""
    judge(entry, provider.embed(workload), expected, BOUNDS[spec.dtype])


def open_and_embed(
    spec: Spec, session: Session, workload: Workload, found: list[tuple[Provider, torch.Tensor]]
) -> None:
    """Appends a provider and its vectors."""
    provider = session.provider(spec)
    found.append((provider, provider.embed(workload)))


def prepare(
    provider: Provider,
    spec: Spec,
    workload: Workload,
    calls: dict[Spec, Callable[[], Any]],
) -> None:
    """Adds the call that is timed: what a provider tries and settles comes before it."""
    calls[spec] = provider.prepare(workload)


def note_stages(entry: dict[str, Any], case: Case, session: Session, workload: Workload) -> None:
    """Profiles a case's first provider over a part of its texts; what was timed stays."""
    count = PROFILED_TOKENS * len(workload.texts) // workload.decoder_tokens
    provider = session.provider(case.specs[0])
    try:
        entry["stages"] = profile_stages(provider, session, workload.some(max(1, count)))
    except Exception as error:
        entry["stages_note"] = one_line(error)


def judge(
    entry: dict[str, Any], vectors: torch.Tensor, expected: torch.Tensor, bound: Agreement
) -> None:
    """Notes how near a provider's vectors are, and that it is wrong where they are not."""
    if vectors.shape != expected.shape:
        widths = f"{vectors.shape[-1]} wide, the first one's {expected.shape[-1]}"
        entry.update(status="wrong", reason=f"its vectors are {widths}")
        return
    cosines = compare(vectors, expected)
    mean, least = float(cosines.mean()), float(cosines.min())
    entry.update(cosine_mean=mean, cosine_min=least, checked_texts=len(cosines))
    if not (mean >= bound.mean and least >= bound.least):  # of NaN too
        reason = (
            f"cosines to the first provider are {mean:.5f} on average and {least:.5f} at least, "
            f"under {bound.mean} or {bound.least}"
        )
        entry.update(status="wrong", reason=reason)


def noted(entry: dict[str, Any], call: Callable[[], Any]) -> None:
    """Calls, and notes in the entry what is raised."""
    try:
        call()
    except UnusableError as error:
        entry.update(status="unusable", reason=" ".join(str(error).split()))
    except Exception as error:
        entry.update(status="failed", reason=one_line(error))


def time_call(entry: dict[str, Any], call: Callable[[], Any], device: torch.device) -> None:
    """Appends a repetition to an entry: seconds, the process's CPU seconds, and memory."""
    cuda = device.type == "cuda"
    before = 0
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    memory = PeakMemory()
    cpu, start = time.process_time(), time.perf_counter()
    call()
    entry.setdefault("seconds", []).append(time.perf_counter() - start)
    entry.setdefault("cpu_seconds", []).append(time.process_time() - cpu)
    if cuda:
        peak = torch.cuda.max_memory_allocated(device)
        entry.update(device_peak_bytes=peak, device_added_bytes=peak - before)
    entry["host_peak_bytes"] = max(memory.bytes, entry.get("host_peak_bytes", 0))
    if not memory.whole_process:
        added = memory.bytes - memory.before
        entry["host_added_bytes"] = max(added, entry.get("host_added_bytes", 0))


def describe(case: Case, spec: Spec, session: Session, workload: Workload) -> dict[str, Any]:
    """The fields of an entry that are known before anything runs."""
    return {
        "case": case.name,
        "model": case.model,
        "provider": spec.name,
        "device": session.device.type,
        "texts": len(workload.texts),
        "calls": sum(1 for _ in workload.calls()),
        "decoder_tokens": workload.decoder_tokens,
        "encoder_tokens": workload.encoder_tokens,
        "prompt_tokens": case.prompt_tokens,
        "operations": useful_operations(session, workload),
    }


def figures(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry's repetitions come to."""
    seconds = entry["seconds"]
    median = statistics.median(seconds)
    return {
        "median_s": median,
        "spread_s": max(seconds) - min(seconds),
        "median_cpu_s": statistics.median(entry["cpu_seconds"]),
        "texts_per_s": entry["texts"] / median,
        "tokens_per_s": entry["decoder_tokens"] / median,
        "tflops": entry["operations"] / median / 1e12,
        "call_s": median / entry["calls"],
    }


def troubles(content: dict[str, Any]) -> list[str]:
    """What is wrong with a run's results.

    Only the engine is held to run, and may say that it can not; a wrong result is a finding
    wherever it comes from.
    """
    found = [
        f"{entry['case']}, {entry.get('provider', '')}: {entry['status']}: {entry['reason']}"
        for entry in content.get("results", [])
        if entry["status"] == "wrong"
        or (
            entry["status"] == "failed"
            and entry.get("provider", "engine").startswith(("engine", "device"))
        )
    ]
    if not any(entry["status"] == "ok" for entry in content.get("results", [])):
        found.append("nothing was measured")
    if content.get("lost"):
        found.append(f"the device was lost: {content['lost']}")
    return found
