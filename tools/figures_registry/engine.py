"""Figures of the engine benchmark within text, for README.md and docs/benchmarks.md.

``run`` is a name of ``results.RUNS``, ``case`` and ``provider`` are the file's; providers may be
given in the short words of ``PROVIDERS``.
"""

from __future__ import annotations

import statistics

from figures_registry.formats import rounded
from figures_registry.registry import figure
from figures_registry.results import Content, commit, read, setting

PROVIDERS = {
    "engine": "engine bfloat16",
    "device": "device bfloat16",
    "float8": "engine float8",
    "int8": "engine int8",
    "padded": "padded bfloat16",
    "packed": "packed bfloat16",
    "no-graphs": "engine bfloat16 no-graphs",
    "unshared": "engine bfloat16 unshared",
    "deterministic": "engine bfloat16 deterministic",
}


def entry(run: str, case: str, provider: str = "engine") -> Content:
    """What was timed.

    Raises:
        LookupError: nothing was, or it failed.
    """
    name = PROVIDERS.get(provider, provider)
    for found in read(run)["results"]:
        if (found["case"], found["provider"], found["status"]) == (case, name, "ok"):
            return dict(found)
    raise LookupError(f"{run} has timed no {name} at {case}")


def peak_tflops(run: str) -> float:
    """Of the matrix product, the better of before and after."""
    return max(float(found["gemm_tflops"]) for found in _ceilings(run))


def copy_gb_per_s(run: str) -> float:
    """Of a copy, the better of before and after."""
    return max(float(found["copy_gb_per_s"]) for found in _ceilings(run))


def ratios(run: str, case: str, fast: str, slow: str) -> list[float]:
    """How many times as long ``slow`` takes, in each repetition."""
    slow_s, fast_s = (entry(run, case, name)["seconds"] for name in (slow, fast))
    return [a / b for a, b in zip(slow_s, fast_s, strict=True)]


def fraction(run: str, case: str, provider: str = "engine") -> float:
    """Useful operations as a fraction of the matrix product's."""
    return float(entry(run, case, provider)["tflops"]) / peak_tflops(run)


def reading_s(run: str, model: str) -> float:
    """Seconds to read all weights once, as fast as memory is copied."""
    return float(read(run)["models"][model]["weight_bytes"]) / copy_gb_per_s(run) / 1e9


def one_text(run: str, model: str, provider: str = "engine") -> Content:
    """The entry of one text of 16 tokens at a time."""
    return entry(run, f"{model}/16/one text", provider)


@figure
def machine_of(run: str) -> str:
    """Machine, releases and commit."""
    content = read(run)
    return f"{setting(content)}, commit {commit(content)}"


@figure
def peak(run: str) -> str:
    """TFLOP/s of the matrix product."""
    return rounded(peak_tflops(run))


@figure
def texts_per_s(run: str, case: str, provider: str = "engine") -> str:
    """Texts a second."""
    return rounded(entry(run, case, provider)["texts_per_s"])


@figure
def tokens_per_s(run: str, case: str, provider: str = "engine") -> str:
    """Tokens a second."""
    return rounded(entry(run, case, provider)["tokens_per_s"])


@figure
def of_product(run: str, case: str, provider: str = "engine", digits: str = "1") -> str:
    """Percent of the matrix product's rate."""
    return f"{fraction(run, case, provider):.{digits}%}"


@figure
def times(run: str, case: str, fast: str, slow: str, digits: str = "2") -> str:
    """How many times as long ``slow`` takes: the median of the repetitions'."""
    return f"{statistics.median(ratios(run, case, fast, slow)):.{digits}f}"


@figure
def of_device(run: str, case: str) -> str:
    """Speed from texts to vectors on the host, as a fraction of the model's alone."""
    return f"{statistics.median(ratios(run, case, 'engine', 'device')):.1%}"


@figure
def cosine(run: str, case: str, provider: str, which: str = "mean") -> str:
    """``mean`` or ``min`` of the cosines to bfloat16."""
    return f"{entry(run, case, provider)[f'cosine_{which}']:.4f}"


@figure
def seconds_ms(run: str, case: str, provider: str = "engine") -> str:
    """Milliseconds of the call over all texts."""
    return f"{entry(run, case, provider)['median_s'] * 1e3:,.0f}"


@figure
def around_model_ms(run: str, case: str) -> str:
    """Milliseconds by which the whole takes longer than the model alone."""
    whole, alone = (entry(run, case, name)["median_s"] for name in ("engine", "device"))
    return f"{(whole - alone) * 1e3:.0f}"


@figure
def rows_ms(run: str, case: str, rows: str) -> str:
    """Milliseconds of the model alone for so many rows, at its rate."""
    return f"{int(rows) / entry(run, case, 'device')['tokens_per_s'] * 1e3:.0f}"


@figure
def one_text_ms(run: str, model: str, provider: str = "engine") -> str:
    """Milliseconds of one text of 16 tokens."""
    return rounded(one_text(run, model, provider)["call_s"] * 1e3)


@figure
def one_text_cpu_ms(run: str, model: str) -> str:
    """Processor time of one text of 16 tokens, in milliseconds."""
    found = one_text(run, model)
    return rounded(statistics.median(found["cpu_seconds"]) / found["calls"] * 1e3)


@figure
def without_graphs(run: str, *models: str) -> str:
    """From how many to how many times as long one text takes without CUDA graphs."""
    slow = [
        one_text(run, model, "no-graphs")["call_s"] / one_text(run, model)["call_s"]
        for model in models
    ]
    return f"{min(slow):.1f} to {max(slow):.1f}"


@figure
def over_reading(run: str, model: str) -> str:
    """One text's time over that of reading all weights once."""
    return f"{one_text(run, model)['call_s'] / reading_s(run, model):.2f}"


@figure
def reading_ms(run: str, model: str) -> str:
    """Milliseconds to read all weights once."""
    return f"{reading_s(run, model) * 1e3:.1f}"


@figure
def padded_times(run: str, case: str, factor: str) -> str:
    """So many times the speed of padded batches, as a fraction of the matrix product's rate."""
    return f"{float(factor) * fraction(run, case, 'padded'):.0%}"


def _ceilings(run: str) -> list[Content]:
    content = read(run)
    return [content[key] for key in ("ceilings", "ceilings_at_end") if content.get(key)]
