"""``.jsonl``: a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from c2v_engine.jobs.readers.base import DEFAULT_COLUMN, Record, RowError, missing_column
from c2v_engine.jobs.readers.source import ByteSource, Line, SourceReader, decode_line

BLANK_LINE = "a blank line, expected a JSON object"


class JsonLinesReader(SourceReader):
    """Every line is a JSON object with the text, and the id where one is asked for, among its keys.

    Ids are strings; an integer becomes its decimal string. Blank lines may only end the file.

    Raises:
        InputError: the file can not be opened.
    """

    def __init__(
        self, path: Path, compression: str | None, column: str | None, id_column: str | None
    ) -> None:
        self.path = path
        self.id_column = id_column
        self.id_type = pa.int64() if id_column is None else pa.string()
        self._parser = JsonLinesParser(path, column, id_column)
        self._source = ByteSource(path, compression)

    def __iter__(self) -> Iterator[Record]:
        for line, row in self.objects():
            yield self._parser.record(line, row)

    def objects(self) -> Iterator[tuple[Line, dict[str, Any]]]:
        """Give every line and the object in it, with all its keys.

        Raises:
            InputError: a line is not a JSON object.
        """
        blank: int | None = None
        for line in self._source.lines():
            if not line.data.strip():
                blank = blank or line.number
                continue
            if blank is not None:
                raise self.bad_row(blank, blank, BLANK_LINE)
            yield line, self._parser.parse(line)

    def text(self, line: Line, row: dict[str, Any], column: str) -> str:
        """Give a column's text; as ``JsonLinesParser.text``."""
        return self._parser.text(line, row, column)


class JsonLinesParser:
    """Reads single lines, and says what is wrong with one.

    Args:
        path: the file, for messages.
        column: with the text; ``text`` when none is named.
        id_column: with the id; None where it is the row's number.
    """

    def __init__(self, path: Path | str, column: str | None, id_column: str | None) -> None:
        self.path = path
        self.id_column = id_column
        self._column = DEFAULT_COLUMN if column is None else column

    def parse(self, line: Line) -> dict[str, Any]:
        """Read the object in a line.

        Raises:
            RowError: there is none.
        """
        text = decode_line(self.path, line)
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            reason = f"broken JSON: {error.msg.removesuffix(' at')} at character {error.colno}"
            raise self._bad(line, reason) from error
        except RecursionError as error:
            raise self._bad(line, "broken JSON: nested too deeply") from error
        except ValueError as error:
            raise self._bad(line, "broken JSON: a number has too many digits") from error
        if not isinstance(row, dict):
            raise self._bad(line, f"the line is {_name(row)}, expected a JSON object")
        return row

    def record(self, line: Line, row: dict[str, Any]) -> Record:
        """Give a row's text and id.

        Raises:
            RowError: one of them can not be used.
        """
        text = self.text(line, row, self._column)
        if self.id_column is None:
            return Record(text, line.number - 1, line.number)
        key = self._value(row, self.id_column, line)
        if isinstance(key, int) and not isinstance(key, bool):
            return Record(text, str(key), line.number)
        if not isinstance(key, str):
            raise self._bad(
                line, f"id column {self.id_column!r} is {_name(key)}, expected a string or integer"
            )
        self.check_unicode(key, self.id_column, line)
        return Record(text, key, line.number)

    def text(self, line: Line, row: dict[str, Any], column: str) -> str:
        """Give a column's text.

        Raises:
            RowError: it is missing, or not text.
        """
        text = self._value(row, column, line)
        if not isinstance(text, str):
            raise self._bad(line, f"column {column!r} is {_name(text)}, expected a string")
        self.check_unicode(text, column, line)
        return text

    def check_unicode(self, value: str, column: str, line: Line) -> None:
        """See that a value can be written.

        Raises:
            RowError: it holds a lone surrogate.
        """
        if b"\\u" not in line.data:
            return  # only an escape can be one: the line itself is valid UTF-8
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"\\u{ord(value[error.start]):04x}"
            reason = f"column {column!r} holds a lone surrogate ({code}), which is not valid text"
            raise self._bad(line, reason) from error

    def _value(self, row: dict[str, Any], column: str, line: Line) -> Any:
        try:
            return row[column]
        except KeyError:
            raise self._bad(line, missing_column(column, row)) from None

    def _bad(self, line: Line, reason: str) -> RowError:
        return RowError(f"{self.path}, line {line.number}", reason)


def _name(value: Any) -> str:
    """Name a value's JSON type, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
