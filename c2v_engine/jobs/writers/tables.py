"""Embeddings as a column of a table, beside their ids: ``.parquet`` and Arrow IPC (``.arrow``)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from c2v_engine.errors import OutputError
from c2v_engine.jobs.writers.base import Writer, group_rows, spread

EMBEDDING = "embedding"


class TableFile(ABC):
    """A file of record batches, cut anew, so that it does not depend on how the rows came.

    Args:
        schema: of the batches.
        rows: of a group that is written together.
    """

    def __init__(self, schema: Any, rows: int) -> None:
        self.schema = schema
        self._group_rows = rows
        self._held: list[Any] = []
        self._held_rows = 0

    def write(self, batch: Any) -> None:
        """Append a record batch."""
        self._held.append(batch)
        self._held_rows += len(batch)
        if self._held_rows < self._group_rows:
            return
        table = self._table()
        whole = len(table) // self._group_rows * self._group_rows
        for first in range(0, whole, self._group_rows):
            self._put(table.slice(first, self._group_rows))
        self._held_rows = len(table) - whole
        self._held = table.slice(whole).to_batches() if self._held_rows else []

    def finish(self) -> None:
        """Write what is held back and the footer."""
        if self._held_rows:
            self._put(self._table())
        self._close()

    def _table(self) -> Any:
        return pa.Table.from_batches(self._held, schema=self.schema).combine_chunks()

    @abstractmethod
    def _put(self, table: Any) -> None:
        """Write a group."""

    @abstractmethod
    def _close(self) -> None:
        """Write the footer."""

    def abandon(self) -> None:  # noqa: B027
        """Let go of a file that will not be finished."""


class ParquetFile(TableFile):
    """Everything but embeddings is compressed; pages have checksums."""

    def __init__(self, file: IO[bytes], schema: Any, rows: int) -> None:
        super().__init__(schema, rows)
        paths = _leaf_paths(schema)
        self._writer: Any = pq.ParquetWriter(
            file,
            schema,
            use_dictionary=False,
            write_statistics=["id"],
            write_page_checksum=True,
            compression={
                path: "none" if path.startswith(f"{EMBEDDING}.") else "zstd" for path in paths
            },
        )

    def _put(self, table: Any) -> None:
        self._writer.write_table(table)

    def _close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        """Let go of a file that will not be finished."""
        # Otherwise pyarrow's writer would try to write a footer when it is collected.
        self._writer.is_open = False


class ArrowFile(TableFile):
    """The IPC file format, not compressed, so that it can be used where it lies."""

    def __init__(self, file: IO[bytes], schema: Any, rows: int) -> None:
        super().__init__(schema, rows)
        self._writer: Any = pa.ipc.new_file(pa.PythonFile(file, "w"), schema)

    def _put(self, table: Any) -> None:
        # A slice would be written with some bytes of what lies behind it.
        self._writer.write_table(table.take(pa.array(np.arange(len(table)))))

    def _close(self) -> None:
        self._writer.close()


class TableWriter(Writer):
    """Columns ``id``, others that are passed through, and ``embedding``, a fixed-size list.

    A row without an embedding is null. Groups are of about 32 MB of embeddings.

    Args:
        kind: ``ParquetFile`` or ``ArrowFile``.
        file: open for writing, at its beginning.
        dimension: embedding width.
        dtype: float32, float16, int8 or uint8.
        columns: the pyarrow schema of the other columns.
        metadata: about the run; stored as JSON under the file's metadata key ``c2v``.
        nulls: whether an embedding may be null.

    Raises:
        OutputError: a column has a type that the format does not hold.
    """

    def __init__(
        self,
        kind: type[ParquetFile | ArrowFile],
        file: IO[bytes],
        dimension: int,
        dtype: np.dtype[Any],
        columns: Any,
        metadata: dict[str, Any],
        *,
        nulls: bool = False,
    ) -> None:
        self._dimension = dimension
        self._dtype = np.dtype(dtype)
        self._nulls = nulls
        self._columns = plain_schema(columns)
        self._kind = pa.list_(pa.from_numpy_dtype(self._dtype), dimension)
        schema = described(
            self._columns.append(pa.field(EMBEDDING, self._kind, nullable=nulls)), metadata
        )
        self._table = open_table(kind, file, schema, group_rows(dimension, self._dtype))

    def write(
        self, columns: Any, embeddings: NDArray[Any], valid: NDArray[np.bool_] | None = None
    ) -> None:
        """Append rows; see ``Writer.write``."""
        assert embeddings.dtype == self._dtype
        assert embeddings.shape[1:] == (self._dimension,)
        assert valid is None or self._nulls
        # What stands under a null is written too, by Arrow: it is always the same.
        flat = pa.array(spread(embeddings, valid, 0).reshape(-1))
        mask = None if valid is None else pa.array(~valid)
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=self._kind, mask=mask)
        arrays = [*plain_columns(columns, self._columns), vectors]
        self._table.write(pa.RecordBatch.from_arrays(arrays, schema=self._table.schema))
        self.rows += len(columns)

    def finish(self) -> None:
        """Write the last group and the footer."""
        self._table.finish()

    def abandon(self) -> None:
        """Let go of a file that will not be finished."""
        self._table.abandon()


def open_table(
    kind: type[ParquetFile | ArrowFile], file: IO[bytes], schema: Any, rows: int
) -> TableFile:
    """Open a file of record batches.

    Raises:
        OutputError: a column has a type that the format does not hold.
    """
    try:
        return kind(file, schema, rows)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        name = "Parquet" if kind is ParquetFile else "Arrow"
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        reason = " ".join(str(error).split())
        raise OutputError(
            f"{name} files can not hold the columns {columns}: {reason}: leave such a column out"
        ) from error


def described(schema: Any, metadata: dict[str, Any]) -> Any:
    """A schema that says what the run was."""
    return schema.with_metadata({"c2v": json.dumps(metadata)})


def plain_schema(schema: Any) -> Any:
    """A schema with values in the place of dictionaries, which each batch has of its own."""
    for number, field in enumerate(schema):
        if pa.types.is_dictionary(field.type):
            schema = schema.set(number, field.with_type(field.type.value_type))
    return schema.remove_metadata()


def plain_columns(columns: Any, schema: Any) -> list[Any]:
    """The columns of a batch, in the types of ``plain_schema``."""
    assert columns.schema.names == schema.names
    return [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in columns.columns
    ]


def _leaf_paths(schema: Any) -> list[str]:
    """The names that Parquet gives the columns that it splits nested ones into."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    found = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [found.column(number).path for number in range(len(found.names))]
