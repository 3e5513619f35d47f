"""Where rows begin: a file's rows are counted without being parsed, and some of them placed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.csv_rows import CsvRows
from c2v_engine.jobs.corpus.cursor import LineCursor
from c2v_engine.jobs.corpus.inputs import InputFile
from c2v_engine.jobs.corpus.tables import count_rows
from c2v_engine.jobs.readers.base import one_line
from c2v_engine.jobs.readers.source import UTF8_BOM, ByteSource

_CHUNK_BYTES = 4 * 1024 * 1024


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


def mark_rows(file: InputFile, first: int, step: int) -> tuple[int, list[Mark]]:
    """Count a file's rows, and place row 0 and the rows ``first``, ``first + step``, ...

    Args:
        file: the file.
        first: the first row to place, at least 1.
        step: from one to the next.

    Returns:
        The number of rows, and the marks of those that there are.

    Raises:
        InputError: the file can not be read, or is broken.
    """
    if file.format in ("parquet", "arrow"):
        rows = count_rows(file)
        return rows, [Mark(row, None, None) for row in _wanted(first, step, rows)]
    if file.format == "csv":
        return _csv_marks(file, first, step)
    return _line_marks(file, first, step)


def _wanted(first: int, step: int, rows: int) -> list[int]:
    return ([0] if rows else []) + list(range(first, rows, step))


def _csv_marks(file: InputFile, first: int, step: int) -> tuple[int, list[Mark]]:
    cursor = LineCursor(file)
    marks: list[Mark] = []
    try:
        rows = iter(CsvRows(cursor))
        next(rows, None)  # the header
        count, following = 0, 0
        for row in rows:
            if count == following:
                marks.append(Mark(count, row.offset, row.line))
                following = first if count == 0 else following + step
            count += 1
    finally:
        cursor.close()
    return count, marks


def _line_marks(file: InputFile, first: int, step: int) -> tuple[int, list[Mark]]:
    """Rows are lines. Those at the end of JSON lines that hold nothing are none."""
    blank_ends = file.format == "jsonl"
    marks: list[Mark] = []
    lines = offset = last = 0  # ended lines, bytes before the chunk, lines up to the last content
    following = 0
    tail = b""
    for chunk in _chunks(file):
        if offset == 0 and chunk.startswith(UTF8_BOM):
            offset, chunk = len(UTF8_BOM), chunk[len(UTF8_BOM) :]
        ends = chunk.count(b"\n")
        if following == 0 and chunk:
            marks.append(Mark(0, 0, 1))  # a byte-order mark is the first line's
            following = first
        if following <= lines + ends:
            places = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            while following <= lines + ends:
                place = offset + int(places[following - lines - 1]) + 1
                marks.append(Mark(following, place, following + 1))
                following += step
        if blank_ends and (content := len(chunk.rstrip())):
            last = lines + chunk.count(b"\n", 0, content) + 1
        lines += ends
        offset += len(chunk)
        tail = chunk or tail
    rows = last if blank_ends else lines + (tail[-1:] not in (b"\n", b""))
    return rows, [mark for mark in marks if mark.row < rows]


def _chunks(file: InputFile) -> Iterator[bytes]:
    source = ByteSource(file.name, file.compression, file.open())
    try:
        yield from source.chunks(_CHUNK_BYTES)
    except OSError as error:
        raise InputError(f"{file.name}: can not be read: {one_line(error)}") from error
    finally:
        source.close()
