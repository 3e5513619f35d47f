"""Charts as SVG: pure functions from figures to markup, for a page of its own styles.

A chart is as wide as it is told; a page shows a narrow or a wide one by the width of the screen,
so that letters keep their size. Colours are of ``STYLE``, by the classes of the elements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from c2v_engine.jobs.corpus.report.formats import (
    duration_text,
    number_text,
    share_text,
    short_number,
)

STYLE = """
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .quiet { fill: var(--quiet); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--quiet); stroke-width: 1; }
svg .bar, svg .area { fill: var(--mark); }
svg .area { fill-opacity: 0.25; }
svg .curve { fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round; }
svg .track { fill: var(--line); }
svg .event { stroke: var(--event); stroke-width: 1.5; stroke-dasharray: 4 3; }
"""

# More upright lines than this hide what they stand in.
MOST_RUNS = 40

# About the width of one in a wide typeface, at 13 and 12 pixels.
_LETTER = 7.9
_SMALL_LETTER = 7.5
_ROUND_SECONDS = (
    *(1, 2, 5, 10, 15, 30),
    *(60 * n for n in (1, 2, 5, 10, 15, 30)),
    *(3_600 * n for n in (1, 2, 3, 6, 12)),
    *(86_400 * n for n in (1, 2, 7, 14, 30)),
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Title(NamedTuple):
    """What a chart is called.

    Attributes:
        name: of the chart in its page: letters, digits and hyphens; another for every chart.
        title: short.
        description: what it shows, for who can not see it.
    """

    name: str
    title: str
    description: str


class Bar(NamedTuple):
    """A bar: what it is of, how long it is, and how that is told."""

    label: str
    value: float
    text: str


class Step(NamedTuple):
    """A stretch of the horizontal axis, and the value that holds on it."""

    begin: float
    end: float
    value: float


class Scale(NamedTuple):
    """Marks of an axis: where, and what they say."""

    most: float
    marks: list[tuple[float, str]]


def markup(text: object) -> str:
    """Any text as it may stand in a page; what is not a character is shown as such."""
    return escape(_CONTROL.sub("\ufffd", str(text)))


def bar_chart(title: Title, bars: Sequence[Bar], width: int, most: float | None = None) -> str:
    """Horizontal bars, each below its label: labels may be long.

    Args:
        title: of the chart.
        bars: from the top down.
        width: in pixels.
        most: value of a bar as long as there is room for; None for the largest one.
    """
    most = most or max((bar.value for bar in bars), default=0.0)
    parts, y = [], 0.0
    for bar in bars:
        room = width - _LETTER * (len(bar.text) + 2)
        length = max(1.0, width * bar.value / most) if bar.value > 0 else 0.0
        parts += [
            f"<g><title>{markup(f'{bar.label}: {bar.text}')}</title>",
            f'<text x="0" y="{y + 13:.0f}">{markup(shortened(bar.label, room))}</text>',
            f'<text x="{width}" y="{y + 13:.0f}" text-anchor="end">{markup(bar.text)}</text>',
            f'<rect class="track" x="0" y="{y + 20:.0f}" width="{width}" height="10" rx="2"/>',
            f'<rect class="bar" x="0" y="{y + 20:.0f}" width="{length:.1f}" height="10" rx="2"/>',
            "</g>",
        ]
        y += 42
    return _svg(title, width, max(y - 10, 1), parts)


def column_chart(title: Title, columns: Sequence[Bar], width: int, height: int = 190) -> str:
    """Upright columns side by side, of a histogram.

    Args:
        title: of the chart.
        columns: from the left; a label that finds no room is left out. Where texts find none,
            only the largest column has one.
        width: in pixels.
        height: likewise.
    """
    most = max((column.value for column in columns), default=0.0)
    scale = value_scale(most)
    left, top, bottom = _margin(scale), 20.0, height - 28.0
    parts = _rules(scale, left, width, top, bottom)
    each = (width - left) / max(1, len(columns))
    roomy = all((len(column.text) + 0.7) * _SMALL_LETTER < each for column in columns)
    every = math.ceil(
        max((len(column.label) + 1 for column in columns), default=1) * _SMALL_LETTER / each
    )
    for i, column in enumerate(columns):
        x, middle = left + i * each, left + (i + 0.5) * each
        tall = (bottom - top) * column.value / scale.most
        tall = max(1.0, tall) if column.value > 0 else 0.0
        parts += [
            f"<g><title>{markup(f'{column.label}: {column.text}')}</title>",
            f'<rect class="bar" x="{x + 0.1 * each:.1f}" y="{bottom - tall:.1f}" '
            f'width="{0.8 * each:.1f}" height="{tall:.1f}"/>',
        ]
        if column.value > 0 and (roomy or column.value == most):
            parts.append(_label(middle, bottom - tall - 5, column.text))
        if i % every == 0:
            parts.append(_label(middle, bottom + 16, column.label))
        parts.append("</g>")
    return _svg(title, width, height, parts)


def step_chart(
    title: Title,
    runs: Sequence[Sequence[Step]],
    width: int,
    across: Callable[[float], Scale],
    height: int = 200,
) -> str:
    """Values that hold for a while each, as an area below a line.

    Args:
        title: of the chart.
        runs: of steps; where one ends and the next begins stands an upright line, unless there
            are too many.
        width: in pixels.
        across: makes the horizontal axis for its largest value.
        height: in pixels.
    """
    runs = [run for run in runs if run]
    steps = [step for run in runs for step in run]
    scale = value_scale(max((step.value for step in steps), default=0.0))
    end = max((step.end for step in steps), default=0.0) or 1.0
    left, right, top, bottom = _margin(scale), width - 4.0, 12.0, height - 28.0
    parts = _rules(scale, left, right, top, bottom)

    def place(x: float, y: float) -> str:
        return (
            f"{left + (right - left) * x / end:.1f},{bottom - (bottom - top) * y / scale.most:.1f}"
        )

    parts += _axis(across(end), left, right, bottom, end)
    for number, run in enumerate(runs):
        points = [place(x, step.value) for step in run for x in (step.begin, step.end)]
        ground = [place(run[-1].end, 0), place(run[0].begin, 0)]
        parts.append(f'<polygon class="area" points="{" ".join([*points, *ground])}"/>')
        parts.append(f'<polyline class="curve" points="{" ".join(points)}"/>')
        if number and len(runs) <= MOST_RUNS:
            x = left + (right - left) * run[0].begin / end
            parts.append(
                f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
            )
    return _svg(title, width, height, parts)


def value_scale(most: float) -> Scale:
    """An axis from zero to a round number that is not below ``most``, with few marks."""
    if most <= 0 or not math.isfinite(most):
        return Scale(1.0, [(0.0, "0")])
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(n * power for n in (1, 2, 5, 10) if n * power * 4.0001 >= most)
    count = math.ceil(most / step - 1e-9)
    return Scale(count * step, [(i * step, short_number(i * step)) for i in range(count + 1)])


def time_scale(most: float) -> Scale:
    """An axis of seconds with marks at round durations."""
    marks = 8
    rounds = [s for s in _ROUND_SECONDS if s * marks >= most]
    if not rounds:
        rounds = [86_400 * math.ceil(most / marks / 86_400)]
    if most < 8:
        found = value_scale(most)
        return Scale(
            most, [(value, f"{value:.2g} s" if value else "0") for value, _ in found.marks]
        )
    count = int(most / rounds[0] + 1e-9)
    places = [i * rounds[0] for i in range(count + 1)]
    return Scale(most, [(place, duration_text(place) if place else "0") for place in places])


def share_bars(counts: Sequence[tuple[str, float]], total: float) -> list[Bar]:
    """Bars of counts, each told with its share of a total."""
    return [
        Bar(label, count, f"{number_text(count)} ({share_text(count / total)})")
        for label, count in counts
    ]


def shortened(text: str, room: float) -> str:
    """A text of one line that is about as wide as there is room, cut where it has to be."""
    line = " ".join(text.split())
    letters = max(1, int(room / _LETTER))
    return line if len(line) <= letters else line[: letters - 1].rstrip() + "…"


def _margin(scale: Scale) -> float:
    return _SMALL_LETTER * max(len(text) for _, text in scale.marks) + 8


def _rules(scale: Scale, left: float, right: float, top: float, bottom: float) -> list[str]:
    """Level lines with the values that they stand for."""
    parts = []
    for value, text in scale.marks:
        y = bottom - (bottom - top) * value / scale.most
        kind = "grid" if value else "axis"
        parts += [
            f'<line class="{kind}" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text class="quiet" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{markup(text)}</text>",
        ]
    return parts


def _axis(scale: Scale, left: float, right: float, bottom: float, end: float) -> list[str]:
    """The marks of a horizontal axis, as many as stand side by side."""
    parts: list[str] = []
    free = 0.0
    for value, text in scale.marks:
        x = left + (right - left) * value / end
        half = len(text) * _SMALL_LETTER / 2
        if x - half < free or x > right + 1:
            continue
        x_text = min(x, right - half)
        if x_text - half < free:
            continue
        free = x_text + half + 8
        parts += [
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>',
            _label(x_text, bottom + 18, text),
        ]
    return parts


def _label(x: float, y: float, text: str) -> str:
    return f'<text class="quiet" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{markup(text)}</text>'


def _svg(title: Title, width: int, height: float, parts: Sequence[str]) -> str:
    name = f"{title.name}-{width}"
    return "\n".join(
        [
            f'<svg viewBox="0 0 {width} {height:.0f}" role="img" '
            f'aria-labelledby="{name}-title {name}-description">',
            f'<title id="{name}-title">{markup(title.title)}</title>',
            f'<desc id="{name}-description">{markup(title.description)}</desc>',
            *parts,
            "</svg>",
        ]
    )
