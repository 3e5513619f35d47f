"""Rows of a CSV file, many at a time, each with the line where it begins."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source.cursor import LineBlock, LineCursor
from c2v_engine.jobs.readers.delimited import MAX_FIELD_CHARACTERS, csv_reason

# After these the reader can not tell where the next row begins.
_ENDLESS = ("unexpected end of data", "field larger than field limit")

_LONG = 16 * 1024 * 1024


@dataclass(frozen=True)
class CsvBlock:
    """Consecutive rows of a file; the header is a row like others, and so is a blank line.

    Attributes:
        lines: that they stand on.
        starts: of each row, the line where it begins, counted from 0 among these.
        rows: the fields of each, none of a blank line; or words for what is wrong with it.
        broken: whether lines are not valid UTF-8; such bytes are lone surrogates in the fields.
    """

    lines: LineBlock
    starts: Sequence[int]
    rows: list[list[str] | str]
    broken: bool

    def __len__(self) -> int:
        return len(self.starts)


class CsvRows:
    """Reads rows from where a cursor stands.

    Args:
        cursor: on the file's lines. A row's lines are all taken, and so may be some more.
    """

    def __init__(self, cursor: LineCursor) -> None:
        self._cursor = cursor
        self._held: LineBlock | None = None  # the lines of a row of which more is to come
        # The module's own limit, 128 KiB, is less than a long text; it can only be set for all.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))

    def take(self, limit: int, *, fields: bool = True) -> CsvBlock | None:
        """Give the next rows, one at least; None at the end.

        Args:
            limit: how many lines are looked at, unless a single row has more.
            fields: whether these are wanted; ``rows`` is empty where they are not needed.

        Raises:
            InputError: the file is broken from there on, or a quote is left open.
        """
        lines, self._held = self._held, None
        size = 0
        while True:
            lines = self._more(lines, limit, size)
            if lines is None:
                return None
            found = None if fields else _find_rows(lines)
            block, rest = self._parse(lines) if found is None else found
            if rest is None:
                return block
            if block.starts:
                self._held = lines.after(rest)
                return block
            size = 2 * len(lines.data)  # so that a long row is not begun again too often

    def _more(self, held: LineBlock | None, limit: int, size: int) -> LineBlock | None:
        parts = [] if held is None else [held]
        count = sum(len(part.data) for part in parts)
        while True:
            more = self._cursor.take(limit)
            if more is None:
                break
            parts.append(more)
            count += len(more.data)
            if count >= size:
                break
        if more is None and held is not None and len(parts) == 1:
            line = held.number + 1
            reason = csv_reason(_ENDLESS[0], line)
            raise InputError(f"{self._cursor.name}, from line {line} on: {reason}")
        if not parts:
            return None
        first = parts[0]
        data = b"\n".join(part.data for part in parts)
        return LineBlock(first.number, first.offset, data, parts[-1].ended)

    def _parse(self, lines: LineBlock) -> tuple[CsvBlock, int | None]:
        """Give the rows that end in these lines, and on which of these one begins that does not."""
        broken = False
        try:
            text = lines.data.decode("utf-8")
        except UnicodeDecodeError:
            broken = True
            text = lines.data.decode("utf-8", "surrogateescape")
        text += "\n" if lines.ended else ""
        reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
        rows: list[list[str] | str] = []
        starts: list[int] = []
        start = 0
        if b'"' not in lines.data:
            with suppress(csv.Error):  # all rows are read again, to find the one that is broken
                return CsvBlock(lines, range(len(lines)), list(reader), broken), None
            reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
        while True:
            try:
                for fields in reader:
                    rows.append(fields)
                    starts.append(start)
                    start = reader.line_num
                return CsvBlock(lines, starts, rows, broken), None
            except csv.Error as error:
                message = str(error)
                if _ENDLESS[0] in message:
                    return CsvBlock(lines, starts, rows, broken), start
                line = lines.number + start + 1
                reason = csv_reason(message, line)
                if _ENDLESS[1] in message:
                    place = f"{self._cursor.name}, from line {line} on"
                    raise InputError(f"{place}: {reason}") from error
                rows.append(reason)
                starts.append(start)
                start = reader.line_num  # the reader goes on with the line after it


def _find_rows(lines: LineBlock) -> tuple[CsvBlock, int | None] | None:
    """As ``CsvRows._parse``, but without the fields; None where only that can tell."""
    data = lines.data
    if b'"' not in data:
        return CsvBlock(lines, range(len(lines)), [], False), None
    if (
        len(data) > _LONG
        or b"\0" in data
        or data.count(b"\r") != data.count(b"\r\n") + (lines.ended and data.endswith(b"\r"))
    ):
        return None
    around = np.frombuffer(b"\n" + data + b"\n", np.uint8)
    quotes = np.flatnonzero(around == ord('"'))
    # Where each odd quote begins a field or stands next to the even one before it, and each even
    # one ends a field or stands next to the odd one after it, line ends that an odd number of
    # quotes precedes are part of a field, and no others.
    if not _BEFORE[around[quotes[::2] - 1]].all() or not _AFTER[around[quotes[1::2] + 1]].all():
        return None
    inside = np.searchsorted(quotes - 1, lines.ends) % 2 == 1
    starts = [0, *(np.flatnonzero(~inside) + 1).tolist()]
    rest = starts.pop() if len(quotes) % 2 else None
    return CsvBlock(lines, starts, [], False), rest


def _table(characters: bytes) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[np.frombuffer(characters, np.uint8)] = True
    return table


_BEFORE, _AFTER = _table(b'\n,"'), _table(b'\r\n,"')
