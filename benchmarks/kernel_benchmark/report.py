"""Results as lines and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["line", "table", "verdict"]


def line(entry: dict[str, Any]) -> str:
    """One entry in one line."""
    head = f"{entry['case']:<52} {entry.get('provider', ''):<13}"
    if entry["status"] != "ok":
        return f"{head} {entry['status']}: {entry.get('reason', '')}"
    text = (
        f"{head} {entry['median_ms'] * 1e3:>9.1f} us +-{entry['spread_ms'] * 1e3:<7.1f}"
        f"{entry['gb_per_s']:>7.0f} GB/s {entry['fraction_of_copy']:>6.1%} of copy"
    )
    if "tflops" in entry:
        text += f" {entry['tflops']:>7.2f} TFLOP/s {entry['fraction_of_gemm']:>6.1%} of GEMM"
    return text


def table(entries: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each case: our median and rate, and how many times as long the others take."""
    by_case: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        by_case.setdefault(entry["case"], {})[entry.get("provider", "")] = entry
    lines = [f"{'case':<52}{'ours us':>10}{'GB/s':>7}{'of copy':>9}  others, times ours"]
    for case, providers in by_case.items():
        own = providers.get("ours", {})
        if own.get("status") != "ok":
            lines.append(f"{case:<52}{own.get('status', 'failed'):>10}")
            continue
        others = "  ".join(
            f"{name} {entry['median_ms'] / own['median_ms']:.2f}"
            for name, entry in providers.items()
            if name != "ours" and entry["status"] == "ok"
        )
        lines.append(
            f"{case:<52}{own['median_ms'] * 1e3:>10.1f}{own['gb_per_s']:>7.0f}"
            f"{own['fraction_of_copy']:>9.1%}  {others}"
        )
    return lines


def verdict(content: dict[str, Any]) -> list[str]:
    """What is wrong with a run's results: nothing, where every provider that ran agrees.

    Only ours is held to run; another that fails is theirs to mend, but a wrong result is a finding
    wherever it comes from.
    """
    found = [
        f"{entry['case']}, {entry.get('provider', '')}: {entry['status']}: {entry['reason']}"
        for entry in content.get("results", [])
        if entry["status"] in ("wrong", "crashed")
        or (entry["status"] != "ok" and entry.get("provider", "ours") == "ours")
    ]
    if not content.get("results"):
        found.append("nothing was measured")
    return found


def summary(content: dict[str, Any]) -> Sequence[str]:
    """The end of a run: its table, what was cut, what is wrong."""
    lines = table(content.get("results", []))
    cut = content.get("cut")
    if cut:
        lines.append(f"cut after {cut['after_s']} s, {len(cut['not_measured'])} cases left")
    return lines + verdict(content)
