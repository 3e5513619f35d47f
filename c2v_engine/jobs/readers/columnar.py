"""``.parquet``: only the needed columns are read, a small batch at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import DEFAULT_COLUMN, Reader, Record, missing_column, one_line
from c2v_engine.jobs.readers.source import ByteSource

BATCH_ROWS = 256
BUFFER_BYTES = 1024 * 1024


class ParquetReader(Reader):
    """Texts from a string column, ids from a string or integer column in that column's own type.

    A compressed file is unpacked into an unnamed temporary file first, as Parquet is read from
    its end.

    Attributes:
        schema: pyarrow's, of all columns.

    Raises:
        InputError: the file can not be opened, is not Parquet, or lacks a column of a fitting type.
    """

    def __init__(
        self, path: Path, compression: str | None, column: str | None, id_column: str | None
    ) -> None:
        self.path = path
        self.id_column = id_column
        self._column = DEFAULT_COLUMN if column is None else column
        self._done = 0
        self._handle = unpacked(path, compression)
        try:
            self._file = pq.ParquetFile(
                self._handle,
                pre_buffer=False,  # a whole row group would be held otherwise
                buffer_size=BUFFER_BYTES,
                page_checksum_verification=True,
            )
            schema = self.schema = self._file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            self._handle.close()
            raise InputError(f"{path}: not a readable Parquet file: {one_line(error)}") from error
        self.rows = self._file.metadata.num_rows
        try:
            find_column(path, schema, self._column, *TEXT)
            self.id_type = pa.int64()
            if id_column is not None:
                kind = find_column(path, schema, id_column, *ID)
                self.id_type = pa.string() if pa.types.is_string_view(kind) else kind
        except BaseException:
            self._handle.close()
            raise

    def __iter__(self) -> Iterator[Record]:
        columns = [self._column]
        if self.id_column is not None and self.id_column != self._column:
            columns.append(self.id_column)
        for batch in self.batches(columns):
            first = self._done
            texts = self._values(batch, self._column, first, "a string")
            if self.id_column is None:
                ids: Any = range(first, first + len(texts))
            else:
                ids = self._values(batch, self.id_column, first, "a string or integer")
            self._done += len(texts)
            for text, key in zip(texts, ids, strict=True):
                yield Record(text, key, None)

    def batches(self, columns: list[str] | None = None) -> Iterator[Any]:
        """Give record batches of a few hundred rows, with some columns or all.

        Raises:
            InputError: the file is damaged.
        """
        for _, batch in decoded_batches(self.path, self._file, BATCH_ROWS, columns):
            yield batch

    def _values(self, batch: Any, column: str, first: int, expected: str) -> list[Any]:
        array = batch.column(batch.schema.get_field_index(column))
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if array.null_count:
            row = first + array.is_null().index(True).as_py() + 1
            raise self.bad_row(row, None, f"column {column!r} is null, expected {expected}")
        try:
            values: list[Any] = array.to_pylist()
        except UnicodeDecodeError as error:
            row = first + first_undecodable(array) + 1
            reason = f"column {column!r} is not valid UTF-8 (byte {error.start} of the text)"
            raise self.bad_row(row, None, reason) from error
        return values

    def fraction(self) -> float | None:
        """Give the part of the rows that has been read."""
        return self._done / self.rows if self.rows else 1.0

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def decoded_batches(
    path: Path, file: Any, size: int, columns: list[str] | None
) -> Iterator[tuple[int, Any]]:
    """Give the record batches of an open Parquet file, each with its first row's number, from 0.

    Raises:
        InputError: the file is damaged; the message names ``path`` and the row.
    """
    batches = file.iter_batches(size, columns=columns, use_threads=False)
    first = 0
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            reason = f"can not be decoded: {one_line(error)}"
            raise InputError(f"{path}, from row {first + 1} on: {reason}") from error
        if batch is None:
            return
        yield first, batch
        first += len(batch)


def unpacked(path: Path | str, compression: str | None, file: IO[bytes] | None = None) -> IO[bytes]:
    """Open a file that is read at any place; a compressed one is unpacked into one without a name.

    Args:
        path: the file.
        compression: as ``ByteSource`` has it.
        file: the file, where it is open already.

    Raises:
        InputError: it can not be opened or unpacked.
    """
    if compression is None:
        if file is not None:
            return file
        try:
            return open(path, "rb")
        except OSError as error:
            raise InputError(f"{path}: can not be opened: {error.strerror}") from error
    source = ByteSource(path, compression, file)
    whole = tempfile.TemporaryFile()  # noqa: SIM115 - the reader closes it
    try:
        for chunk in source.chunks():
            whole.write(chunk)
        whole.seek(0)
    except OSError as error:
        whole.close()
        where = tempfile.gettempdir()
        raise InputError(f"{path}: can not be unpacked in {where}: {error.strerror}") from error
    except BaseException:
        whole.close()
        raise
    finally:
        source.close()
    return whole


def find_column(
    path: Path | str, schema: Any, column: str, expected: str, fits: Callable[[Any], bool]
) -> Any:
    """Find a column and give its pyarrow type, of a dictionary that of its values.

    Args:
        path: the file, for messages.
        schema: pyarrow's.
        column: its name.
        expected: what it should hold, in words.
        fits: whether a type is that.

    Raises:
        InputError: there is none, or more than one, or it is of another type.
    """
    found = schema.get_all_field_indices(column)
    if not found:
        raise InputError(f"{path}: {missing_column(column, schema.names)}")
    if len(found) > 1:
        raise InputError(f"{path}: {len(found)} columns are named {column!r}")
    kind = schema.field(found[0]).type
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not fits(value_type):
        raise InputError(
            f"{path}: column {column!r} has the type {kind}, expected {expected} column"
        )
    return value_type


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_id(kind: Any) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def first_undecodable(array: Any) -> int:
    """Find the first value of a string array that is not valid UTF-8."""
    for index in range(len(array)):
        try:
            array[index].as_py()
        except UnicodeDecodeError:
            return index
    raise AssertionError("no value of the array is undecodable")


# What a column should hold, in words, and whether a type is that; for ``find_column``.
TEXT = ("a string", _is_text)
ID = ("a string or integer", _is_id)
