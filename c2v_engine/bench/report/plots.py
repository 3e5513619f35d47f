"""Pictures of a result: each only where the result has what it shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2v_engine.bench.report.read import Entry, Ratio, Results, dtype_of, kind_of
from c2v_engine.bench.report.tables import method_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "picture_source", "results_digest", "write_pictures"]

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
OURS = "engine"
SOURCE = "Results"
WIDTH, DPI = 8.0, 150
MOST_STAGES = 16
DTYPES = ("bfloat16", "float16", "float32")


def results_digest(content: dict[str, Any]) -> str:
    """The SHA-256 of a file's results, by which a picture says what it was made of."""
    text = json.dumps(content["results"], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def picture_source(path: Path) -> str | None:
    """The digest of the results that a picture was made of; None where it does not say."""
    from PIL import Image

    with Image.open(path) as picture:
        found = picture.info.get(SOURCE)
    return None if found is None else str(found)


def write_pictures(results: Results, folder: Path) -> list[Path]:
    """Write every picture that the result has the data for, the main one last.

    Args:
        results: of a result file.
        folder: is made; pictures in it are replaced.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {SOURCE: results_digest(results.content), "Software": None}
    paths = []
    for name, draw in PICTURES.items():
        figure = draw(results)
        if figure is None:
            continue
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=DPI, metadata=metadata)
        paths.append(path)
    return paths


def draw_stages(results: Results) -> Figure | None:
    """Where the engine's time goes, a panel for each profile."""
    profiled = [entry for entry in results.timed if entry.get("stages")]
    if not profiled:
        return None
    figure = new_figure(results, 0.6 + 0.26 * MOST_STAGES * len(profiled) + 0.5)
    for number, entry in enumerate(profiled):
        axes = figure.add_subplot(len(profiled), 1, number + 1)
        profile = entry["stages"]
        key = "host_s" if profile["device_s"] is None else "device_s"
        stages = sorted(profile["stages"], key=lambda stage: -(stage[key] or 0))[:MOST_STAGES]
        names = [stage["name"] for stage in stages][::-1]
        values = [1e3 * (stage[key] or 0) for stage in stages][::-1]
        where = "host" if key == "host_s" else "device"
        bars = axes.barh(names, values, color=COLOURS[0], label=where)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        if key == "device_s":
            host = [1e3 * stage["host_s"] for stage in stages][::-1]
            axes.barh(names, host, height=0.3, color=COLOURS[1], label="host, launching")
            axes.legend(fontsize=7, frameon=False)
        axes.set_title(
            f"{entry['case']}, {entry['provider']}: {profile['texts']} texts", fontsize=9
        )
        axes.set_xlabel(f"ms on the {where} (tokenise runs in threads beside the rest)", fontsize=8)
        axes.margins(x=0.1)
        tidy(axes)
    return figure


def draw_roofline(results: Results) -> Figure | None:
    """Useful operations a second over operations for each byte of weights."""
    if results.methods or results.copy_gb_per_s is None:
        return None
    points = [
        (intensity, entry)
        for entry in results.timed
        for intensity in (arithmetic_intensity(results, entry),)
        if intensity is not None and results.gemm_tflops(dtype_of(entry))
    ]
    if not points:
        return None
    figure = new_figure(results, 5.2)
    axes = figure.add_subplot()
    spread = [x for x, _ in points]
    reach = [min(spread) / 8, max(spread) * 4]
    dtypes = list(dict.fromkeys(dtype_of(entry) for _, entry in points))
    for dtype, style in zip(dtypes, ("-", "--", ":", "-."), strict=False):
        peak = results.gemm_tflops(dtype)
        assert peak is not None
        ridge = peak * 1e3 / results.copy_gb_per_s
        reach = [min(reach[0], ridge / 4), max(reach[1], ridge * 4)]
        roof = [min(peak * 1e3, results.copy_gb_per_s * x) for x in (reach[0], ridge, reach[1])]
        axes.plot(
            (reach[0], ridge, reach[1]),
            roof,
            style,
            color="#444444",
            linewidth=1,
            label=f"ceiling, {dtype}",
        )
    kinds = list(dict.fromkeys(kind_of(entry) for _, entry in points))
    for kind, colour, marker in styles(kinds):
        for dtype, fill in zip(dtypes, (colour, "none", "none", "none"), strict=False):
            own = [(x, e) for x, e in points if (kind_of(e), dtype_of(e)) == (kind, dtype)]
            if own:
                axes.scatter(
                    [x for x, _ in own],
                    [1e3 * e["tflops"] for _, e in own],
                    s=30,
                    marker=marker,
                    facecolors=fill,
                    edgecolors=colour,
                    label=f"{kind} {dtype}",
                )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("useful operations for each byte of weights, read once a call")
    axes.set_ylabel("useful GFLOP/s")
    in_full(axes.xaxis, (1.0,))
    in_full(axes.yaxis)
    axes.set_title("Useful operations against what the machine can do", fontsize=10)
    beside(axes)
    tidy(axes)
    return figure


def draw_throughput(results: Results) -> Figure | None:
    """Tokens a second of every provider, over the workloads, a panel for each model and dtype."""
    if results.methods or not results.timed:
        return None
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in results.timed:
        dtype = case_dtype(entry) if case_is_named(entry) else ""
        groups.setdefault((model_of(entry), dtype), []).append(entry)
    figure = new_figure(results, 0.5 + 2.9 * len(groups))
    for number, ((model, dtype), entries) in enumerate(groups.items()):
        axes = figure.add_subplot(len(groups), 1, number + 1)
        cases = list(dict.fromkeys(workload_of(entry) for entry in entries))
        providers = list(dict.fromkeys(str(entry["provider"]) for entry in entries))
        for provider, colour, marker in styles(providers):
            own = {workload_of(e): e["tokens_per_s"] for e in entries if e["provider"] == provider}
            places = [cases.index(case) for case in own]
            axes.plot(
                places,
                list(own.values()),
                marker,
                color=colour,
                markersize=5,
                label=provider,
            )
            lengths = [case for case in own if case.isdecimal()]  # a line only where there is order
            axes.plot(
                [cases.index(case) for case in lengths],
                [own[case] for case in lengths],
                color=colour,
                linewidth=1.2,
            )
        axes.set_xticks(range(len(cases)), cases)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel("tokens/s")
        axes.set_xlim(-0.4, len(cases) - 0.6)
        axes.set_title(", ".join(filter(None, (model, dtype))), fontsize=10)
        beside(axes)
        tidy(axes)
    return figure


def draw_peers(results: Results) -> Figure | None:
    """How many times as fast as each peer the engine is, by case, a panel for each model."""
    found = [
        (entry, Ratio.of(ours, entry))
        for entry in results.timed
        for ours in (results.engine_of(entry),)
        if ours is not None and kind_of(entry) not in (OURS, "device") and not results.methods
    ]
    if not found:
        return None
    models = list(dict.fromkeys(model_of(entry) for entry, _ in found))
    rivals = list(dict.fromkeys(kind_of(entry) for entry, _ in found))
    bars = {m: len([e for e, _ in found if model_of(e) == m]) for m in models}
    figure = new_figure(results, 0.9 + sum(0.9 + 0.24 * count for count in bars.values()))
    panels = figure.subplots(
        len(models), 1, squeeze=False, sharex=True, height_ratios=[2 + bars[m] for m in models]
    )[:, 0]
    for axes, model in zip(panels, models, strict=True):
        own = [(entry, ratio) for entry, ratio in found if model_of(entry) == model]
        place, ticks = 0.0, []
        for case in dict.fromkeys(str(entry["case"]) for entry, _ in own):
            first = place
            for entry, ratio in own:
                if entry["case"] != case:
                    continue
                colour = COLOURS[1:][rivals.index(kind_of(entry)) % (len(COLOURS) - 1)]
                axes.barh(
                    place,
                    ratio.median,
                    color=colour,
                    xerr=[[ratio.median - ratio.least], [ratio.most - ratio.median]],
                    error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
                )
                label = f"{ratio.median:.1f}  {label_of(entry)}"
                axes.text(ratio.most, place, f"  {label}", va="center", fontsize=7)
                place += 1
            ticks.append(((first + place - 1) / 2, "\n".join(case.split("/")[1:])))
            place += 0.7
        axes.axvline(1, color="#444444", linewidth=1)
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(model, fontsize=10)
        axes.set_xlim(0, 1.35 * max(ratio.most for _, ratio in found))
        tidy(axes)
    panels[-1].set_xlabel(
        "times as fast as the peer the engine is (thin lines: the range of the repetitions)"
    )
    return figure


def draw_methods(results: Results) -> Figure | None:
    """Rows and time of a text over its length, a line for each method, a row for each model."""
    from matplotlib.ticker import NullFormatter

    if not results.methods or not results.timed:
        return None
    models = list(dict.fromkeys(str(entry["model"]) for entry in results.timed))
    figure = new_figure(results, 0.8 + 3.4 * len(models), 10.0)
    panels = figure.subplots(len(models), 2, squeeze=False)
    for (rows_axes, time_axes), model in zip(panels, models, strict=True):
        rows = method_rows(results, model)
        methods = list(dict.fromkeys(row["method"] for row in rows))
        for axes, key, label in (
            (rows_axes, "rows", "decoder rows of a text"),
            (time_axes, "ms", "ms a text, encoder and all"),
        ):
            for method, colour, marker in styles(methods):
                own = [row for row in rows if row["method"] == method]
                axes.plot(
                    [row["text_tokens"] for row in own],
                    [row[key] for row in own],
                    marker=marker,
                    color=colour,
                    linewidth=1.2,
                    markersize=5,
                    label=method,
                )
            axes.set(xscale="log", yscale="log")
            lengths = list(dict.fromkeys(row["text_tokens"] for row in rows))
            axes.set_xticks(lengths, [str(length) for length in lengths])
            axes.xaxis.set_minor_formatter(NullFormatter())
            in_full(axes.yaxis)
            axes.set_xlabel("tokens of the text")
            axes.set_ylabel(label)
            axes.set_title(model, fontsize=10)
            tidy(axes)
        beside(time_axes)
    return figure


PICTURES: dict[str, Callable[[Results], Figure | None]] = {
    "stages": draw_stages,
    "roofline": draw_roofline,
    "throughput": draw_throughput,
    "peers": draw_peers,
    "methods": draw_methods,
}
"""By the names of their files, in the order in which they are written."""


def new_figure(results: Results, height: float, width: float = WIDTH) -> Figure:
    """A white page with what was measured, where and when in small letters at its foot."""
    from matplotlib.figure import Figure as MatplotlibFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    foot = 0.25 / (height + 0.3)
    layout = ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot))
    figure = MatplotlibFigure(figsize=(width, height + 0.3), layout=layout)
    figure.text(0.01, foot / 4, "  |  ".join(results.headline()), fontsize=6, color="#555555")
    return figure


def styles(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """A colour and a marker for each name."""
    return [
        (name, COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, name in enumerate(names)
    ]


def tidy(axes: Axes) -> None:
    """Small letters, faint grid, no box."""
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def in_full(axis: Axis, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """A logarithmic axis with some steps of every decade, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def beside(axes: Axes) -> None:
    """The legend, right of the axes."""
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def arithmetic_intensity(results: Results, entry: Entry) -> float | None:
    """Useful operations for each byte of weights, where every call reads these once.

    More is read where a call has several batches, and activations are read too, as far as they do
    not fit in a cache: a point stands at most so far right.
    """
    model = results.content.get("models", {}).get(model_of(entry), {})
    stored = float(model.get("weight_bytes") or 0)
    if not stored:
        return None
    return float(entry["operations"]) / (stored * float(entry.get("calls") or 1))


def label_of(entry: Entry) -> str:
    """Of a provider, with its dtype where that is not the case's."""
    name = str(entry["provider"])
    return name.replace(f" {case_dtype(entry)}", "") if case_is_named(entry) else name


def model_of(entry: Entry) -> str:
    """Of its case."""
    return str(entry.get("model") or str(entry["case"]).split("/")[0])


def workload_of(entry: Entry) -> str:
    """Of its case: what stands between the model and the dtype."""
    parts = str(entry["case"]).split("/")[1:]
    return "/".join(part for part in parts if part != case_dtype(entry)) or str(entry["case"])


def case_is_named(entry: Entry) -> bool:
    """Whether a case is named for a dtype."""
    return str(entry["case"]).split("/")[-1] in DTYPES


def case_dtype(entry: Entry) -> str:
    """The dtype that a case is named for, or the provider's."""
    return str(entry["case"]).split("/")[-1] if case_is_named(entry) else dtype_of(entry)
