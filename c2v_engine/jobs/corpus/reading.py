"""Blocks of rows of a unit, read from where it begins; bad rows stop the job or are set aside."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.csv_rows import CsvRow, CsvRows
from c2v_engine.jobs.corpus.cursor import LineCursor
from c2v_engine.jobs.corpus.inputs import InputFile
from c2v_engine.jobs.corpus.plan import Plan, csv_header
from c2v_engine.jobs.corpus.records import Reject, RowBlock, Segment, Unit
from c2v_engine.jobs.corpus.tables import open_table
from c2v_engine.jobs.readers.base import RowError
from c2v_engine.jobs.readers.jsonl import JsonLinesReader
from c2v_engine.jobs.readers.source import Line

_BLOCK_ROWS = 1024
_BLOCK_CHARACTERS = 4 * 1024 * 1024


class UnitReader:
    """Reads the units of a plan, in any order; the last file stays open for the next unit.

    Args:
        plan: the job's.
        on_error: ``fail``: a bad row is an error; otherwise it is a reject of its block.
    """

    def __init__(self, plan: Plan, on_error: str = "fail") -> None:
        self._plan = plan
        self._fail = on_error == "fail"
        self._open: tuple[int, _FileReader] | None = None

    def read(self, unit: Unit) -> Iterator[RowBlock]:
        """Give a unit's rows in blocks, in order.

        Raises:
            InputError: a row that can not be used, where that is an error; or a file that can not
                be read, always. The message names the file and the row.
        """
        first = unit.first_row
        for segment in unit.segments:
            found = 0
            for block in self._reader(segment.file).blocks(segment, first):
                if self._fail and block.rejects:
                    reject = block.rejects[min(block.rejects)]
                    raise InputError(f"{reject.place}: {reject.reason}")
                found += len(block)
                yield block
            if found != segment.rows:
                raise InputError(
                    f"{self._plan.files[segment.file].name}: has {segment.first_row + found} rows, "
                    f"expected {segment.first_row + segment.rows} or more: it has changed"
                )
            first += segment.rows

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _reader(self, number: int) -> _FileReader:
        if self._open is None or self._open[0] != number:
            self.close()
            file = self._plan.files[number]
            self._open = number, _READERS[file.format](file, self._plan)
        return self._open[1]


class _FileReader(ABC):
    """Reads segments of one file."""

    def __init__(self, file: InputFile, plan: Plan) -> None:
        self.file = file
        self.plan = plan

    @abstractmethod
    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        """Give a segment's rows; ``first`` is its first row in the whole input."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class _LinesReader(_FileReader):
    """Of a format that is read line by line."""

    def __init__(self, file: InputFile, plan: Plan) -> None:
        super().__init__(file, plan)
        self.cursor = LineCursor(file)

    def close(self) -> None:
        self.cursor.close()

    def start(self, segment: Segment) -> None:
        assert segment.offset is not None
        assert segment.line is not None
        self.cursor.seek(segment.offset, segment.line - 1)


class _Collector:
    """Gathers rows of a text format into a block."""

    def __init__(self, file: InputFile, plan: Plan, first_row: int, file_row: int) -> None:
        self._file, self._plan = file, plan
        self._begin(first_row, file_row)

    def _begin(self, first_row: int, file_row: int) -> None:
        self._first_row, self._file_row = first_row, file_row
        self._texts: list[str | None] = []
        self._ids: list[Any] = []
        self._kept: list[list[str | None]] = [[] for _ in self._plan.keep]
        self._lines: list[int] = []
        self._rejects: dict[int, Reject] = {}
        self._characters = 0

    def add(self, text: str, key: Any, kept: list[str | None], line: int) -> bool:
        """Take a row; True where the block is full."""
        self._texts.append(text)
        self._ids.append(self._first_row + len(self._ids) if self._plan.id_column is None else key)
        for values, value in zip(self._kept, kept, strict=True):
            values.append(value)
        self._lines.append(line)
        self._characters += len(text)
        return len(self._texts) >= _BLOCK_ROWS or self._characters >= _BLOCK_CHARACTERS

    def reject(self, reason: str, key: Any, kept: list[str | None], line: int) -> bool:
        """Take a row that can not be used."""
        position = len(self._texts)
        full = self.add("", key, kept, line)
        self._texts[position] = None
        place = RowBlock(0, [], None, {}, self._file.name, self._file_row + position, [line])
        found = self._ids[position]
        row = self._first_row + position
        self._rejects[position] = Reject(row, found, place.place(0), reason)
        return full

    def block(self) -> RowBlock:
        """Give the block, and begin another."""
        schema = self._plan.schema
        arrays = [pa.array(self._ids, schema.field(0).type)]
        arrays += [pa.array(values, pa.string()) for values in self._kept]
        block = RowBlock(
            self._first_row,
            self._texts,
            pa.RecordBatch.from_arrays(arrays, schema=_nullable(schema, arrays[0])),
            self._rejects,
            self._file.name,
            self._file_row,
            self._lines,
        )
        self._begin(self._first_row + len(self._texts), self._file_row + len(self._texts))
        return block

    def __len__(self) -> int:
        return len(self._texts)


def _nullable(schema: Any, ids: Any) -> Any:
    """The schema, its id nullable where a rejected row has none (such rows are left out later)."""
    if not ids.null_count or schema.field(0).nullable:
        return schema
    return schema.set(0, schema.field(0).with_nullable(True))


class _TextReader(_LinesReader):
    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        self.start(segment)
        rows = _Collector(self.file, self.plan, first, segment.first_row)
        for _ in range(segment.rows):
            line = next(self.cursor, None)
            if line is None:
                break
            try:
                text = line.data.decode("utf-8")
            except UnicodeDecodeError as error:
                full = rows.reject(_not_utf8(line, error), None, [], line.number)
            else:
                if line.ended and text.endswith("\r"):
                    text = text[:-1]
                full = rows.add(text, None, [], line.number)
            if full:
                yield rows.block()
        if len(rows):
            yield rows.block()


class _JsonLinesReader(_LinesReader):
    def __init__(self, file: InputFile, plan: Plan) -> None:
        super().__init__(file, plan)
        self._parser = JsonLinesReader(
            Path(file.name), None, plan.column, plan.id_column, self.cursor.source
        )

    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        self.start(segment)
        rows = _Collector(self.file, self.plan, first, segment.first_row)
        for _ in range(segment.rows):
            line = next(self.cursor, None)
            if line is None:
                break
            if self._take(line, rows):
                yield rows.block()
        if len(rows):
            yield rows.block()

    def _take(self, line: Line, rows: _Collector) -> bool:
        values: dict[str, Any] = {}
        try:
            if not line.data.strip():
                raise RowError("", "a blank line, expected a JSON object")
            values = self._parser.parse(line)
            record = self._parser.record(line, values)
            kept = [_json_text(values.get(name)) for name in self.plan.keep]
            if b"\\u" in line.data:
                _check_kept(kept, self.plan.keep)
        except RowError as error:
            none: list[str | None] = [None] * len(self.plan.keep)
            return rows.reject(error.reason, self._key(values), none, line.number)
        return rows.add(record.text, record.id, kept, line.number)

    def _key(self, values: dict[str, Any]) -> str | None:
        key = None if self.plan.id_column is None else values.get(self.plan.id_column)
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            return None
        return str(key) if _is_text(str(key)) else None


class _CsvReader(_LinesReader):
    def __init__(self, file: InputFile, plan: Plan) -> None:
        super().__init__(file, plan)
        header = csv_header(file)
        self._width = len(header)
        self._text = header.index(plan.column)
        self._id = None if plan.id_column is None else header.index(plan.id_column)
        self._keep = [header.index(name) for name in plan.keep]

    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        self.start(segment)
        rows = _Collector(self.file, self.plan, first, segment.first_row)
        source = iter(CsvRows(self.cursor))
        for _ in range(segment.rows):
            row = next(source, None)
            if row is None:
                break
            if self._take(row, rows):
                yield rows.block()
        if len(rows):
            yield rows.block()

    def _take(self, row: CsvRow, rows: _Collector) -> bool:
        fields, key = row.fields, None
        reason = None
        if row.broken and not all(map(_is_text, fields)):
            reason = "not valid UTF-8"
        elif len(fields) != self._width:
            reason = f"{len(fields)} fields, expected {self._width} as in the header"
        elif self._id is not None:
            key = fields[self._id] or None
            if key is None:
                reason = f"id column {self.plan.id_column!r} is empty"
        if reason is not None:
            none: list[str | None] = [None] * len(self._keep)
            return rows.reject(reason, key, none, row.line)
        kept: list[str | None] = [fields[number] for number in self._keep]
        return rows.add(fields[self._text], key, kept, row.line)


class _TableReader(_FileReader):
    """Of Parquet and Arrow files, which stay in columns."""

    def __init__(self, file: InputFile, plan: Plan) -> None:
        super().__init__(file, plan)
        self._table = open_table(file)

    def close(self) -> None:
        self._table.close()

    def blocks(self, segment: Segment, first: int) -> Iterator[RowBlock]:
        plan = self.plan
        names = [plan.column, *([plan.id_column] if plan.id_column else []), *plan.keep]
        wanted = list(dict.fromkeys(names))
        row = segment.first_row
        for batch in self._table.batches(wanted, segment.first_row, segment.rows):
            yield self._block(batch, first + row - segment.first_row, row)
            row += len(batch)

    def _block(self, batch: Any, first: int, row: int) -> RowBlock:
        plan, schema = self.plan, self.plan.schema
        block = RowBlock(first, [], None, {}, self.file.name, row)
        texts, bad = _strings(_column(batch, plan.column), plan.column)
        if plan.id_column is None:
            ids = pa.array(range(first, first + len(batch)), pa.int64())
        else:
            ids = _column(batch, plan.id_column).cast(schema.field(0).type)
            bad = {**bad, **_bad_ids(ids, plan.id_column)}
        keys = ids.to_pylist() if bad and not _undecodable(ids) else None
        for place, reason in sorted(bad.items()):
            texts[place] = None
            key = None if keys is None else keys[place]
            block.rejects[place] = Reject(first + place, key, block.place(place), reason)
        kept = [_column(batch, name).cast(schema.field(name).type) for name in plan.keep]
        block.texts = texts
        block.columns = pa.RecordBatch.from_arrays([ids, *kept], schema=_nullable(schema, ids))
        return block


_READERS: dict[str, type[_FileReader]] = {
    "txt": _TextReader,
    "jsonl": _JsonLinesReader,
    "csv": _CsvReader,
    "parquet": _TableReader,
    "arrow": _TableReader,
}


def _column(batch: Any, name: str) -> Any:
    array = batch.column(batch.schema.get_field_index(name))
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _strings(array: Any, column: str) -> tuple[list[str | None], dict[int, str]]:
    """The values of a string column, and what is wrong with some."""
    bad = {}
    if array.null_count:
        nulls = array.is_null().to_pylist()
        reason = f"column {column!r} is null, expected a string"
        bad = {place: reason for place, null in enumerate(nulls) if null}
    try:
        return array.to_pylist(), bad
    except UnicodeDecodeError:
        pass
    texts: list[str | None] = []
    for place in range(len(array)):
        try:
            texts.append(array[place].as_py())
        except UnicodeDecodeError as error:
            texts.append(None)
            bad[place] = f"column {column!r} is not valid UTF-8 (byte {error.start} of the text)"
    return texts, bad


def _bad_ids(ids: Any, column: str) -> dict[int, str]:
    reason = f"column {column!r} is null, expected a string or integer"
    bad = {}
    if ids.null_count:
        bad = {place: reason for place, null in enumerate(ids.is_null().to_pylist()) if null}
    if _undecodable(ids):
        bad |= _strings(ids, column)[1]
    return bad


def _undecodable(ids: Any) -> bool:
    if pa.types.is_integer(ids.type):
        return False
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid:
        return True
    return False


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _check_kept(kept: list[str | None], names: tuple[str, ...]) -> None:
    for name, value in zip(names, kept, strict=True):
        if value is not None and not _is_text(value):
            raise RowError("", f"column {name!r} holds a lone surrogate, which is not valid text")


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(line: Line, error: UnicodeDecodeError) -> str:
    byte = line.data[error.start]
    return f"not valid UTF-8 (byte {line.offset + error.start} of the file, 0x{byte:02x})"
