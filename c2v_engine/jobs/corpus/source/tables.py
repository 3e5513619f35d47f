"""Rows of Parquet and Arrow IPC files: counted by what these say of themselves, read in part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import IO, Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source.inputs import InputFile
from c2v_engine.jobs.readers.base import one_line
from c2v_engine.jobs.readers.columnar import BUFFER_BYTES, unpacked

_BATCH_ROWS = 1024
_BATCH_BYTES = 4 * 1024 * 1024
_ARROW_MAGIC = b"ARROW1"


class TableFile(ABC):
    """An open file of one of the formats, which consists of groups of rows.

    Args:
        file: the file.

    Attributes:
        name: the file's.
        schema: pyarrow's, of all columns.
        rows: how many.

    Raises:
        InputError: it can not be opened, or is not what its name says.
    """

    schema: Any

    def __init__(self, file: InputFile) -> None:
        self.name = file.name
        self._handle: IO[bytes] = unpacked(file.name, file.compression, file.open())
        try:
            sizes = self._inspect(file)
        except BaseException:
            self._handle.close()
            raise
        self._starts = [0, *accumulate(sizes)]
        self.rows = self._starts[-1]
        self._columns: tuple[str, ...] | None = None
        self._decoded: Iterator[Any] = iter(())
        self._held: Any = None  # what was decoded and not given
        self._row = 0  # that the next batch begins with

    def batches(self, columns: Sequence[str], first: int, rows: int) -> Iterator[Any]:
        """Give record batches of some columns, of up to 1,024 rows.

        Where the last call stopped this one carries on.

        Args:
            columns: their names, each once in the schema.
            first: row, from 0.
            rows: how many.

        Raises:
            InputError: the file is damaged; the message says from which row on.
        """
        end = first + rows
        self._go_to(tuple(columns), first)
        while self._row < end:
            place = f"{self.name}, from row {max(self._row, first) + 1} on"
            with _damage(f"{place}: can not be decoded"):
                batch = self._next()
            if batch is None:
                return
            row, self._row = self._row, self._row + len(batch)
            if self._row > end:  # the rest is for the next call
                self._row, self._held = end, batch.slice(end - row)
                batch = batch.slice(0, end - row)
            if self._row > first:
                yield batch.slice(max(0, first - row))

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    @abstractmethod
    def _inspect(self, file: InputFile) -> list[int]:
        """Set the schema, and give the rows of each group."""

    @abstractmethod
    def _decode(self, columns: tuple[str, ...], group: int) -> Iterator[Any]:
        """Give the rows of a group and of all after it, in batches."""

    def _first_group(self, row: int) -> int:
        """Where decoding begins to reach a row."""
        return max(0, bisect_right(self._starts, row) - 1)

    def _go_to(self, columns: tuple[str, ...], row: int) -> None:
        group = min(self._first_group(row), len(self._starts) - 2)
        if self._columns == columns and self._starts[max(0, group)] <= self._row <= row:
            return
        self._columns, self._held = columns, None
        self._decoded = self._decode(columns, group) if group >= 0 else iter(())
        self._row = self._starts[max(0, group)]

    def _next(self) -> Any:
        batch, self._held = self._held, None
        return next(self._decoded, None) if batch is None else batch


def open_table(file: InputFile) -> TableFile:
    """Open a file.

    Raises:
        InputError: it can not be opened, or is not what its name says.
    """
    if file.format == "parquet":
        return _ParquetTable(file)
    return _ArrowTable(file)


class _ParquetTable(TableFile):
    def _inspect(self, file: InputFile) -> list[int]:
        # Local files are read in small pieces; of others each row group's columns are fetched
        # in few requests.
        how = {"pre_buffer": True} if file.remote else {"buffer_size": BUFFER_BYTES}
        how = {"pre_buffer": False, **how}
        with _damage(f"{file.name}: not a readable Parquet file"):
            self._file = pq.ParquetFile(self._handle, page_checksum_verification=True, **how)
            self.schema = self._file.schema_arrow
            about = self._file.metadata
            return [about.row_group(number).num_rows for number in range(about.num_row_groups)]

    def _decode(self, columns: tuple[str, ...], group: int) -> Iterator[Any]:
        for number in range(group, self._file.num_row_groups):
            # One at a time: no more than that is fetched ahead.
            yield from self._file.iter_batches(
                self._batch_rows(columns, number),
                row_groups=[number],
                columns=list(columns),
                use_threads=False,
            )

    def _batch_rows(self, columns: tuple[str, ...], number: int) -> int:
        about = self._file.metadata.row_group(number)
        parts = [about.column(place) for place in range(about.num_columns)]
        size = sum(
            part.total_uncompressed_size
            for part in parts
            if any(
                part.path_in_schema == name or part.path_in_schema.startswith(f"{name}.")
                for name in columns
            )
        )
        rows: int = _BATCH_BYTES * about.num_rows // max(1, size)
        return max(1, min(_BATCH_ROWS, rows))


class _ArrowTable(TableFile):
    """The file form, which is read at any place, or the stream form, which is read up to it."""

    def _inspect(self, file: InputFile) -> list[int]:
        with _damage(f"{file.name}: not a readable Arrow IPC file"):
            self._is_file = self._handle.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
            self.schema = self._open(None).schema
            # The sizes of batches are not in one place; of the columns the smallest is read.
            reader = self._open([self._smallest()] if len(self.schema) else [])
            return [len(batch) for batch in self._each(reader, 0)]

    def _smallest(self) -> int:
        widths = [
            kind.bit_width if pa.types.is_primitive(kind) else 1 << 30 for kind in self.schema.types
        ]
        return widths.index(min(widths))

    def _open(self, columns: list[int] | None) -> Any:
        options = (
            ipc.IpcReadOptions() if columns is None else ipc.IpcReadOptions(included_fields=columns)
        )
        self._handle.seek(0)
        source = pa.PythonFile(self._handle, "r")
        if self._is_file:
            return ipc.open_file(source, options=options)
        return ipc.open_stream(source, options=options)

    def _each(self, reader: Any, group: int) -> Iterator[Any]:
        if not self._is_file:
            yield from reader
            return
        for number in range(group, reader.num_record_batches):
            yield reader.get_batch(number)

    def _first_group(self, row: int) -> int:
        return super()._first_group(row) if self._is_file else 0

    def _decode(self, columns: tuple[str, ...], group: int) -> Iterator[Any]:
        reader = self._open([self.schema.get_field_index(name) for name in columns])
        for batch in self._each(reader, group):
            chosen = batch.select(list(columns))
            _check(chosen)
            for start in range(0, len(chosen), _BATCH_ROWS):
                yield chosen.slice(start, _BATCH_ROWS)


def _check(batch: Any) -> None:
    """See that values lie where they can be: no checksum does, and to read others may crash.

    Strings that are not valid UTF-8 are left to who reads their rows.

    Raises:
        ArrowInvalid: they do not.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise


@contextmanager
def _damage(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{what}: {one_line(error)}") from error
