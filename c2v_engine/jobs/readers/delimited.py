"""``.csv``: comma-separated, with a header row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import DEFAULT_COLUMN, Record, missing_column
from c2v_engine.jobs.readers.source import ByteSource, SourceReader

MAX_FIELD_CHARACTERS = 64 * 1024 * 1024
BLANK_LINE = 'a blank line, expected a row (an empty text is written "")'


class CsvReader(SourceReader):
    """The first row names the columns; every other row has as many fields. Ids are strings.

    A quoted field may span lines. Blank lines may only end the file (an empty text is ``""``).

    Raises:
        InputError: the file can not be opened, or its header lacks a column.
    """

    def __init__(
        self, path: Path, compression: str | None, column: str | None, id_column: str | None
    ) -> None:
        self.path = path
        self.id_column = id_column
        self.id_type = pa.int64() if id_column is None else pa.string()
        self._column = DEFAULT_COLUMN if column is None else column
        self._source = ByteSource(path, compression)
        # The module's own limit, 128 KiB, is less than a long text; it can only be set for all.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
        self._rows = csv.reader(self._text_lines(), strict=True)
        try:
            self._header = self._next_row(0)
            if self._header is not None:
                self._text_index = find_in_header(path, self._header, self._column)
                if id_column is not None:
                    self._id_index = find_in_header(path, self._header, id_column)
        except BaseException:
            self._source.close()
            raise

    def _text_lines(self) -> Iterator[str]:
        for line in self._source.lines():
            text = self._source.decode(line)
            yield text + "\n" if line.ended else text

    def _next_row(self, row: int) -> list[str] | None:
        start = self._rows.line_num + 1
        try:
            return next(self._rows, None)
        except csv.Error as error:
            reason = csv_reason(str(error), start)
            if row == 0:
                raise InputError(f"{self.path}, header (line {start}): {reason}") from error
            raise self.bad_row(row, start, reason) from error

    def __iter__(self) -> Iterator[Record]:
        if self._header is None:
            return
        width = len(self._header)
        number = 0
        blank: int | None = None
        while True:
            line = self._rows.line_num + 1
            fields = self._next_row(number + 1)
            if fields is None:
                return
            if not fields:
                blank = blank or line
                continue
            number += 1
            if blank is not None:
                raise self.bad_row(number, blank, BLANK_LINE)
            if len(fields) != width:
                raise self.bad_row(number, line, wrong_width(fields, width))
            yield self._record(fields, number, line)

    def _record(self, fields: list[str], number: int, line: int) -> Record:
        text = fields[self._text_index]
        if self.id_column is None:
            return Record(text, number - 1, line)
        key = fields[self._id_index]
        if not key:
            raise self.bad_row(number, line, empty_id(self.id_column))
        return Record(text, key, line)


def find_in_header(path: Path | str, header: list[str], column: str) -> int:
    """Find a column among a header's fields.

    Raises:
        InputError: there is none, or more than one.
    """
    count = header.count(column)
    if count == 1:
        return header.index(column)
    if count == 0:
        raise InputError(f"{path}: {missing_column(column, header)}")
    raise InputError(f"{path}: {count} columns are named {column!r}, expected one")


def wrong_width(fields: list[str], width: int) -> str:
    """Say that a row has too few or too many fields."""
    return f"{len(fields)} fields, expected {width} as in the header"


def empty_id(column: str) -> str:
    """Say that a row has no id."""
    return f"id column {column!r} is empty"


def csv_reason(message: str, line: int) -> str:
    """Say in a user's words what the csv module found."""
    if "field larger than field limit" in message:
        return f"a field longer than {MAX_FIELD_CHARACTERS} characters; is a quote left open here?"
    if "unexpected end of data" in message:
        return f"a quoted field that starts on or after line {line} is never closed"
    if "new-line character seen" in message:
        return "a carriage return stands outside quotes; only \\n and \\r\\n end a line"
    return f"broken CSV: {message}"
