"""The plan of a corpus job: its input files, and the units that they are cut into."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.corpus.records import Segment, Unit
from c2v_engine.jobs.corpus.source.csv_rows import CsvRows
from c2v_engine.jobs.corpus.source.cursor import LineCursor
from c2v_engine.jobs.corpus.source.inputs import REMOTE_THREADS, InputFile
from c2v_engine.jobs.corpus.source.positions import mark_rows
from c2v_engine.jobs.corpus.source.tables import open_table
from c2v_engine.jobs.output import replace_file
from c2v_engine.jobs.readers.base import DEFAULT_COLUMN, one_line
from c2v_engine.jobs.readers.columnar import ID, TEXT, find_column
from c2v_engine.jobs.readers.delimited import find_in_header

_VERSION = 1
_ANY = ("any", lambda kind: True)


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

    def rows_by_file(self) -> list[int]:
        """How many rows each file has."""
        rows = [0] * len(self.files)
        for unit in self.units:
            for segment in unit.segments:
                rows[segment.file] += segment.rows
        return rows

    def identity(self) -> dict[str, Any]:
        """What of it decides a job's output, and is kept with what else does."""
        return {"rows": self.rows, "input": self.digest}

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
        data = len(text).to_bytes(8, "little") + pa.Codec("zstd").compress(text, asbytes=True)
        replace_file(path, [hashlib.sha256(data).digest(), data])

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read what ``save`` wrote.

        Raises:
            OutputError: it is not that.
        """
        try:
            whole = path.read_bytes()
            digest, data = whole[:32], whole[32:]
            if hashlib.sha256(data).digest() != digest:
                raise ValueError("it does not fit its checksum")
            size = int.from_bytes(data[:8], "little")
            return _of_values(json.loads(pa.Codec("zstd").decompress(data[8:], size, asbytes=True)))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
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
    wanted = _Columns(DEFAULT_COLUMN if column is None else column, column, id_column, tuple(keep))
    looks = _look_at_all(files, wanted)
    schema = looks[0].schema
    for file, look in zip(files, looks, strict=True):
        for known, found in zip(schema, look.schema, strict=True):
            if known.type != found.type:
                raise InputError(
                    f"{file.name}: column {found.name!r} has the type {found.type}, in "
                    f"{files[0].name} it has {known.type}"
                )
    units = _cut(files, [look.rows for look in looks], shard_rows)
    if not units:
        names = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        raise InputError(f"{names}: no rows: there is no text in the input")
    first = pa.field("id", schema.field(0).type, nullable=nulls)
    schema = pa.schema([first, *list(schema)[1:]])
    return Plan(tuple(files), tuple(units), wanted.text, id_column, tuple(keep), schema)


def _cut(files: Sequence[InputFile], counts: Sequence[int | None], shard_rows: int) -> list[Unit]:
    units: list[Unit] = []
    segments: list[Segment] = []
    total = held = 0
    for number, (file, count) in enumerate(zip(files, counts, strict=True)):
        rows, marks = mark_rows(file, count, shard_rows - held, shard_rows)
        ends = [*(mark.row for mark in marks), rows][1:]
        for mark, end in zip(marks, ends, strict=True):
            segments.append(Segment(number, mark.row, end - mark.row, mark.offset, mark.line))
            held += end - mark.row
            if held == shard_rows:
                units.append(Unit(len(units), total, tuple(segments)))
                total, held, segments = total + held, 0, []
    if segments:
        units.append(Unit(len(units), total, tuple(segments)))
    return units


class _Columns(NamedTuple):
    text: str
    named: str | None  # the same, where it was asked for
    id: str | None
    keep: tuple[str, ...]


class _Look(NamedTuple):
    """What a file says of itself: types of id and kept columns, and its rows where it says so."""

    schema: Any
    rows: int | None


def _look_at_all(files: Sequence[InputFile], columns: _Columns) -> list[_Look]:
    if not any(file.remote for file in files):
        return [_look(file, columns) for file in files]
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        return list(pool.map(lambda file: _look(file, columns), files))


def _look(file: InputFile, columns: _Columns) -> _Look:
    names = ([] if columns.id is None else [columns.id]) + list(columns.keep)
    kinds: dict[str, Any] = dict.fromkeys(names, pa.string())
    rows = None
    if file.format == "txt":
        options = [("--column", columns.named), ("--id-column", columns.id)]
        for option, name in options + [("--keep", name) for name in columns.keep]:
            if name is not None:
                raise InputError(
                    f"{file.name}: a .txt file has no columns, {option} {name} can not be found "
                    f"in it: leave {option} out, or give another format"
                )
    elif file.format == "csv":
        header = csv_header(file)
        for name in [] if header is None else [columns.text, *names]:
            find_in_header(file.name, header or [], name)
    elif file.format in ("parquet", "arrow"):
        table = open_table(file)
        rows = table.rows
        try:
            find_column(file.name, table.schema, columns.text, *TEXT)
            for name in columns.keep:
                kinds[name] = find_column(file.name, table.schema, name, *_ANY)
            if columns.id is not None:
                kinds[columns.id] = find_column(file.name, table.schema, columns.id, *ID)
        finally:
            table.close()
    kinds = {name: _portable(kind) for name, kind in kinds.items()}
    first = pa.field("id", pa.int64() if columns.id is None else kinds[columns.id])
    return _Look(pa.schema([first, *(pa.field(name, kinds[name]) for name in columns.keep)]), rows)


def _portable(kind: Any) -> Any:
    """The type that a column of a type is written with."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def csv_header(file: InputFile) -> list[str] | None:
    """The names of a CSV file's columns; None where it is empty.

    Raises:
        InputError: the file can not be read.
    """
    cursor = LineCursor(file)
    try:
        block = CsvRows(cursor).take(1)
    finally:
        cursor.close()
    if block is None:
        return None
    header = block.rows[0]
    if isinstance(header, str):
        raise InputError(f"{file.name}, header (line 1): {header}")
    if block.broken:
        raise InputError(f"{file.name}, header (line 1): not valid UTF-8")
    return header


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
