"""Rows of a CSV file, each with the byte and the line where it begins."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import NamedTuple

from c2v_engine.jobs.corpus.cursor import LineCursor
from c2v_engine.jobs.readers.base import RowError
from c2v_engine.jobs.readers.delimited import MAX_FIELD_CHARACTERS, csv_reason


class CsvRow(NamedTuple):
    """A row as it stands in the file.

    Attributes:
        offset: of its first byte in the decompressed file.
        line: on which it begins, counted from 1.
        fields: of the row.
        broken: whether a line of it is not valid UTF-8; such bytes are lone surrogates then.
    """

    offset: int
    line: int
    fields: list[str]
    broken: bool


class CsvRows:
    """Reads rows from where a cursor stands; the header is a row like others.

    Blank lines are passed over.

    Args:
        cursor: on the file's lines.
    """

    def __init__(self, cursor: LineCursor) -> None:
        self._cursor = cursor
        self._broken = False
        # The module's own limit, 128 KiB, is less than a long text; it can only be set for all.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
        self._reader = csv.reader(self._lines(), strict=True)

    def __iter__(self) -> Iterator[CsvRow]:
        while True:
            offset, line = self._cursor.offset, self._cursor.number + 1
            self._broken = False
            try:
                fields = next(self._reader, None)
            except csv.Error as error:
                place = f"{self._cursor.name}, line {line}"
                raise RowError(place, csv_reason(str(error), line)) from error
            if fields is None:
                return
            if fields:
                yield CsvRow(offset, line, fields, self._broken)

    def _lines(self) -> Iterator[str]:
        for line in self._cursor:
            try:
                text = line.data.decode("utf-8")
            except UnicodeDecodeError:
                self._broken = True
                text = line.data.decode("utf-8", "surrogateescape")
            yield text + "\n" if line.ended else text
