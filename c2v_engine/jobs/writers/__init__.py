"""Writers: blocks of embeddings, with their ids, into the files of one format.

``arrays`` and ``tables`` hold the formats, ``pairs`` an array with its ids in a file of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from c2v_engine.jobs.output import AtomicFile
from c2v_engine.jobs.writers.arrays import NpyWriter, SafetensorsWriter
from c2v_engine.jobs.writers.base import (
    DTYPES,
    Writer,
    check_output,
    check_precision,
    pack_ranges,
    unpack_ranges,
)
from c2v_engine.jobs.writers.pairs import PairWriter
from c2v_engine.jobs.writers.tables import ArrowFile, ParquetFile, TableWriter

__all__ = [
    "DTYPES",
    "Writer",
    "check_output",
    "check_precision",
    "id_batch",
    "open_format",
    "open_writer",
    "pack_ranges",
    "unpack_ranges",
]


def open_writer(
    target: AtomicFile,
    dimension: int,
    precision: str,
    id_type: Any,
    metadata: dict[str, Any],
) -> Writer:
    """Make the writer for the target's extension (``check_output`` has accepted both)."""
    dtype = np.dtype(DTYPES[precision])
    if Path(target.name).suffix.lower() == ".npy":
        return NpyWriter(target.file, dimension, dtype)
    columns = pa.schema([pa.field("id", id_type, nullable=False)])
    return TableWriter(ParquetFile, target.file, dimension, dtype, columns, metadata)


def id_batch(ids: Sequence[Any], id_type: Any) -> Any:
    """A record batch of ids alone."""
    return pa.record_batch([pa.array(ids, type=id_type)], names=["id"])


def open_format(
    format: str,
    files: Sequence[IO[bytes]],
    dimension: int,
    precision: str,
    columns: Any,
    metadata: dict[str, Any],
    *,
    nulls: bool = False,
) -> Writer:
    """Make a writer of embeddings with all their columns.

    Args:
        format: parquet, arrow, npy or safetensors.
        files: open for writing: one, or for npy and safetensors two, the second for the columns.
        dimension: embedding width.
        precision: of the embeddings.
        columns: the pyarrow schema of the columns, ``id`` first.
        metadata: about the run.
        nulls: whether rows may have no embedding.

    Raises:
        OutputError: a column has a type that the format does not hold.
    """
    dtype = np.dtype(DTYPES[precision])
    if format in ("npy", "safetensors"):
        array = (
            NpyWriter(files[0], dimension, dtype)
            if format == "npy"
            else SafetensorsWriter(files[0], dimension, dtype, metadata)
        )
        return PairWriter(array, files[1], columns, metadata)
    kind = ParquetFile if format == "parquet" else ArrowFile
    return TableWriter(kind, files[0], dimension, dtype, columns, metadata, nulls=nulls)
