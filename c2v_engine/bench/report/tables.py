"""Results as lines for a terminal."""

from __future__ import annotations

from c2v_engine.bench.report.read import (
    Entry,
    Ratio,
    Results,
    case_dtype,
    dtype_of,
    kind_of,
    label_of,
    model_of,
    workload_of,
)
from c2v_engine.bench.stages import stage_table

__all__ = [
    "METHOD_COLUMNS",
    "cells",
    "entry_line",
    "method_cells",
    "method_rows",
    "peer_table",
    "summary_lines",
]

OUR_METHOD = "causal2vec"
PLAINEST = "last-token"
TIMES = " times as fast"
MEBI = 2**20
MOST_DRIFT = 0.1  # of a ceiling from one end of a run to the other, on a machine that is steady
METHOD_COLUMNS = (
    "rows",
    "computed",
    "to dearest",
    "to plainest",
    "ms a text",
    "to dearest",
    "to plainest",
)
"""Of the decoder's sequence, and of these computed; of both, and of the time, next to others."""


def summary_lines(results: Results) -> list[str]:
    """All of a result file: where, what the machine can do, every case, what was not measured."""
    lines = [*results.headline(), *ceiling_lines(results)]
    if results.methods:
        lines += method_lines(results)
    else:
        for case in results.cases:
            lines += ["", *case_lines(results, case)]
    for entry in results.timed:
        if entry.get("stages"):
            lines += ["", f"where the time goes: {entry['case']}, {entry['provider']}"]
            lines += stage_table(entry["stages"], results.gemm_tflops(dtype_of(entry)))
    cut = results.content.get("cut")
    if cut:
        names = ", ".join(dict.fromkeys(cut["not_measured"]))
        lines += ["", f"no time was left for: {names} (--seconds gives more)"]
    return lines


def ceiling_lines(results: Results) -> list[str]:
    """What the machine copies and multiplies at best."""
    lines = []
    if results.copy_gb_per_s is not None:
        lines.append(f"copies {results.copy_gb_per_s:.1f} GB/s")
    for name in results.ceiling_dtypes:
        peak, drift = results.gemm_tflops(name), results.drift(name)
        if peak is None:
            continue
        line = f"multiplies {name} matrices at {flops(peak)}"
        if drift > MOST_DRIFT:
            line += f", but at {flops(peak * (1 - drift))} at the other end of the run: not steady"
        lines.append(line)
    return lines


def case_lines(results: Results, case: str) -> list[str]:
    """The providers of a case."""
    entries = results.of_case(case)
    first = next((entry for entry in entries if entry["status"] == "ok"), None)
    head = case
    if first is not None:
        head += f": {first['texts']} texts, {first['decoder_tokens']} rows a call"
    wide = 2 + max(len(str(entry.get("provider", ""))) for entry in entries)
    columns = (
        f"  {'':<{wide}}{'texts/s':>10}{'tokens/s':>11}{'useful':>15}{'of GEMM':>9}"
        f"{'added memory':>14}{'cosine':>9}  the engine is"
    )
    lines = [head, *([columns] if first is not None else [])]
    for entry in entries:
        if entry["status"] != "ok":
            provider = entry.get("provider", "")
            lines.append(f"  {provider:<{wide}}{entry['status']}: {entry.get('reason', '')}")
            continue
        texts, tokens, useful, part, memory, cosine, times = cells(results, entry)
        lines.append(
            f"  {entry['provider']:<{wide}}{texts:>10}{tokens:>11}{useful:>15}{part:>9}"
            f"{memory:>14}{cosine:>9}  {times}".rstrip()
        )
    return lines


def cells(results: Results, entry: Entry) -> tuple[str, str, str, str, str, str, str]:
    """What is said of a provider that was timed, beside its name.

    Returns:
        texts/s, tokens/s, useful operations a second, these as a part of the matrix product's,
        memory that the call added, the least cosine to the engine's vectors, and how many times as
        fast the engine is; empty where that is not known.
    """
    part = results.of_gemm(entry)
    memory = entry.get("device_added_bytes", entry.get("host_added_bytes"))
    return (
        f"{entry['texts_per_s']:,.1f}",
        f"{entry['tokens_per_s']:,.0f}",
        flops(entry["tflops"]),
        "" if part is None else f"{part:.1%}",
        "" if memory is None else f"{memory / MEBI:,.0f} MiB",
        f"{entry['cosine_min']:.4f}" if "cosine_min" in entry else "",
        advantage(results, entry),
    )


def advantage(results: Results, entry: Entry) -> str:
    """How many times as fast as a provider the engine is, in the same dtype where it can."""
    ours = results.engine_of(entry)
    if ours is None or ours is entry or kind_of(entry) == "device":
        return ""
    ratio = Ratio.of(ours, entry)
    return f"{ratio.median:.2f}{TIMES} ({ratio.least:.2f} to {ratio.most:.2f})"


def peer_table(results: Results, model: str, dtype: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """How many times as fast as each peer the engine is, on every workload of a model.

    Args:
        results: of a result file.
        model: of the cases.
        dtype: likewise.

    Returns:
        The workloads, and for each peer its label and the ratios with their range; empty where it
        was not timed.
    """
    found = [
        entry
        for entry, _ in results.ratios
        if (model_of(entry), case_dtype(entry)) == (model, dtype)
    ]
    workloads = list(dict.fromkeys(map(workload_of, found)))
    known = {(label_of(entry), workload_of(entry)): advantage(results, entry) for entry in found}
    rows = [
        (
            label,
            *(known.get((label, workload), "").replace(TIMES, "") for workload in workloads),
        )
        for label in dict.fromkeys(map(label_of, found))
    ]
    return workloads, rows


def method_rows(results: Results, model: str) -> list[Entry]:
    """What each method costs at each length, relative to the dearest and to the plainest.

    Returns:
        For each entry ``method``, ``text_tokens``; of a text ``rows`` of the decoder's sequence,
        ``computed`` of these (not those of a prompt that all texts share) and ``ms``; of each of
        the three ``..._of_dearest`` and ``..._of_plainest`` (None where that was not timed).
    """
    timed = [entry for entry in results.timed if entry["model"] == model]
    found: list[Entry] = [
        {
            "method": entry["method"],
            "text_tokens": entry["text_tokens"],
            "rows": entry["decoder_tokens"] / entry["texts"],
            "computed": entry.get("computed_tokens", entry["decoder_tokens"]) / entry["texts"],
            "ms": 1e3 * entry["median_s"] / entry["texts"],
        }
        for entry in timed
    ]
    for row in found:
        same = [other for other in found if other["text_tokens"] == row["text_tokens"]]
        plain = next((other for other in same if other["method"] == PLAINEST), None)
        for key in ("rows", "computed", "ms"):
            row[f"{key}_of_dearest"] = row[key] / max(other[key] for other in same)
            row[f"{key}_of_plainest"] = None if plain is None else row[key] / plain[key]
    return found


def method_lines(results: Results) -> list[str]:
    """The methods' table, by model and length."""
    lines = []
    for model in dict.fromkeys(str(entry["model"]) for entry in results.entries):
        rows = method_rows(results, model)
        for length in dict.fromkeys(row["text_tokens"] for row in rows):
            lines += ["", f"{model}, texts of {length} tokens"]
            lines.append(f"  {'':<22}" + "".join(f"{name:>14}" for name in METHOD_COLUMNS))
            lines += [method_line(row) for row in rows if row["text_tokens"] == length]
    for entry in results.entries:
        if entry["status"] != "ok":
            method = entry.get("method", "")
            lines.append(f"{entry['case']}, {method}: {entry['status']}: {entry.get('reason', '')}")
    return lines


def method_line(row: Entry) -> str:
    """One method at one length."""
    return f"  {row['method']:<22}" + "".join(f"{cell:>14}" for cell in method_cells(row))


def method_cells(row: Entry) -> tuple[str, ...]:
    """What is said of a method at a length, as ``METHOD_COLUMNS`` name it."""
    return (
        f"{row['rows']:,.1f}",
        f"{row['computed']:,.1f}",
        *shares(row, "computed"),
        f"{row['ms']:,.2f}",
        *shares(row, "ms"),
    )


def shares(row: Entry, key: str) -> tuple[str, str]:
    """By how much less it is than the dearest method's, and how many times the plainest's."""
    plain = row[f"{key}_of_plainest"]
    less = 1 - row[f"{key}_of_dearest"]
    return f"-{less:.1%}" if less else "dearest", "" if plain is None else f"{plain:.2f} x"


def entry_line(entry: Entry) -> str:
    """One entry as it comes."""
    head = f"{entry['case']:<42} {entry.get('provider', ''):<32} "
    if entry["status"] != "ok":
        return f"{head}{entry['status']}: {entry.get('reason', '')}"
    return (
        f"{head}{entry['texts_per_s']:>10,.1f} texts/s{entry['tokens_per_s']:>11,.0f} tokens/s"
        f"{flops(entry['tflops']):>14}"
    )


def flops(tflops: float) -> str:
    """A rate in the unit that suits it."""
    return f"{tflops:,.1f} TFLOP/s" if tflops >= 1 else f"{tflops * 1e3:,.0f} GFLOP/s"
