"""One page of a result that needs nothing else: tables, pictures, every repetition."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from c2v_engine.bench.report.plots import whole_or_none, write_pictures
from c2v_engine.bench.report.read import (
    OURS,
    Entry,
    Results,
    case_dtype,
    dtype_of,
    kind_of,
    model_of,
)
from c2v_engine.bench.report.tables import (
    METHOD_COLUMNS,
    OUR_METHOD,
    TIMES,
    ceiling_lines,
    cells,
    method_cells,
    method_rows,
    peer_table,
)
from c2v_engine.bench.stages import stage_table

__all__ = ["PAGE", "make_page", "write_report"]

PAGE = "report.html"
LONG_CELL = 40  # characters, above which it may be broken
NO_PICTURES = "Pictures need matplotlib: pip install 'c2v-engine[bench]'"
CAPTIONS = {
    "stages": "Where the engine's time goes, by its own names for the parts of a pass.",
    "roofline": "Useful operations a second, of all providers, under what the machine multiplies "
    "and copies at best. A call reads its weights once at least.",
    "throughput": "Tokens a second of every provider.",
    "peers": "How many times as fast as each peer the engine is, in the same dtype.",
    "methods": "What a text costs by each method on the same decoder.",
}
HOW = (
    "Everybody has the same weights and the same texts. Vectors are held against the engine's "
    "before anything is timed. After one round that is not timed, providers take turns; a figure "
    "is the median of the repetitions, a ratio the median of the ratios of repetitions that were "
    "side by side, with the least and the most of them. The engine over it: how many times as fast "
    "the engine is.",
    "device is the engine without its work on texts: tokens are made before the clock. padded is "
    "stock transformers, texts sorted by length and padded; packed is the same without padding.",
    "Useful operations are 2 x parameters without embeddings x tokens, of decoder and encoder; "
    "padding is no token. They are given as a fraction of a matrix product in the same dtype, "
    "measured in the same run, the better of before and after. The engine computes fewer: "
    "of the last layer the pooled rows alone, a leading prompt that all texts share once. So its "
    "fraction may pass what its products reach, which the stages tell.",
    "Added memory is the most that a timed call has beyond what was there before it: no weights, "
    "and nothing that a library keeps between calls.",
)
HOW_METHODS = (
    "rows are what the decoder's sequence has for a text, computed what is left of them where a "
    "prompt that all texts share is computed once. The dearest is the method with most of it at "
    "that length, the plainest is last-token: the text and one row, with no encoder.",
)
STYLE = """
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
  margin: 0 auto; padding: 24px 16px 48px; max-width: 1040px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { margin: 0 0 8px; font-size: 26px; line-height: 1.25; }
h2 { margin: 36px 0 12px; font-size: 19px; }
h3 { margin: 20px 0 6px; font-size: 16px; }
p { margin: 4px 0 12px; }
.quiet { color: var(--quiet); font-size: 14px; }
.warn { color: var(--event); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 500; color: var(--quiet); white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: normal; min-width: 200px; }
tr.ours td { font-weight: 600; }
figure { margin: 20px 0; }
img {
  display: block; width: 100%; min-width: 620px; height: auto; border-radius: 8px;
  background: #ffffff;
}
figcaption { color: var(--quiet); font-size: 14px; }
summary { cursor: pointer; padding: 4px 0; }
pre { margin: 0; font: 13px/1.5 ui-monospace, monospace; }
"""


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write the page and its pictures.

    Args:
        results: of a result file.
        folder: is made; a page and pictures in it are replaced.

    Returns:
        The page, then the pictures, the main one last; the page alone, which says why, where
        matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        pictures = write_pictures(results, folder)
    except ImportError:
        pictures = None
    path = folder / PAGE
    page = make_page(results, pictures)
    with whole_or_none(path):
        path.write_text(page, encoding="utf-8")
    return [path, *(pictures or [])]


def make_page(results: Results, pictures: Sequence[Path] | None) -> str:
    """The page.

    Args:
        results: of a result file.
        pictures: that it shows; None where none can be drawn.
    """
    title = "Embedding methods" if results.methods else "Embedding speed"
    sections = [
        f"<h1>{title}</h1>",
        f'<p class="quiet">{"<br>".join(map(escape, results.headline()))}</p>',
        f"<p>This machine {escape('; '.join(ceiling_lines(results)))}.</p>",
        *trouble(results),
    ]
    head = len(sections)
    if pictures is None:
        sections.append(f'<p class="warn">{escape(NO_PICTURES)}</p>')
    else:
        sections += map(picture, reversed(pictures))
    if not results.methods:
        sections[head:head] = peer_sections(results)
    sections += method_sections(results) if results.methods else case_sections(results)
    sections += [
        "<h2>How to read it</h2>",
        *(f"<p>{escape(text)}</p>" for text in (HOW_METHODS if results.methods else ()) + HOW),
        *repeating(results),
        *stage_sections(results),
        repetitions(results),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
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


def trouble(results: Results) -> list[str]:
    """What is wrong, and what there was no time for."""
    found = [
        f'<p class="warn">{escape(entry["case"])}, {escape(name_of(entry))} is wrong: '
        f"{escape(entry.get('reason', ''))}</p>"
        for entry in results.entries
        if entry["status"] == "wrong"
    ]
    cut = results.content.get("cut")
    if cut:
        names = ", ".join(dict.fromkeys(cut["not_measured"]))
        found.append(f'<p class="quiet">There was no time for: {escape(names)}</p>')
    return found


def peer_sections(results: Results) -> list[str]:
    """How many times as fast as its peers the engine is, a table for each model and dtype."""
    groups = dict.fromkeys((model_of(entry), case_dtype(entry)) for entry, _ in results.ratios)
    sections = ["<h2>How many times as fast as its peers the engine is</h2>"] if groups else []
    for model, dtype in groups:
        workloads, rows = peer_table(results, model, dtype)
        sections.append(f"<h3>{escape(f'{model}, {dtype}')}</h3>")
        sections.append(table(("peer", *workloads), rows))
    return sections


def stage_sections(results: Results) -> list[str]:
    """What the pictures of stages show, and the rest of it, to be opened."""
    sections = []
    for entry in results.timed:
        if entry.get("stages"):
            name = escape(f"{entry['case']}, {entry['provider']}")
            lines = stage_table(entry["stages"], results.gemm_tflops(dtype_of(entry)))
            text = escape("\n".join(lines))
            sections.append(
                f"<details><summary>Where the time goes: {name}</summary>"
                f'<div class="scroll"><pre>{text}</pre></div></details>'
            )
    return sections


def repeating(results: Results) -> list[str]:
    """The command that measures the same again, where the file has it."""
    arguments = results.content.get("arguments")
    if arguments is None:
        return []
    words = ["c2v", "bench", *(["methods"] if results.methods else []), *arguments]
    return [
        "<h2>How to repeat it</h2>",
        f'<div class="scroll"><pre>{escape(shlex.join(words))}</pre></div>',
    ]


def picture(path: Path) -> str:
    """A picture within the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    caption = escape(CAPTIONS.get(path.stem, ""))
    return (
        f'<figure><div class="scroll"><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"</div><figcaption>{caption}</figcaption></figure>"
    )


def case_sections(results: Results) -> list[str]:
    """The providers of every case."""
    sections = ["<h2>Every case</h2>"]
    head = (
        "provider",
        "texts/s",
        "tokens/s",
        "useful",
        "of GEMM",
        "added memory",
        "cosine",
        "the engine over it",
    )
    for case in results.cases:
        entries = results.of_case(case)
        rows = [
            (name_of(entry), *(cell.replace(TIMES, "") for cell in cells(results, entry)))
            for entry in entries
            if timed(entry)
        ]
        ours = [kind_of(entry) == OURS for entry in entries if timed(entry)]
        sections.append(f"<h3>{escape(case)}</h3>")
        first = next(filter(timed, entries), None)
        if first is not None:
            sections += [
                f'<p class="quiet">{first["texts"]:,} texts, {first["decoder_tokens"]:,} rows of '
                f"the decoder, {first['encoder_tokens']:,} of the encoder, a call</p>",
                table(head, rows, ours),
            ]
        sections += [
            f'<p class="quiet">{escape(name_of(entry))}: {escape(entry["status"])}: '
            f"{escape(entry.get('reason', ''))}</p>"
            for entry in entries
            if not timed(entry)
        ]
    return sections


def method_sections(results: Results) -> list[str]:
    """Rows and time of every method, by model and length."""
    head = ("method", *METHOD_COLUMNS)
    sections = []
    for model in dict.fromkeys(str(entry["model"]) for entry in results.entries):
        rows = method_rows(results, model)
        for length in dict.fromkeys(row["text_tokens"] for row in rows):
            own = [row for row in rows if row["text_tokens"] == length]
            sections.append(f"<h3>{escape(model)}, texts of {length} tokens</h3>")
            lines = [(row["method"], *method_cells(row)) for row in own]
            sections.append(table(head, lines, [row["method"] == OUR_METHOD for row in own]))
    return ["<h2>Every length</h2>", *sections]


def repetitions(results: Results) -> str:
    """Every repetition, to be opened."""
    head = ("case", "provider", "seconds", "CPU seconds", "cosine", "note")
    rows = [
        (
            entry["case"],
            name_of(entry),
            " ".join(f"{value:.3f}" for value in entry["seconds"]),
            " ".join(f"{value:.3f}" for value in entry.get("cpu_seconds", [])),
            f"{entry['cosine_min']:.5f}" if "cosine_min" in entry else "",
            str(entry.get("note", "")),
        )
        for entry in results.timed
    ]
    return (
        "<details><summary>Every repetition, with the least cosine to the engine's vectors (of "
        f"methods: to the plain reference's)</summary>{table(head, rows)}</details>"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], marked: Sequence[bool] | None = None
) -> str:
    """A table; marked rows are ours."""
    lines = []
    for number, row in enumerate(rows):
        ours = ' class="ours"' if marked is not None and marked[number] else ""
        written = [
            f'<td class="text">{escape(cell)}</td>'
            if len(cell) > LONG_CELL
            else f"<td>{escape(cell)}</td>"
            for cell in row
        ]
        lines.append(f"<tr{ours}>{''.join(written)}</tr>")
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def timed(entry: Entry) -> bool:
    """Whether it has figures."""
    return bool(entry["status"] == "ok")


def name_of(entry: Entry) -> str:
    """Its method, or its provider."""
    return str(entry.get("method") or entry.get("provider", ""))
