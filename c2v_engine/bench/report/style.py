"""How pictures of results look: the page, its colours, its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from c2v_engine.bench.report.read import OURS, Results, kind_of, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DPI",
    "WIDTH",
    "Look",
    "beside",
    "in_full",
    "looks",
    "looks_of",
    "new_figure",
    "point_out",
    "tidy",
]

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
WIDTH, DPI = 8.0, 150


class Look(NamedTuple):
    """What a line, a point or a bar is known by."""

    colour: str
    marker: str


def look(number: int) -> Look:
    """Of a place in a list: colours come again after eight, with other markers."""
    around = number // len(COLOURS)
    return Look(COLOURS[number % len(COLOURS)], MARKERS[(number + around) % len(MARKERS)])


def looks(results: Results) -> dict[str, Look]:
    """The look of every provider, by kind and by label, the same in all pictures of a result.

    The engine's is the first. The first label of a kind looks as the kind does.
    """
    kinds = sorted(dict.fromkeys(map(kind_of, results.timed)), key=lambda kind: kind != OURS)
    found = {kind: look(number) for number, kind in enumerate(kinds)}
    labelled: dict[str, list[str]] = {kind: [] for kind in kinds}
    for entry in results.timed:
        labels = labelled[kind_of(entry)]
        if label_of(entry) not in labels:
            labels.append(label_of(entry))
    for kind, labels in labelled.items():
        found[labels[0]] = found[kind]
    others = [label for labels in labelled.values() for label in labels[1:]]
    found |= {label: look(len(kinds) + number) for number, label in enumerate(others)}
    return found


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """The look of each name in a list."""
    return {name: look(number) for number, name in enumerate(names)}


def new_figure(results: Results, height: float, width: float = WIDTH) -> Figure:
    """A white page with what was measured, where and when in small letters at its foot."""
    from matplotlib.figure import Figure as MatplotlibFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    foot = 0.25 / (height + 0.3)
    layout = ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot))
    figure = MatplotlibFigure(figsize=(width, height + 0.3), layout=layout)
    figure.text(0.01, foot / 4, "  |  ".join(results.headline()), fontsize=6, color="#555555")
    return figure


def tidy(axes: Axes) -> None:
    """Small letters, faint grid, no box."""
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    axes.title.set_fontsize(10)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def in_full(axis: Axis, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """A logarithmic axis with some steps of every decade, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axis.set_minor_formatter(NullFormatter())


def written(value: float) -> str:
    """A number without an exponent."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def beside(axes: Axes) -> None:
    """The legend, right of the axes."""
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def point_out(axes: Axes, words: str, point: tuple[float, float], *, leftward: bool) -> None:
    """Write words beside a point."""
    axes.annotate(
        words,
        point,
        (-6 if leftward else 6, 0),
        textcoords="offset points",
        ha="right" if leftward else "left",
        va="center",
        fontsize=7,
    )
