"""Pictures of a result: each only where the result has what it shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2v_engine.bench.report.read import (
    OURS,
    Entry,
    Ratio,
    Results,
    case_dtype,
    case_is_named,
    dtype_of,
    kind_of,
    label_of,
    model_of,
    workload_of,
)
from c2v_engine.bench.report.style import (
    COLOURS,
    DPI,
    Look,
    beside,
    in_full,
    looks,
    looks_of,
    new_figure,
    point_out,
    tidy,
)
from c2v_engine.bench.report.tables import OUR_METHOD, method_rows
from c2v_engine.bench.stages import OTHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "picture_source", "results_digest", "whole_or_none", "write_pictures"]

SOURCE = "Results"
LEAST_PART = 0.001  # of the time of a pass: a stage under it is no bar
LEAST_TFLOPS = 10  # of a ceiling that is drawn in TFLOP/s, not in GFLOP/s
BAR = 0.22  # inches
LEAST_EXTENT = 4.0  # bars, of a panel
GAP = 0.7  # bars, between the groups of them
LINES = ("-", "--", ":", "-.")
SHARED_PROMPT = "counted for each text, computed once: a shared prompt"


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
        folder: is made; pictures in it are replaced, those that the result has no data for too.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: a picture can not be written; no part of it is left.
    """
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    metadata = {SOURCE: results_digest(results.content), "Software": None}
    paths = []
    for name, draw in PICTURES.items():
        path = folder / f"{name}.png"
        with rc_context({"text.parse_math": False}):  # a name may have dollar signs
            figure = draw(results)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            with whole_or_none(path):
                figure.savefig(path, dpi=DPI, metadata=metadata)
        paths.append(path)
    return paths


@contextmanager
def whole_or_none(path: Path) -> Iterator[None]:
    """Remove what is written of a file where that fails, as on a full disk, and name the file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        if path.is_file():
            path.unlink()
        raise


def draw_stages(results: Results) -> Figure | None:
    """Where the engine's time goes, a panel for each profile."""
    profiled = [entry for entry in results.timed if entry.get("stages")]
    if not profiled:
        return None
    shown = [shown_stages(entry["stages"]) for entry in profiled]
    rows = [max(len(stages), 4) for stages in shown]
    figure = new_figure(results, sum(0.9 + BAR * count for count in rows))
    panels = figure.subplots(
        len(profiled), 1, squeeze=False, height_ratios=[2 + count for count in rows]
    )[:, 0]
    for axes, entry, stages in zip(panels, profiled, shown, strict=True):
        profile = entry["stages"]
        key = "host_s" if profile["device_s"] is None else "device_s"
        names = [stage["name"] for stage in stages]
        where = "host" if key == "host_s" else "device"
        bars = axes.barh(
            names, [1e3 * stage[key] for stage in stages], color=COLOURS[0], label=where
        )
        axes.bar_label(bars, fmt=millis, padding=2, fontsize=7)
        if key == "device_s":
            host = [1e3 * stage["host_s"] for stage in stages]
            axes.barh(names, host, height=0.3, color=COLOURS[4], label="host")
            axes.legend(fontsize=7, frameon=False, loc="lower right")
        left = len(profile["stages"]) - len(stages)
        axes.set_ylim(-0.7, len(stages) - 0.3)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(
            f"{entry['case']}, {entry['provider']}: {profile['texts']} texts"
            + (f" (stages under {LEAST_PART:.1%} left out: {left})" if left else "")
        )
        axes.set_xlabel(
            f"ms{' on the host' if where == 'host' else ''} (tokenise: in threads beside the rest)"
        )
        axes.margins(x=0.1)
        tidy(axes)
        axes.grid(visible=False, axis="y")
    return figure


def millis(value: float) -> str:
    """A bar's label, where there is a bar."""
    return f"{value:,.1f}" if value >= 0.05 else ""


def shown_stages(profile: Mapping[str, Any]) -> list[Entry]:
    """The stages that a picture shows, shortest first.

    What the host does in no stage while a device works is waiting, and not shown.
    """
    wall = profile["wall_s"]
    if profile["device_s"] is None:
        found = [stage for stage in profile["stages"] if stage["host_s"] >= LEAST_PART * wall]
        return sorted(found, key=lambda stage: float(stage["host_s"]))
    found = [
        stage
        for stage in profile["stages"]
        if stage["device_s"] >= LEAST_PART * wall
        or (stage["name"] != OTHER and stage["host_s"] >= LEAST_PART * wall)
    ]
    return sorted(found, key=lambda stage: float(stage["device_s"]))


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
    dtypes = list(dict.fromkeys(dtype_of(entry) for _, entry in points))
    peaks = {dtype: results.gemm_tflops(dtype) or 0.0 for dtype in dtypes}
    unit, scale = ("TFLOP/s", 1.0) if max(peaks.values()) >= LEAST_TFLOPS else ("GFLOP/s", 1e3)
    ridges = {dtype: 1e3 * peak / results.copy_gb_per_s for dtype, peak in peaks.items()}
    reached = [*ridges.values(), *(x for x, _ in points)]
    ends = min(reached) / 4, max(reached) * 4
    for dtype, style in zip(dtypes, LINES, strict=False):
        corners = (ends[0], ridges[dtype], ends[1])
        roof = [scale * peaks[dtype] * min(1.0, x / ridges[dtype]) for x in corners]
        axes.plot(corners, roof, style, color="#444444", linewidth=1, label=f"ceiling, {dtype}")
    draw_points(axes, points, looks(results), scale)
    middle = (ends[0] * ends[1]) ** 0.5
    for x, entry in points:
        if entry.get("prompt_tokens") and entry["tflops"] > peaks[dtype_of(entry)]:
            point_out(axes, SHARED_PROMPT, (x, scale * entry["tflops"]), leftward=x > middle)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("useful operations for each byte of weights, read once a call")
    axes.set_ylabel(f"useful {unit}")
    in_full(axes.xaxis, (1.0,))
    in_full(axes.yaxis)
    axes.set_title("Useful operations against what the machine can do")
    beside(axes)
    tidy(axes)
    return figure


def draw_points(
    axes: Axes, points: Sequence[tuple[float, Entry]], known: dict[str, Look], scale: float
) -> None:
    """Points of every provider; those of other dtypes than the first one's are hollow."""
    for provider in dict.fromkeys(entry["provider"] for _, entry in points):
        own = [(x, entry) for x, entry in points if entry["provider"] == provider]
        first = own[0][1]
        colour, marker = known[label_of(first)]
        axes.scatter(
            [x for x, _ in own],
            [scale * entry["tflops"] for _, entry in own],
            s=30,
            marker=marker,
            facecolors=colour if dtype_of(first) == dtype_of(points[0][1]) else "none",
            edgecolors=colour,
            label=provider,
            zorder=3 if kind_of(first) == OURS else 2,
        )


def draw_throughput(results: Results) -> Figure | None:
    """Tokens a second of every provider, over the workloads, a panel for each model and dtype."""
    if results.methods or not results.timed:
        return None
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in results.timed:
        groups.setdefault((model_of(entry), panel_dtype(entry)), []).append(entry)
    found = looks(results)
    figure = new_figure(results, 0.5 + 2.9 * len(groups))
    for number, ((model, dtype), entries) in enumerate(groups.items()):
        axes = figure.add_subplot(len(groups), 1, number + 1)
        cases = list(dict.fromkeys(workload_of(entry) for entry in entries))
        labels = list(dict.fromkeys(map(label_of, entries)))
        step = min(0.04, 0.5 / len(labels))  # beside each other, or equals would hide each other
        for number, label in enumerate(labels):
            own = {workload_of(e): e["tokens_per_s"] for e in entries if label_of(e) == label}
            aside = step * (number - (len(labels) - 1) / 2)
            colour, marker = found[label]
            axes.plot(
                [cases.index(case) + aside for case in own],
                list(own.values()),
                marker,
                color=colour,
                markersize=5,
                label=label,
            )
            lengths = [case for case in own if case.isdecimal()]  # a line only where there is order
            axes.plot(
                [cases.index(case) + aside for case in lengths],
                [own[case] for case in lengths],
                color=colour,
                linewidth=1.2,
            )
        axes.set_xticks(range(len(cases)), [case.replace("/", "\n") for case in cases])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel("tokens/s")
        axes.set_xlim(-0.4, len(cases) - 0.6)
        axes.set_title(", ".join(filter(None, (model, dtype))))
        beside(axes)
        tidy(axes)
    return figure


def draw_peers(results: Results) -> Figure | None:
    """How many times as fast as each peer the engine is, by case, a panel for each model."""
    found = results.ratios
    if not found:
        return None
    models = list(dict.fromkeys(model_of(entry) for entry, _ in found))
    dtypes = list(dict.fromkeys(panel_dtype(entry) for entry, _ in found))
    groups = {
        (model, dtype): [
            (entry, ratio)
            for entry, ratio in found
            if (model_of(entry), panel_dtype(entry)) == (model, dtype)
        ]
        for model in models
        for dtype in dtypes
    }
    extents = [
        max(LEAST_EXTENT, *(extent(groups[model, dtype]) for dtype in dtypes)) for model in models
    ]
    figure = new_figure(results, sum(0.9 + BAR * each for each in extents), 5.0 + 3.0 * len(dtypes))
    panels = figure.subplots(
        len(models),
        len(dtypes),
        squeeze=False,
        sharex=True,
        height_ratios=[2 + each for each in extents],
    )
    right = (1.4 if len(dtypes) == 1 else 1.6) * max(ratio.most for _, ratio in found)
    for (model, dtype), axes in zip(groups, panels.flat, strict=True):
        draw_ratios(axes, groups[model, dtype], looks(results))
        axes.set_title(", ".join(filter(None, (model, dtype))))
        axes.set_xlim(0, right)
        tidy(axes)
        axes.grid(visible=False, axis="y")
    for axes in panels[-1]:
        axes.set_xlabel("times as fast as the peer the engine is (lines: least to most)")
    return figure


def draw_ratios(axes: Axes, found: Sequence[tuple[Entry, Ratio]], known: dict[str, Look]) -> None:
    """A bar for each peer, in groups for each workload."""
    place, ticks = 0.0, []
    for workload in dict.fromkeys(workload_of(entry) for entry, _ in found):
        first = place
        for entry, ratio in found:
            if workload_of(entry) != workload:
                continue
            axes.barh(
                place,
                ratio.median,
                color=known[kind_of(entry)].colour,
                xerr=[[ratio.median - ratio.least], [ratio.most - ratio.median]],
                error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            )
            label = f"{ratio.median:.1f}  {label_of(entry)}"
            axes.text(ratio.most, place, f"  {label}", va="center", fontsize=7)
            place += 1
        ticks.append(((first + place - 1) / 2, workload.replace("/", "\n")))
        place += GAP
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    place -= GAP
    aside = max(LEAST_EXTENT - place, 0.0) / 2
    axes.set_ylim(place - 0.3 + aside, -0.7 - aside)


def extent(found: Sequence[tuple[Entry, Ratio]]) -> float:
    """How many bars high a panel is, gaps between the groups with them."""
    return len(found) + GAP * max(len({workload_of(entry) for entry, _ in found}) - 1, 0)


def panel_dtype(entry: Entry) -> str:
    """What a case is named for, if it is."""
    return case_dtype(entry) if case_is_named(entry) else ""


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
            (rows_axes, "computed", "decoder rows computed for a text"),
            (time_axes, "ms", "ms for a text, encoder and all"),
        ):
            for method, (colour, marker) in looks_of(methods).items():
                own = [row for row in rows if row["method"] == method]
                axes.plot(
                    [row["text_tokens"] for row in own],
                    [row[key] for row in own],
                    marker=marker,
                    color=colour,
                    linewidth=1.2,
                    markersize=5,
                    label=method,
                    zorder=3 if method == OUR_METHOD else 2,
                )
            axes.set(xscale="log", yscale="log")
            lengths = list(dict.fromkeys(row["text_tokens"] for row in rows))
            axes.set_xticks(lengths, [str(length) for length in lengths])
            axes.xaxis.set_minor_formatter(NullFormatter())
            in_full(axes.yaxis)
            axes.set_xlabel("tokens of the text")
            axes.set_ylabel(label)
            axes.set_title(model)
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
