"""Rows of Parquet and Arrow IPC files: counted by what these say of themselves, read in part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.inputs import InputFile
from c2v_engine.jobs.readers.base import one_line
from c2v_engine.jobs.readers.columnar import unpacked

_BATCH_ROWS = 1024
_ARROW_MAGIC = b"ARROW1"


class TableFile:
    """An open file of one of the formats.

    Attributes:
        name: the file's.
        schema: pyarrow's, of all columns.
        rows: how many.
    """

    name: str
    schema: Any
    rows: int

    def batches(self, columns: Sequence[str], first: int, rows: int) -> Iterator[Any]:
        """Give record batches of some columns.

        Args:
            columns: their names, each once in the schema.
            first: row, from 0.
            rows: how many.

        Raises:
            InputError: the file is damaged; the message says from which row on.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError


def open_table(file: InputFile) -> TableFile:
    """Open a file.

    Raises:
        InputError: it can not be opened, or is not what its name says.
    """
    if file.format == "parquet":
        return _ParquetTable(file)
    return _ArrowTable(file)


def count_rows(file: InputFile) -> int:
    """Count a file's rows; as ``open_table``."""
    table = open_table(file)
    try:
        return table.rows
    finally:
        table.close()


class _ParquetTable(TableFile):
    def __init__(self, file: InputFile) -> None:
        self.name = file.name
        self._handle = unpacked(file.name, file.compression, file.open())
        try:
            with _damage(f"{file.name}: not a readable Parquet file"):
                self._file = pq.ParquetFile(
                    self._handle, pre_buffer=False, page_checksum_verification=True
                )
                self.schema = self._file.schema_arrow
        except BaseException:
            self._handle.close()
            raise
        about = self._file.metadata
        sizes = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
        self._starts = [sum(sizes[:number]) for number in range(len(sizes))]
        self._sizes = sizes
        self.rows = about.num_rows

    def batches(self, columns: Sequence[str], first: int, rows: int) -> Iterator[Any]:
        end = first + rows
        groups = [
            number
            for number, (start, size) in enumerate(zip(self._starts, self._sizes, strict=True))
            if start < end and start + size > first
        ]
        if not groups:
            return
        row = self._starts[groups[0]]
        batches = self._file.iter_batches(
            _BATCH_ROWS, row_groups=groups, columns=list(columns), use_threads=False
        )
        while row < end:
            with _damage(f"{self.name}, from row {max(row, first) + 1} on: can not be decoded"):
                batch = next(batches, None)
            if batch is None:
                return
            yield from _part(batch, row, first, end)
            row += len(batch)

    def close(self) -> None:
        self._handle.close()


class _ArrowTable(TableFile):
    """The file form, which is read at any place, or the stream form, which is read up to it."""

    def __init__(self, file: InputFile) -> None:
        self.name = file.name
        self._handle = unpacked(file.name, file.compression, file.open())
        self._options: Any = None
        try:
            with _damage(f"{file.name}: not a readable Arrow IPC file"):
                self._is_file = self._handle.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
                self.schema = self._open(None).schema
                # The sizes of batches stand in their headers: no column is read for them.
                self._sizes = [len(batch) for batch in self._each(self._open([]))]
        except BaseException:
            self._handle.close()
            raise
        self.rows = sum(self._sizes)

    def _open(self, columns: Sequence[str] | None) -> Any:
        options = ipc.IpcReadOptions()
        if columns is not None:
            options.included_fields = [self.schema.get_field_index(name) for name in columns]
            if not columns and len(self.schema):
                options.included_fields = [0]
        self._handle.seek(0)
        source = pa.PythonFile(self._handle, "r")
        if self._is_file:
            return ipc.open_file(source, options=options)
        return ipc.open_stream(source, options=options)

    def _each(self, reader: Any) -> Iterator[Any]:
        if not self._is_file:
            yield from reader
            return
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)

    def batches(self, columns: Sequence[str], first: int, rows: int) -> Iterator[Any]:
        end = first + rows
        row = 0
        with _damage(f"{self.name}, from row {first + 1} on: can not be decoded"):
            reader = self._open(columns)
        stream = None if self._is_file else iter(reader)
        for number, size in enumerate(self._sizes):
            if row >= end:
                return
            if stream is not None or row + size > first:
                place = f"{self.name}, from row {max(row, first) + 1} on: can not be decoded"
                with _damage(place):
                    batch = reader.get_batch(number) if stream is None else next(stream)
                    batch = batch.select(list(columns))
                for start in range(0, len(batch), _BATCH_ROWS):
                    piece = batch.slice(start, _BATCH_ROWS)
                    yield from _part(piece, row + start, first, end)
            row += size

    def close(self) -> None:
        self._handle.close()


def _part(batch: Any, row: int, first: int, end: int) -> Iterator[Any]:
    """The rows of a batch, which begins at ``row``, that are in [first, end)."""
    start, stop = max(first - row, 0), min(end - row, len(batch))
    if start < stop:
        yield batch.slice(start, stop - start)


@contextmanager
def _damage(what: str) -> Iterator[None]:
    try:
        yield
    except StopIteration:
        raise InputError(f"{what}: it ends there") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{what}: {one_line(error)}") from error
