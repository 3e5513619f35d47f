"""Looks for measured figures that stand in a page without a mark.

Looked for are numbers with a unit of measurement, ratios, percentages, retrieval figures, and
numbers in columns of tables whose head names a unit. What marks hold and fenced code are passed
over; fences without a language show output, and are not. What is no measurement, a setting, a
size, a bound, is listed in ``allowed.yaml``, by its page and its exact words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from figures_registry.marks import hidden

ALLOWED = Path(__file__).with_name("allowed.yaml")

_NUMBER = r"(?<![\w.@-])~?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_WORD = r"\b(?:two|three|four|five|six|seven|eight|nine|ten|twenty|hundred)"
_THINGS = r"(?:texts?|tokens?|rows?|requests?|queries|documents?|pairs?|sentences?|embeddings?)"
_RATE = (
    rf"[kM]?\s*{_THINGS}\s*(?:/\s*s\b|per\s+(?:second|minute|hour)|an?\s+(?:second|minute|hour))"
)
_TIME = r"(?:ns|us|µs|ms|s|(?:nano|micro|milli)?seconds?|minutes?|min|hours?|days?)\b"
_SPEED = r"[kKMGTP]?i?(?:FLOP/?s|FLOPS|OP/?s|B/s|bytes/s)\b"
_MEMORY = r"(?:[kKMGT]i?B|(?:kilo|mega|giga)bytes?|gigs?)\b"
_MEASURES = r"(?:nDCG|NDCG|Recall|recall|MRR|MAP|precision@|cosine|accuracy|Spearman)(?:@?\d+)?"
_OUTCOMES = r"(?:tests?\s+)?(?:passed|failed|skipped)\b"

PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_NUMBER}\s*(?:{_RATE}|{_TIME}|{_SPEED}|{_MEMORY}|{_OUTCOMES})",
        rf"{_NUMBER}(?:\s+to\s+{_NUMBER})?\s*(?:%|percent\b|points?\b)",
        rf"{_NUMBER}(?:x\b|\s*×(?!\s*\d)|\s+times\b|-?fold\b)",
        rf"{_NUMBER}\s+x\s+(?:as|faster|slower|the\s+speed)\b",
        rf"(?i:{_WORD}\s+times\b|\b(?:twice|thrice|half)\s+(?:as\s+\w+\s+as|the\s+(?:speed|time|memory)))",
        rf"\bp\d\d(?:\.\d+)?\s*(?:of|is|was|:|=)?\s*{_NUMBER}",
        rf"{_MEASURES}\W{{0,3}}(?:\s*(?:of|is|was|at|to|by)\s+)?{_NUMBER}",
        rf"{_NUMBER}\s+(?:of\s+)?{_MEASURES}",
        rf"{_NUMBER}\s+of\s+the\s+(?:copy|product|peak|bandwidth)\b",
    )
)
_HEAD = re.compile(
    rf"/s\b|\b(?:ms|us|µs|seconds|minutes|hours|[KMGT]i?B|faster|speed|times\s+as|latency|p50|p99)\b"
    rf"|%|{_MEASURES}"
)
_RULE = re.compile(r"^\s*\|(?:\s*:?-+:?\s*\|)+\s*$")
_CELL = re.compile(_NUMBER)


class Found(NamedTuple):
    """A figure without a mark.

    Attributes:
        start: where it begins in the page.
        end: where it ends.
        text: what it says, with single spaces.
    """

    start: int
    end: int
    text: str


class Allowed(NamedTuple):
    """Words that may stand in a page as they are.

    Attributes:
        page: its path below the root.
        phrase: the exact words, with single spaces.
        reason: why they are no measurement of ours.
    """

    page: str
    phrase: str
    reason: str

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where it stands in the page, however lines are broken."""
        pattern = r"\s+".join(map(re.escape, self.phrase.split()))
        return [match.span() for match in re.finditer(pattern, text)]


def read_allowed(path: Path = ALLOWED) -> list[Allowed]:
    """The allow-list.

    Args:
        path: of a YAML file: a list of ``page``, ``reason`` and ``phrases``.
    """
    import yaml

    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Allowed(entry["page"], " ".join(str(phrase).split()), entry["reason"])
        for entry in entries
        for phrase in entry["phrases"]
    ]


def find_figures(page: str) -> list[Found]:
    """Every figure of a page that is in no mark, in order.

    Args:
        page: its text.
    """
    text = hidden(page)
    spans = {match.span() for pattern in PATTERNS for match in pattern.finditer(text)}
    spans |= set(_table_cells(text))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return [Found(start, end, " ".join(page[start:end].split())) for start, end in merged]


def typed_figures(pages: dict[str, str], allowed: list[Allowed]) -> list[str]:
    """A line for each figure that is neither marked nor allowed.

    Args:
        pages: the texts, by their paths.
        allowed: what may stand.
    """
    lines = []
    for name, page in pages.items():
        places = [place for one in allowed if one.page == name for place in one.places(page)]
        for found in find_figures(page):
            if not any(start <= found.start and found.end <= end for start, end in places):
                line = page.count("\n", 0, found.start) + 1
                lines.append(
                    f"{name}:{line}: {found.text!r} is typed by hand: mark it, or allow it"
                )
    return lines


def unused(pages: dict[str, str], allowed: list[Allowed]) -> list[str]:
    """A line for each entry of the allow-list that stands nowhere, twice, or allows nothing.

    Args:
        pages: the texts, by their paths.
        allowed: the list.
    """
    figures = {name: find_figures(page) for name, page in pages.items()}
    lines = []
    for page, phrase, _ in allowed:
        places = Allowed(page, phrase, "").places(pages.get(page, ""))
        covered = [
            found
            for start, end in places
            for found in figures[page]
            if start <= found.start and found.end <= end
        ]
        if len(places) != 1:
            lines.append(
                f"{ALLOWED.name}: {phrase!r} stands {len(places)} times in {page}, not once"
            )
        elif not covered:
            lines.append(f"{ALLOWED.name}: {phrase!r} of {page} holds no figure")
    return lines


def _table_cells(text: str) -> Iterator[tuple[int, int]]:
    """Cells with digits in columns whose head names a unit of measurement."""
    columns: list[int] = []
    before, start = "", 0
    for line in text.splitlines(keepends=True):
        if _RULE.match(line):
            head = before.split("|")
            columns = [number for number, cell in enumerate(head) if _HEAD.search(cell)]
            if 1 in columns:  # the corner speaks for all of them
                columns = list(range(2, len(head)))
        elif "|" not in line:
            columns = []
        else:
            at = start
            for number, cell in enumerate(line.rstrip("\n").split("|")):
                if number in columns and _CELL.search(cell):
                    first = len(cell) - len(cell.lstrip())
                    yield at + first, at + len(cell.rstrip())
                at += len(cell) + 1
        before, start = line, start + len(line)
