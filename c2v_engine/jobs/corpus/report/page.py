"""``report.html``: a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from c2v_engine.jobs.corpus.report.charts import (
    MOST_RUNS,
    STYLE,
    Bar,
    Step,
    Title,
    bar_chart,
    column_chart,
    markup,
    share_bars,
    step_chart,
    time_scale,
)
from c2v_engine.jobs.corpus.report.formats import (
    duration_text,
    number_text,
    share_text,
    short_number,
    size_text,
)

_WIDTHS = {"narrow": 340, "wide": 720}
_START_COLUMNS = {"Begun (UTC)": "short", "Ran": "number", "Rows": "number", "Ended": "long"}
_DEATH_COLUMNS = {"Worker": "text", "How": "text", "Units": "text"}
_MOST_REASONS = 12
_MOST_ROWS = 50

_PAGE_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f5f6f8; --ink: #1b1f24; --quiet: #5a636e; --line: #dde1e6;
  --mark: #2563b8; --event: #b4400f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1e2329; --ink: #e8eaed; --quiet: #a3acb7; --line: #363d46;
    --mark: #6ea8f7; --event: #f0925c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 24px 16px 48px; max-width: 752px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { margin: 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 36px 0 12px; font-size: 19px; }
p { margin: 4px 0 12px; }
.quiet { color: var(--quiet); font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.tiles { margin: 20px 0 0; padding: 0; }
.tiles div { background: var(--card); border-radius: 8px; padding: 10px 12px; }
.tiles dt { color: var(--quiet); font-size: 14px; }
.tiles dd { margin: 0; font-size: clamp(16px, 4.6vw, 19px); font-weight: 600; line-height: 1.3; }
.tiles .quiet { font-weight: 400; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: left; }
th, td { vertical-align: top; }
th { font-weight: 500; color: var(--quiet); }
.facts td { overflow-wrap: anywhere; }
.facts th { width: 35%; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.short { white-space: nowrap; }
td.text { min-width: 110px; }
td.long { min-width: 230px; }
.number + * { padding-left: 12px; }
.wide { display: none; }
@media (min-width: 600px) { .wide { display: block; } .narrow { display: none; } }
@media print { body { max-width: none; } h2 { break-after: avoid; } svg { break-inside: avoid; } }
"""

_STAGES = {
    "read": "Reading the input",
    "tokenize": "Tokenising (all threads together)",
    "device": "Device busy",
    "wait": "Device idle, waiting for texts",
    "write": "Writing shards",
}


def make_page(report: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        report: as ``make_report`` gives it.

    Returns:
        HTML that loads nothing and runs nothing; every name in it is escaped.
    """
    model = report["model"].get("model") or "a model"
    rows = number_text(report["rows"])
    sections = [
        _heading(report, str(model)),
        _speed(report),
        _lengths(report),
        _stages(report),
        _rejects(report),
        _starts(report),
        _facts(report),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{markup(f'{rows} rows, {model}')}</title>",
            f"<style>{_PAGE_STYLE}{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *sections,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _heading(report: Mapping[str, Any], model: str) -> str:
    rates = {name: report[f"{name}_per_second"] for name in ("rows", "tokens")}
    tiles = [
        ("Rows", number_text(report["rows"]), ""),
        ("Rejected", number_text(report["rows_rejected"]), ""),
    ]
    if report["wall_seconds"]:
        tiles.append(("Running time", duration_text(report["wall_seconds"]), _starts_text(report)))
    tiles += [
        (f"{name.title()} per second", number_text(rate["mean"]), f"median {_rate(rate)}")
        for name, rate in rates.items()
        if rate is not None
    ]
    idle = report["device_idle_share"]
    if idle is not None:
        tiles.append(("Device idle", share_text(idle), ""))
    cells = [
        f"<div><dt>{markup(name)}</dt><dd>{markup(value)}"
        + (f'<br><span class="quiet">{markup(note)}</span>' if note else "")
        + "</dd></div>"
        for name, value, note in tiles
    ]
    size, shards = size_text(report["bytes"]), _count(report["shards"], "shard")
    about = f"{number_text(report['rows'])} rows embedded with {model}: {shards}, {size}"
    return "\n".join(
        [
            "<h1>Embedding report</h1>",
            f"<p>{markup(about)}</p>",
            '<dl class="tiles">',
            *cells,
            "</dl>",
        ]
    )


def _speed(report: Mapping[str, Any]) -> str:
    parts = report["speed"]
    if not parts:
        text = "How the job went over time was not written down."
        return _section("Speed over time", f'<p class="quiet">{text}</p>')
    runs = [list(run) for _, run in groupby(parts, key=lambda part: part["session"])]
    note = "Time in which the job did not run is left out."
    if 1 < len(runs) <= MOST_RUNS:
        note += " Each dashed line is a new start."
    elif len(runs) > 1:
        note += f" It has {number_text(len(runs))} starts, too many to be marked."
    pieces = [f'<p class="quiet">{note}</p>']
    for unit in ("rows", "tokens"):
        key = f"{unit}_per_second"
        steps = [[Step(part["from"], part["to"], part[key]) for part in run] for run in runs]
        values = [part[key] for part in parts]
        description = (
            f"{unit.title()} a second over {duration_text(parts[-1]['to'])} of running time: "
            f"between {number_text(min(values))} and {number_text(max(values))}, "
            f"in {_count(len(runs), 'start')}."
        )
        title = Title(f"speed-{unit}", f"{unit.title()} per second over time", description)
        pieces.append(f"<p>{unit.title()} per second</p>")
        pieces.append(_both(partial(step_chart, title, steps, across=time_scale)))
    return _section("Speed over time", *pieces)


def _lengths(report: Mapping[str, Any]) -> str:
    lengths = report["lengths"]
    used = [i for i, bucket in enumerate(lengths) if bucket["texts"]]
    if not used:
        return ""
    shown = lengths[used[0] : used[-1] + 1]
    total = sum(bucket["texts"] for bucket in shown)
    columns = [
        Bar(_range_text(bucket), bucket["texts"], short_number(bucket["texts"])) for bucket in shown
    ]
    described = "; ".join(f"{column.label} rows: {number_text(column.value)}" for column in columns)
    title = Title("lengths", "Texts by length", f"Texts by decoder rows. {described}.")
    texts = "text" if total == 1 else "texts"
    note = (
        f"{number_text(total)} {texts} computed, by decoder rows (tokens, with those of template "
        "and prompt). Equal texts that stand near each other are computed once."
    )
    chart = _both(partial(column_chart, title, columns))
    return _section("Lengths", f'<p class="quiet">{note}</p>', chart)


def _stages(report: Mapping[str, Any]) -> str:
    seconds = report["stage_seconds"]
    if not any(seconds.values()):
        return ""
    bars = [
        Bar(label, seconds[name], duration_text(seconds[name])) for name, label in _STAGES.items()
    ]
    described = "; ".join(f"{bar.label}: {bar.text}" for bar in bars)
    title = Title("stages", "Seconds of each stage", f"{described}.")
    note = (
        "Stages run side by side, in several threads: together they may take longer than the job."
    )
    chart = _both(partial(bar_chart, title, bars))
    return _section("Where the time went", f'<p class="quiet">{note}</p>', chart)


def _rejects(report: Mapping[str, Any]) -> str:
    total, reasons = report["rows_rejected"], report["rejected_by_reason"]
    if not total or not reasons:
        return ""
    counts = sorted(reasons.items(), key=lambda item: -item[1])
    shown = counts[:_MOST_REASONS]
    if rest := counts[_MOST_REASONS:]:
        name = f"{number_text(len(rest))} more reasons"
        shown.append((name, sum(count for _, count in rest)))
    counted = sum(reasons.values())
    bars = share_bars(shown, counted)
    described = "; ".join(f"{bar.label}: {bar.text}" for bar in bars)
    title = Title("rejects", "Rejected rows by reason", f"{described}.")
    rows = number_text(report["rows"])
    note = f"{_count(total, 'row')} of {rows}, each with its place in rejected.jsonl."
    chart = _both(partial(bar_chart, title, bars, most=counted))
    return _section("Rejected rows", f'<p class="quiet">{note}</p>', chart)


def _starts(report: Mapping[str, Any]) -> str:
    """The table of starts, and that of workers that died."""
    sessions = report["sessions"]
    if len(sessions) < 2 and not report["worker_deaths"]:
        return ""
    rows = [
        (
            _moment_text(session["begun"])
            + (f" and {session['starts'] - 1:,} more" if session["starts"] > 1 else ""),
            duration_text(session["seconds"]),
            number_text(session["rows"]),
            session["ended"] or "killed, without notice",
        )
        for session in sessions[-_MOST_ROWS:]
    ]
    pieces = [_cut_note(len(sessions), "starts")]
    pieces.append(_table(_START_COLUMNS, rows))
    deaths = [death for session in sessions for death in session["deaths"]]
    if report["worker_deaths"]:
        dead = _count(report["worker_deaths"], "worker")
        pieces.append(f"<p>{dead} died; others did their units again.</p>")
    if deaths:
        pieces.append(_cut_note(report["worker_deaths"], "deaths", min(len(deaths), _MOST_ROWS)))
        told = [
            (death["worker"], death["reason"], ", ".join(map(str, death["units"])) or "none")
            for death in deaths[-_MOST_ROWS:]
        ]
        pieces.append(_table(_DEATH_COLUMNS, told))
    return _section("Starts", *pieces)


def _facts(report: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {
        "rows of the input": number_text(report["rows"]),
        "rows written": number_text(report["rows_written"]),
        "rows from the cache": number_text(report["rows_from_cache"]),
        "decoder rows (tokens)": number_text(report["tokens"]),
        "input files": number_text(report["input_files"]),
        "shards": f"{number_text(report['shards'])} ({report['format']})",
        "size": f"{size_text(report['bytes'])} ({report['bytes']:,} bytes)",
        "dimension": f"{number_text(report['dimension'])} ({report['precision']})",
        "device time": duration_text(report["device_seconds"]) if report["starts"] else None,
        "starts": number_text(report["starts"]) if report["starts"] else None,
        "workers that died": number_text(report["worker_deaths"]),
    }
    facts |= report["model"]
    facts |= {name.replace("_", " "): value for name, value in report["options"].items()}
    facts |= report["versions"]
    rows = [(name, _value_text(value)) for name, value in facts.items() if value is not None]
    cells = [
        f'<tr><th scope="row">{markup(name)}</th><td>{markup(value)}</td></tr>'
        for name, value in rows
    ]
    return _section("Facts", '<table class="facts">', *cells, "</table>")


def _both(draw: Callable[..., str]) -> str:
    """A chart for narrow screens, and one for wide ones; a screen shows one of them."""
    return "\n".join(
        f'<div class="{kind}">{draw(width=width)}</div>' for kind, width in _WIDTHS.items()
    )


def _section(title: str, *pieces: str) -> str:
    return "\n".join(["<section>", f"<h2>{title}</h2>", *filter(None, pieces), "</section>"])


def _table(head: Mapping[str, str], rows: Sequence[Sequence[str]]) -> str:
    """A table; ``head`` has its columns' names, each with the class of its cells."""
    lines = ['<div class="scroll"><table>', "<tr>"]
    lines += [f'<th scope="col" class="{kind}">{markup(name)}</th>' for name, kind in head.items()]
    lines.append("</tr>")
    for row in rows:
        cells = [
            f'<td class="{kind}">{markup(cell)}</td>'
            for kind, cell in zip(head.values(), row, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table></div>"])


def _cut_note(count: int, name: str, shown: int = _MOST_ROWS) -> str:
    if count <= shown:
        return ""
    return f'<p class="quiet">The last {shown:,} of {count:,} {name}.</p>'


def _range_text(bucket: Mapping[str, int]) -> str:
    first, last = bucket["from"], bucket["to"]
    return str(first) if first == last else f"{first}–{last}"


def _moment_text(moment: str) -> str:
    day, _, clock = moment.partition("T")
    return f"{day} {clock[:5]}".strip()


def _starts_text(report: Mapping[str, Any]) -> str:
    return f"{report['starts']:,} starts" if report["starts"] > 1 else ""


def _count(count: int, name: str) -> str:
    return f"{number_text(count)} {name}{'' if count == 1 else 's'}"


def _rate(rate: Mapping[str, float]) -> str:
    return number_text(rate["median"])


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
