"""Where rows begin: a file's rows are counted without being parsed, and some of them placed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from c2v_engine.jobs.corpus.source.csv_rows import CsvRows
from c2v_engine.jobs.corpus.source.cursor import LineBlock, LineCursor
from c2v_engine.jobs.corpus.source.inputs import InputFile

_ALL = 1 << 30
# Lines of nothing but these are no rows, where no other follows.
_BLANK = {"jsonl": None, "csv": b"\r\n"}


@dataclass(frozen=True)
class Mark:
    """Where a row begins.

    Attributes:
        row: counted from 0 in the file.
        offset: of its first byte in the decompressed file; None where rows need no such place.
        line: on which it begins, counted from 1; None likewise.
    """

    row: int
    offset: int | None
    line: int | None


def mark_rows(file: InputFile, rows: int | None, first: int, step: int) -> tuple[int, list[Mark]]:
    """Count a file's rows, and place row 0 and the rows ``first``, ``first + step``, ...

    Args:
        file: the file.
        rows: how many it has, where it says so itself; such rows need no place.
        first: the first row to place, at least 1.
        step: from one to the next.

    Returns:
        The number of rows, and the marks of those that there are.

    Raises:
        InputError: the file can not be read, or is broken.
    """
    if rows is not None:
        wanted = ([0] if rows else []) + list(range(first, rows, step))
        return rows, [Mark(row, None, None) for row in wanted]
    cursor = LineCursor(file)
    try:
        return _mark_lines(file, cursor, first, step)
    finally:
        cursor.close()


def _mark_lines(
    file: InputFile, cursor: LineCursor, first: int, step: int
) -> tuple[int, list[Mark]]:
    """Rows begin with lines; those at the end that hold nothing are none, but in plain text."""
    marks: list[Mark] = []
    count = following = last = 0
    for lines, starts in _csv_starts(cursor) if file.format == "csv" else _line_starts(cursor):
        while following < count + len(starts):
            start = starts[following - count]
            line = lines.number + start + 1
            marks.append(Mark(following, 0 if line == 1 else lines.offset_of(start), line))
            following = first if following == 0 else following + step
        if file.format == "txt":
            last = count + len(starts)
        elif content := len(lines.data.rstrip(_BLANK[file.format])):
            last = count + bisect_right(starts, lines.data.count(b"\n", 0, content))
        count += len(starts)
    return last, [mark for mark in marks if mark.row < last]


def _line_starts(cursor: LineCursor) -> Iterator[tuple[LineBlock, Sequence[int]]]:
    while (lines := cursor.take(_ALL)) is not None:
        yield lines, range(len(lines))


def _csv_starts(cursor: LineCursor) -> Iterator[tuple[LineBlock, Sequence[int]]]:
    """Rows may span lines, and the first is the header."""
    rows = CsvRows(cursor)
    skip = 1
    while (block := rows.take(_ALL, fields=False)) is not None:
        yield block.lines, block.starts[skip:]
        skip = 0
