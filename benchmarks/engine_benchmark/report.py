"""Results as lines, and what has become of the goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from c2v_engine.bench.measure import troubles
from c2v_engine.bench.stages import stage_table

__all__ = ["CPU_GOALS", "GOALS", "Goal", "goal_lines", "line", "peak_tflops", "summary"]

Entry = dict[str, Any]
Content = dict[str, Any]

ENGINE, FLOAT8, DEVICE = "engine bfloat16", "engine float8", "device bfloat16"
PADDED, PACKED = "padded bfloat16", "packed bfloat16"
INT8 = "engine int8"
LARGE, MIDDLE, SMALL, BASE = "mistral-7b", "s-llama-1.3b", "qwen2.5-0.5b", "llama-130m"


class MissingError(LookupError):
    """A result that a figure needs and that is not there, and why."""


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted.

    Attributes:
        name: what it is.
        needed: the figure.
        value: finds what was measured.
        unit: ``%``, ``x`` or nothing.
        at_most: whether less is better.
    """

    name: str
    needed: float
    value: Callable[[Content], float]
    unit: str = "x"
    at_most: bool = False

    def text(self, figure: float) -> str:
        """A figure in its unit."""
        if self.unit == "%":
            return f"{figure:.1%}"
        return f"{figure:.2f}x" if self.unit == "x" else f"{figure:.4f}"

    def line(self, content: Content) -> str:
        """Measured, wanted, and held or missed by how much."""
        bound = f"{'<=' if self.at_most else '>='} {self.text(self.needed)}"
        try:
            found = self.value(content)
        except MissingError as error:
            return f"{self.name:<58}{'-':>9}  {bound:<12} not measured: {error}"
        held = found <= self.needed if self.at_most else found >= self.needed
        missed = abs(found - self.needed)
        verdict = "held" if held else f"missed by {self.text(missed)}"
        return f"{self.name:<58}{self.text(found):>9}  {bound:<12} {verdict}"


def entry_of(content: Content, case: str, provider: str) -> Entry:
    """An entry that was timed.

    Raises:
        MissingError: there is none.
    """
    for entry in content.get("results", []):
        if (entry["case"], entry.get("provider")) == (case, provider):
            if entry["status"] != "ok":
                raise MissingError(f"{provider}: {entry['status']}: {entry['reason']}")
            return dict(entry)
    raise MissingError(f"no result of {case}, {provider}")


def peak_tflops(content: Content) -> float:
    """Of the matrix product before and after, the better.

    Raises:
        MissingError: neither was measured.
    """
    taken = [content[key] for key in ("ceilings", "ceilings_at_end") if content.get(key)]
    if not taken:
        raise MissingError("no matrix product was measured")
    return max(float(ceilings["gemm_tflops"]) for ceilings in taken)


def fraction(model: str) -> Callable[[Content], float]:
    """Useful operations of the engine at 128 tokens as a fraction of the matrix product's."""

    def value(content: Content) -> float:
        entry = entry_of(content, f"{model}/128", ENGINE)
        return float(entry["tflops"]) / peak_tflops(content)

    return value


def times(case: str, fast: str, slow: str) -> Callable[[Content], float]:
    """How many times as long one provider takes as another: the median of the repetitions'."""

    def value(content: Content) -> float:
        pair = (entry_of(content, case, name)["seconds"] for name in (slow, fast))
        return float(statistics.median(a / b for a, b in zip(*pair, strict=False)))

    return value


def field(case: str, provider: str, key: str) -> Callable[[Content], float]:
    """A field of an entry."""
    return lambda content: float(entry_of(content, case, provider)[key])


def over_reading(model: str) -> Callable[[Content], float]:
    """One text's latency over the time to read all weights once, as fast as memory is copied."""

    def value(content: Content) -> float:
        entry = entry_of(content, f"{model}/16/one text", ENGINE)
        rates = [
            content[key]["copy_gb_per_s"]
            for key in ("ceilings", "ceilings_at_end")
            if content.get(key)
        ]
        if not rates:
            raise MissingError("no copy was measured")
        reading = content["models"][model]["weight_bytes"] / max(rates) / 1e9
        return float(entry["call_s"] / reading)

    return value


def peers(model: str) -> list[Goal]:
    case = f"{model}/log-normal/peers"
    return [
        Goal(f"{model}, log-normal, against padded batches", 3.0, times(case, ENGINE, PADDED)),
        Goal(f"{model}, log-normal, against packed batches", 1.3, times(case, ENGINE, PACKED)),
    ]


def of_device(model: str) -> Goal:
    value = times(f"{model}/128", ENGINE, DEVICE)
    return Goal(f"{model}, texts to host vectors, of device-only speed", 0.95, value, "%")


GOALS = (
    Goal(f"{LARGE}, 128 tokens, of the bfloat16 GEMM", 0.80, fraction(LARGE), "%"),
    Goal(f"{MIDDLE}, 128 tokens, of the bfloat16 GEMM", 0.65, fraction(MIDDLE), "%"),
    Goal(f"{SMALL}, 128 tokens, of the bfloat16 GEMM", 0.50, fraction(SMALL), "%"),
    Goal(f"{LARGE}, float8 against bfloat16", 1.6, times(f"{LARGE}/128", FLOAT8, ENGINE)),
    Goal(f"{LARGE}, float8, mean cosine", 0.998, field(f"{LARGE}/128", FLOAT8, "cosine_mean"), ""),
    Goal(f"{LARGE}, float8, least cosine", 0.99, field(f"{LARGE}/128", FLOAT8, "cosine_min"), ""),
    *(goal for model in (LARGE, MIDDLE, SMALL) for goal in peers(model)),
    *(of_device(model) for model in (LARGE, MIDDLE, SMALL)),
    Goal(
        f"{LARGE}, one text of 16 tokens, over reading weights",
        1.3,
        over_reading(LARGE),
        at_most=True,
    ),
    Goal(
        f"{LARGE}, prompt of 32 before 16 tokens, shared",
        2.0,
        times(f"{LARGE}/18/prompt 32", ENGINE, f"{ENGINE} unshared"),
    ),
)
"""For a GPU of the H200's class."""

CPU_GOALS = (
    Goal(f"{SMALL}, 128 tokens, of the bfloat16 GEMM", 0.85, fraction(SMALL), "%"),
    Goal(
        f"{BASE}, log-normal, against padded batches",
        2.0,
        times(f"{BASE}/log-normal/peers", ENGINE, PADDED),
    ),
    Goal(f"{SMALL}, int8, mean cosine", 0.998, field(f"{SMALL}/128", INT8, "cosine_mean"), ""),
    Goal(f"{SMALL}, int8, least cosine", 0.99, field(f"{SMALL}/128", INT8, "cosine_min"), ""),
    Goal(f"{SMALL}, int8 against bfloat16", 1.0, times(f"{SMALL}/128", INT8, ENGINE)),
    Goal(
        f"{SMALL}, prompt of 32 before 16 tokens, shared",
        2.0,
        times(f"{SMALL}/18/prompt 32", ENGINE, f"{ENGINE} unshared"),
    ),
)
"""For a CPU with bfloat16 products."""


def goal_lines(content: Content) -> list[str]:
    """A line for each goal of the device."""
    return [
        f"{'goal':<58}{'measured':>9}  {'wanted':<12}",
        *(goal.line(content) for goal in (CPU_GOALS if content.get("device") == "cpu" else GOALS)),
    ]


def line(entry: Entry, gemm_tflops: float | None = None) -> str:
    """One entry in one line."""
    head = f"{entry['case']:<32} {entry.get('provider', ''):<30}"
    if entry["status"] != "ok":
        return f"{head} {entry['status']}: {entry['reason']}"
    text = (
        f"{head} {entry['median_s']:>8.3f} s +-{entry['spread_s']:<6.3f}"
        f"{entry['texts_per_s']:>9.1f} texts/s {entry['tokens_per_s']:>9.0f} tokens/s"
        f"{entry['tflops']:>9.3g} TFLOP/s, {entry['median_cpu_s']:.3f} s of the host's processors"
    )
    if gemm_tflops:
        text += f", {entry['tflops'] / gemm_tflops:.1%} of GEMM"
    if entry["calls"] > 1:
        text += f", {entry['call_s'] * 1e3:.3f} ms a call"
    return text


def summary(content: Content) -> list[str]:
    """The end of a run: every result, the stages, the goals, what was cut, what is wrong."""
    try:
        peak: float | None = peak_tflops(content)
    except MissingError:
        peak = None
    lines = [line(entry, peak) for entry in content.get("results", [])]
    for entry in content.get("results", []):
        if entry.get("stages"):
            lines += ["", f"{entry['case']}, {entry['provider']}"]
            lines += stage_table(entry["stages"], peak)
    lines += ["", *goal_lines(content)]
    cut = content.get("cut")
    if cut:
        lines += ["", f"cut after {cut['after_s']} s: {', '.join(cut['not_measured'])}"]
    return lines + troubles(content)
