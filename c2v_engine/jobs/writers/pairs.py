"""An array of embeddings, and a Parquet file of the ids and columns that it can not hold."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from c2v_engine.jobs.writers.arrays import ArrayWriter
from c2v_engine.jobs.writers.base import GROUP_ROWS, Writer
from c2v_engine.jobs.writers.tables import (
    ParquetFile,
    described,
    open_table,
    plain_columns,
    plain_schema,
)


class PairWriter(Writer):
    """Writes both, row for row.

    Args:
        array: for the embeddings.
        file: open for writing, for the columns.
        columns: their pyarrow schema.
        metadata: about the run; stored with the columns.

    Raises:
        OutputError: a column has a type that Parquet does not hold.
    """

    def __init__(
        self, array: ArrayWriter, file: IO[bytes], columns: Any, metadata: dict[str, Any]
    ) -> None:
        self._array = array
        self._columns = plain_schema(columns)
        schema = described(self._columns, metadata)
        self._table = open_table(ParquetFile, file, schema, GROUP_ROWS)

    def write(
        self, columns: Any, embeddings: NDArray[Any], valid: NDArray[np.bool_] | None = None
    ) -> None:
        """Append rows; see ``Writer.write``."""
        arrays = plain_columns(columns, self._columns)
        self._table.write(pa.RecordBatch.from_arrays(arrays, schema=self._table.schema))
        self._array.write(columns, embeddings, valid)
        self.rows += len(columns)

    def finish(self) -> None:
        """Complete both files."""
        self._table.finish()
        self._array.finish()

    def abandon(self) -> None:
        """Let go of files that will not be finished."""
        self._table.abandon()
        self._array.abandon()
