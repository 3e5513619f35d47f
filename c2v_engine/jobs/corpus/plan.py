"""The plan of a corpus job: its input files, and the units that they are cut into."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.corpus.csv_rows import CsvRows
from c2v_engine.jobs.corpus.cursor import LineCursor
from c2v_engine.jobs.corpus.inputs import InputFile
from c2v_engine.jobs.corpus.positions import mark_rows
from c2v_engine.jobs.corpus.records import Segment, Unit
from c2v_engine.jobs.corpus.tables import open_table
from c2v_engine.jobs.output import AtomicFile
from c2v_engine.jobs.readers.base import DEFAULT_COLUMN, missing_column, one_line
from c2v_engine.jobs.readers.columnar import ID, TEXT, find_column

_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What a job reads, cut by position before anything runs.

    Attributes:
        files: of the input, in order.
        units: cut from it; all of the same number of rows, but for the last.
        column: with the texts.
        id_column: with the ids; None for the row's number in the whole input.
        keep: columns that are passed through.
        schema: pyarrow schema of ``id`` and of these.
    """

    files: tuple[InputFile, ...]
    units: tuple[Unit, ...]
    column: str
    id_column: str | None
    keep: tuple[str, ...]
    schema: Any

    @property
    def rows(self) -> int:
        """Rows of the whole input."""
        return self.units[-1].first_row + self.units[-1].rows if self.units else 0

    @cached_property
    def digest(self) -> str:
        """Of all that decides which row is where; not of when files were changed."""
        values = self._values()
        for file in values["files"]:
            del file["modified"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write it.

        Raises:
            OutputError: the system refuses.
        """
        text = json.dumps(self._values(), separators=(",", ":")).encode()
        target = AtomicFile(path, overwrite=True)
        try:
            digest = hashlib.sha256(text).hexdigest().encode()
            target.file.write(pa.Codec("zstd").compress(digest + text, asbytes=True))
            target.file.write(len(text).to_bytes(8, "little"))
        except OSError as error:
            target.abandon()
            raise target.failure(error) from error
        except BaseException:
            target.abandon()
            raise
        target.commit()

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read what ``save`` wrote.

        Raises:
            OutputError: it is not that.
        """
        try:
            data = path.read_bytes()
            size = 64 + int.from_bytes(data[-8:], "little")
            if size > 1 << 40:
                raise ValueError("it has no end")
            whole = pa.Codec("zstd").decompress(data[:-8], size, asbytes=True)
            if hashlib.sha256(whole[64:]).hexdigest().encode() != whole[:64]:
                raise ValueError("it does not fit its checksum")
            return _of_values(json.loads(whole[64:]))
        except (OSError, ValueError, KeyError, TypeError, MemoryError, pa.ArrowException) as error:
            raise OutputError(
                f"{path}: is damaged ({one_line(error)}): remove it, and the job makes it again"
            ) from error

    def _values(self) -> dict[str, Any]:
        units = [
            [[s.file, s.first_row, s.rows, s.offset, s.line] for s in unit.segments]
            for unit in self.units
        ]
        return {
            "version": _VERSION,
            "files": [vars(file).copy() for file in self.files],
            "column": self.column,
            "id_column": self.id_column,
            "keep": list(self.keep),
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "units": units,
        }


def make_plan(
    files: Sequence[InputFile],
    *,
    column: str | None = None,
    id_column: str | None = None,
    keep: Sequence[str] = (),
    shard_rows: int,
    nulls: bool = False,
) -> Plan:
    """Count the rows of all files and cut them into units.

    Args:
        files: of the input, in order.
        column: with the texts; None for ``text``.
        id_column: with the ids; None for the row's number in the whole input.
        keep: columns that are passed through.
        shard_rows: rows of a unit.
        nulls: whether rows that can not be read stay, so that ids may be null.

    Raises:
        InputError: a file can not be read, lacks a column, or has another type in one than the
            files before it; or there is no row.
    """
    text_column = DEFAULT_COLUMN if column is None else column
    schema: Any = None
    for file in files:
        fields = _fields(file, column, text_column, id_column, keep)
        if schema is None:
            schema = fields
        for known, found in zip(schema, fields, strict=True):
            if known.type != found.type:
                raise InputError(
                    f"{file.name}: column {found.name!r} has the type {found.type}, in "
                    f"{files[0].name} it has {known.type}"
                )
    schema = pa.schema([schema.field(0).with_nullable(nulls), *list(schema)[1:]])
    schema = schema.set(0, schema.field(0).with_name("id"))
    units = _cut(files, shard_rows)
    if not units:
        raise InputError(f"{files[0].name}: no rows: there is no text in the input")
    return Plan(tuple(files), tuple(units), text_column, id_column, tuple(keep), schema)


def _cut(files: Sequence[InputFile], shard_rows: int) -> list[Unit]:
    units: list[Unit] = []
    segments: list[Segment] = []
    total = held = 0
    for number, file in enumerate(files):
        rows, marks = mark_rows(file, shard_rows - held, shard_rows)
        ends = [mark.row for mark in marks[1:]] + [rows]
        for mark, end in zip(marks, ends, strict=True):
            segments.append(Segment(number, mark.row, end - mark.row, mark.offset, mark.line))
            held += end - mark.row
            if held == shard_rows:
                units.append(Unit(len(units), total, tuple(segments)))
                total, held, segments = total + held, 0, []
    if segments:
        units.append(Unit(len(units), total, tuple(segments)))
    return units


def _fields(
    file: InputFile,
    column: str | None,
    text_column: str,
    id_column: str | None,
    keep: Sequence[str],
) -> Any:
    """The schema of a file's id and kept columns."""
    names = ([] if id_column is None else [id_column]) + list(keep)
    kinds: dict[str, Any] = dict.fromkeys(names, pa.string())
    if file.format == "txt":
        for option, name in (("--column", column), ("--id-column", id_column), *_kept(keep)):
            if name is not None:
                raise InputError(
                    f"{file.name}: a .txt file has no columns, {option} {name} can not be found"
                )
    elif file.format == "csv":
        header = csv_header(file)
        for name in [text_column, *names]:
            if header.count(name) != 1 and header:
                count = header.count(name)
                reason = missing_column(name, header)
                if count:
                    reason = f"{count} columns are named {name!r}, expected one"
                raise InputError(f"{file.name}: {reason}")
    elif file.format in ("parquet", "arrow"):
        table = open_table(file)
        try:
            find_column(file.name, table.schema, text_column, *TEXT)
            if id_column is not None:
                kind = find_column(file.name, table.schema, id_column, *ID)
                kinds[id_column] = pa.string() if pa.types.is_string_view(kind) else kind
            for name in keep:
                kept = find_column(file.name, table.schema, name, "any", lambda kind: True)
                if name != id_column:
                    kinds[name] = kept
        finally:
            table.close()
    fields = [pa.field(name, kinds[name]) for name in keep]
    first = pa.field("id", pa.int64()) if id_column is None else pa.field("id", kinds[id_column])
    return pa.schema([first, *fields])


def _kept(keep: Sequence[str]) -> list[tuple[str, str]]:
    return [("--keep", name) for name in keep]


def csv_header(file: InputFile) -> list[str]:
    """The names of a CSV file's columns; none where it is empty.

    Raises:
        InputError: the file can not be read.
    """
    cursor = LineCursor(file)
    try:
        row = next(iter(CsvRows(cursor)), None)
    finally:
        cursor.close()
    if row is not None and row.broken:
        raise InputError(f"{file.name}, line 1: not valid UTF-8")
    return [] if row is None else row.fields


def _of_values(values: dict[str, Any]) -> Plan:
    if values["version"] != _VERSION:
        raise ValueError(f"it is of version {values['version']}, expected {_VERSION}")
    units: list[Unit] = []
    row = 0
    for number, segments in enumerate(values["units"]):
        unit = Unit(number, row, tuple(Segment(*segment) for segment in segments))
        units.append(unit)
        row += unit.rows
    return Plan(
        files=tuple(InputFile(**file) for file in values["files"]),
        units=tuple(units),
        column=values["column"],
        id_column=values["id_column"],
        keep=tuple(values["keep"]),
        schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"]))),
    )
