"""Results as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from c2v_engine.bench.report.read import Entry, Ratio, Results, dtype_of, kind_of
from c2v_engine.bench.stages import stage_table

__all__ = ["entry_line", "method_rows", "summary_lines"]

OUR_METHOD = "causal2vec"
PLAINEST = "last-token"
MEBI = 2**20


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
    peaks = results.content["ceilings"]["gemm_tflops"]
    names = peaks if isinstance(peaks, dict) else [results.content["ceilings"].get("dtype", "")]
    for name in names:
        peak = results.gemm_tflops(name)
        lines.append(f"multiplies {name} matrices at {flops(peak)}" if peak else "")
    return [line for line in lines if line]


def case_lines(results: Results, case: str) -> list[str]:
    """The providers of a case."""
    entries = results.of_case(case)
    first = next((entry for entry in entries if entry["status"] == "ok"), None)
    head = case
    if first is not None:
        head += f": {first['texts']} texts, {first['decoder_tokens']} rows a call"
    columns = (
        f"  {'':<34}{'texts/s':>10}{'tokens/s':>11}{'useful':>13}{'of GEMM':>9}"
        f"{'added memory':>14}  the engine is"
    )
    lines = [head, *([columns] if first is not None else [])]
    for entry in entries:
        if entry["status"] != "ok":
            provider = entry.get("provider", "")
            lines.append(f"  {provider:<34}{entry['status']}: {entry.get('reason', '')}")
            continue
        part = results.of_gemm(entry)
        memory = entry.get("device_added_bytes", entry.get("host_added_bytes"))
        lines.append(
            f"  {entry['provider']:<34}{entry['texts_per_s']:>10,.1f}"
            f"{entry['tokens_per_s']:>11,.0f}{flops(entry['tflops']):>13}"
            f"{'' if part is None else f'{part:.1%}':>9}"
            f"{'' if memory is None else f'{memory / MEBI:,.0f} MiB':>14}"
            f"  {advantage(results, entry)}"
        )
    return lines


def advantage(results: Results, entry: Entry) -> str:
    """How many times as fast as a provider the engine is, in the same dtype where it can."""
    ours = results.engine_of(entry)
    if ours is None or ours is entry or kind_of(entry) == "device":
        return ""
    ratio = Ratio.of(ours, entry)
    return f"{ratio.median:.2f} times as fast ({ratio.least:.2f} to {ratio.most:.2f})"


def method_rows(results: Results, model: str) -> list[Entry]:
    """What each method costs at each length, relative to the dearest and to the plainest.

    Returns:
        For each entry ``method``, ``text_tokens``, ``rows`` and ``ms`` of a text, and of either
        ``..._of_dearest`` and ``..._of_plainest`` (None where that was not timed).
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
        for key in ("rows", "ms"):
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
            lines.append(
                f"  {'':<22}{'rows':>8}{'of dearest':>12}{'of plainest':>13}"
                f"{'ms a text':>12}{'of dearest':>12}{'of plainest':>13}"
            )
            lines += [method_line(row) for row in rows if row["text_tokens"] == length]
    for entry in results.entries:
        if entry["status"] != "ok":
            method = entry.get("method", "")
            lines.append(f"{entry['case']}, {method}: {entry['status']}: {entry.get('reason', '')}")
    return lines


def method_line(row: Entry) -> str:
    """One method at one length."""

    def of(key: str) -> Sequence[str]:
        plain = row[f"{key}_of_plainest"]
        return (f"{row[f'{key}_of_dearest']:.0%}", "" if plain is None else f"{plain:.2f}")

    return (
        f"  {row['method']:<22}{row['rows']:>8,.1f}{of('rows')[0]:>12}{of('rows')[1]:>13}"
        f"{row['ms']:>12,.2f}{of('ms')[0]:>12}{of('ms')[1]:>13}"
    )


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
