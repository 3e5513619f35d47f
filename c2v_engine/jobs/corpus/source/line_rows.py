"""Blocks of rows of the formats that consist of lines: plain text, JSON lines, CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from c2v_engine.jobs.corpus.records import RowBlock, Segment
from c2v_engine.jobs.corpus.source.csv_rows import CsvBlock, CsvRows
from c2v_engine.jobs.corpus.source.cursor import LineBlock, LineCursor
from c2v_engine.jobs.corpus.source.gathering import Gathered
from c2v_engine.jobs.corpus.source.inputs import InputFile
from c2v_engine.jobs.corpus.source.plan import Plan, csv_header
from c2v_engine.jobs.readers.base import RowError
from c2v_engine.jobs.readers.delimited import BLANK_LINE, empty_id, find_in_header, wrong_width
from c2v_engine.jobs.readers.jsonl import BLANK_LINE as BLANK_JSON_LINE
from c2v_engine.jobs.readers.jsonl import JsonLinesParser
from c2v_engine.jobs.readers.source import Line, decode_line

BLOCK_ROWS = 1024
_JSON_SPACE = " \t\r\n"


class LinesReader:
    """Reads segments of one file.

    Args:
        file: the file.
        plan: the job's, whose columns are read.

    Raises:
        InputError: the file can not be opened.
    """

    def __init__(self, file: InputFile, plan: Plan) -> None:
        self.file = file
        self.plan = plan
        self.cursor = LineCursor(file)

    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        """Give a segment's rows.

        Args:
            segment: of the file.
            first: its first row, counted from 0 in the whole input.

        Raises:
            InputError: the file can not be read on.
        """
        self._seek(segment)
        row, left = segment.first_row, segment.rows
        while left and (lines := self.cursor.take(min(left, BLOCK_ROWS))) is not None:
            numbers = range(lines.number + 1, lines.number + len(lines) + 1)
            place = first + row - segment.first_row
            yield self._read(lines, Gathered(self.plan, self.file, place, row, numbers))
            row, left = row + len(lines), left - len(lines)

    def close(self) -> None:
        """Close the file."""
        self.cursor.close()

    def _seek(self, segment: Segment) -> None:
        assert segment.offset is not None
        assert segment.line is not None
        self.cursor.seek(segment.offset, segment.line - 1)

    def _read(self, lines: LineBlock, rows: Gathered) -> RowBlock:
        raise NotImplementedError


class TextRows(LinesReader):
    """A line is a text."""

    def _read(self, lines: LineBlock, rows: Gathered) -> RowBlock:
        try:
            texts = lines.data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            for line in lines.lines():
                self._take(line, rows)
            return rows.block()
        if b"\r" in lines.data:
            last = texts[-1]
            texts = [text.removesuffix("\r") for text in texts]
            if not lines.ended:
                texts[-1] = last
        rows.texts += texts
        return rows.block()

    def _take(self, line: Line, rows: Gathered) -> None:
        try:
            text = decode_line(self.file.name, line)
        except RowError as error:
            rows.reject(error.reason)
        else:
            rows.add(text.removesuffix("\r") if line.ended else text, None, [])


class JsonLinesRows(LinesReader):
    """A line is a JSON object."""

    def __init__(self, file: InputFile, plan: Plan) -> None:
        super().__init__(file, plan)
        self._parser = JsonLinesParser(file.name, plan.column, plan.id_column)
        self._decode = json.JSONDecoder().raw_decode

    def _read(self, lines: LineBlock, rows: Gathered) -> RowBlock:
        try:
            self._read_quickly(lines, rows)
            if b"\\ud" in lines.data.lower():  # it may be half a surrogate pair
                "".join(filter(None, rows.texts)).encode("utf-8")
            return rows.block()
        except UnicodeError:
            rows.clear()
        for line in lines.lines():
            self._take(line, rows)
        return rows.block()

    def _read_quickly(self, lines: LineBlock, rows: Gathered) -> None:
        """Read good rows; any row that may not be one is left to ``_take``."""
        decode, column, id_column = self._decode, self.plan.column, self.plan.id_column
        texts, ids, kept = rows.texts, rows.ids, list(zip(self.plan.keep, rows.kept, strict=True))
        held: list[Line] = []
        for position, text_line in enumerate(lines.data.decode("utf-8").split("\n")):
            try:
                values, end = decode(text_line)
                text = values[column]
                found = "" if id_column is None else values[id_column]
            except (ValueError, LookupError, TypeError, RecursionError):
                text, end = None, len(text_line)
            more = end < len(text_line) and text_line[end:].strip(_JSON_SPACE)
            if more or type(text) is not str or type(found) not in (str, int):
                held = held or list(lines.lines())
                self._take(held[position], rows)
                continue
            texts.append(text)
            if id_column is not None:
                ids.append(str(found))
            for name, column_values in kept:
                column_values.append(json_text(values.get(name)))

    def _take(self, line: Line, rows: Gathered) -> None:
        values: dict[str, Any] = {}
        try:
            if not line.data.strip():
                rows.reject(BLANK_JSON_LINE)
                return
            values = self._parser.parse(line)
            record = self._parser.record(line, values)
            kept = [json_text(values.get(name)) for name in self.plan.keep]
            for name, value in zip(self.plan.keep, kept, strict=True):
                if value is not None:
                    self._parser.check_unicode(value, name, line)
        except RowError as error:
            rows.reject(error.reason, self._key(values))
        else:
            rows.add(record.text, None if self.plan.id_column is None else str(record.id), kept)

    def _key(self, values: dict[str, Any]) -> str | None:
        key = None if self.plan.id_column is None else values.get(self.plan.id_column)
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            return None
        return str(key) if is_text(str(key)) else None


class CsvRowsReader(LinesReader):
    """A row may span lines; blocks of rows that are begun are held for the next segment."""

    def __init__(self, file: InputFile, plan: Plan) -> None:
        header = csv_header(file) or []  # before another opens it: some in memory share their place
        super().__init__(file, plan)
        self._width = len(header)
        self._text = find_in_header(file.name, header, plan.column)
        self._id = -1
        if plan.id_column is not None:
            self._id = find_in_header(file.name, header, plan.id_column)
        self._keep = [find_in_header(file.name, header, name) for name in plan.keep]
        self._source = CsvRows(self.cursor)
        self._block: CsvBlock | None = None
        self._position = 0  # of the next row in the block
        self._row = -1  # the next row's number in the file

    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        """Give a segment's rows; as ``LinesReader``."""
        self._go_to(segment)
        end = segment.first_row + segment.rows
        while self._row < end:
            if self._block is None or self._position >= len(self._block):
                self._block, self._position = self._source.take(BLOCK_ROWS), 0
            block = self._block
            if block is None:
                return
            row, start = self._row, self._position
            count = min(end - row, len(block) - start)
            self._row, self._position = row + count, start + count
            numbers = [block.lines.number + 1 + at for at in block.starts[start : start + count]]
            rows = Gathered(self.plan, self.file, first + row - segment.first_row, row, numbers)
            chosen = block.rows[start : start + count]
            if block.broken or not self._take_all(chosen, rows):
                for fields in chosen:
                    self._take(fields, rows, block.broken)
            yield rows.block()

    def _take_all(self, chosen: list[list[str] | str], rows: Gathered) -> bool:
        """Take rows if all of them are good."""
        if set(map(type, chosen)) != {list} or set(map(len, chosen)) != {self._width}:
            return False
        if self._id >= 0:
            ids = [fields[self._id] for fields in chosen]
            if not all(ids):
                return False
            rows.ids += ids
        rows.texts += [fields[self._text] for fields in chosen]
        for values, number in zip(rows.kept, self._keep, strict=True):
            values += [fields[number] for fields in chosen]
        return True

    def _go_to(self, segment: Segment) -> None:
        position = self._position + segment.first_row - self._row
        if self._block is None or not 0 <= position <= len(self._block):
            self._seek(segment)
            self._source, self._block = CsvRows(self.cursor), None
        self._position, self._row = position, segment.first_row

    def _take(self, fields: list[str] | str, rows: Gathered, broken: bool) -> None:
        if isinstance(fields, str):
            rows.reject(fields)
        elif broken and not all(map(is_text, fields)):
            rows.reject("not valid UTF-8")
        elif not fields:
            rows.reject(BLANK_LINE)
        elif len(fields) != self._width:
            rows.reject(wrong_width(fields, self._width))
        elif self._id >= 0 and not fields[self._id]:
            rows.reject(empty_id(str(self.plan.id_column)))
        else:
            key = fields[self._id] if self._id >= 0 else None
            rows.add(fields[self._text], key, [fields[number] for number in self._keep])


def json_text(value: Any) -> str | None:
    """A value of a row as text: a string as it is, null as null, all else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
