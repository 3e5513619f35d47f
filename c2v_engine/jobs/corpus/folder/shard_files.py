"""Shards read back: their ids and columns, and their embeddings, some rows at a time."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import one_line
from c2v_engine.jobs.readers.columnar import decoded_batches
from c2v_engine.jobs.writers.arrays import TENSOR_NAME
from c2v_engine.jobs.writers.tables import EMBEDDING


class ShardBlock(NamedTuple):
    """Consecutive rows.

    Attributes:
        columns: pyarrow record batch [rows]: ``id``, and what was passed through.
        embeddings: [valid rows, dimension].
        valid: bool [rows], which rows have an embedding; None for all.
    """

    columns: Any
    embeddings: NDArray[Any]
    valid: NDArray[np.bool_] | None


class ShardReader(ABC):
    """The files of one shard, or of shards that were merged.

    Attributes:
        path: of the embeddings.
        rows: how many.
        dimension: columns of an embedding.
        dtype: of its values.
        schema: pyarrow schema of the other columns.
        about: what made them.
    """

    path: Path
    rows: int
    dimension: int
    dtype: np.dtype[Any]
    schema: Any
    about: dict[str, Any]

    @abstractmethod
    def blocks(self, size: int) -> Iterator[ShardBlock]:
        """Give the rows in order, at most ``size`` together.

        Raises:
            InputError: a file is damaged.
        """

    @abstractmethod
    def ids(self) -> Any:
        """Give all ids, a pyarrow chunked array.

        Raises:
            InputError: a file is damaged.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    def _take_schema(self, schema: Any) -> None:
        """Learn from the schema of a table with embeddings."""
        if EMBEDDING not in schema.names:
            raise InputError(f"{self.path}: has no column {EMBEDDING!r}")
        place = schema.get_field_index(EMBEDDING)
        kind = schema.field(place).type
        if not pa.types.is_fixed_size_list(kind):
            raise InputError(
                f"{self.path}: column {EMBEDDING!r} has the type {kind}, expected lists of one "
                "fixed size"
            )
        self.dimension = kind.list_size
        self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
        self.about = _about(self.path, schema)
        self.schema = schema.remove(place).remove_metadata()

    def _split(self, batch: Any) -> ShardBlock:
        """Take a record batch apart."""
        vectors = batch.column(batch.schema.get_field_index(EMBEDDING))
        valid = ~np.asarray(vectors.is_null()) if vectors.null_count else None
        values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dimension)
        columns = [batch.column(name) for name in self.schema.names]
        return ShardBlock(pa.RecordBatch.from_arrays(columns, schema=self.schema), values, valid)


class ParquetShard(ShardReader):
    """All in one Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _unreadable(path):
            self._file = _parquet(path)
        self._take_schema(self._file.schema_arrow)
        self.rows = self._file.metadata.num_rows

    def blocks(self, size: int) -> Iterator[ShardBlock]:
        """See ``ShardReader.blocks``."""
        for _, batch in decoded_batches(self.path, self._file, size, None):
            yield self._split(batch)

    def ids(self) -> Any:
        """See ``ShardReader.ids``."""
        with _unreadable(self.path):
            return self._file.read(columns=["id"], use_threads=False)["id"]

    def close(self) -> None:
        """See ``ShardReader.close``."""
        self._file.close(force=True)


class ArrowShard(ShardReader):
    """All in one Arrow IPC file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _unreadable(path):
            self._map = pa.memory_map(str(path))
            self._file = pa.ipc.open_file(self._map)
            groups = range(self._file.num_record_batches)
            self.rows = sum(self._file.get_batch(group).num_rows for group in groups)
        self._groups = groups
        self._take_schema(self._file.schema)

    def blocks(self, size: int) -> Iterator[ShardBlock]:
        """See ``ShardReader.blocks``."""
        for group in self._groups:
            with _unreadable(self.path):
                batch = self._file.get_batch(group)
                batch.validate()
            for first in range(0, len(batch), size):
                yield self._split(batch.slice(first, size))

    def ids(self) -> Any:
        """See ``ShardReader.ids``."""
        with _unreadable(self.path):
            kind = self.schema.field("id").type
            chunks = [self._file.get_batch(group).column("id") for group in self._groups]
            return pa.chunked_array(chunks, kind)

    def close(self) -> None:
        """See ``ShardReader.close``."""
        self._map.close()


class PairShard(ShardReader):
    """An array in ``.npy`` or ``.safetensors``, and its ids and columns in a Parquet file."""

    def __init__(self, path: Path, ids: Path) -> None:
        self.path = path
        with _unreadable(path):
            self._array = _mapped(path)
        with _unreadable(ids):
            self._file = _parquet(ids)
        self._ids = ids
        self.rows, self.dimension = self._array.shape
        self.dtype = self._array.dtype
        self.about = _about(ids, self._file.schema_arrow)
        self.schema = self._file.schema_arrow.remove_metadata()
        if self._file.metadata.num_rows != self.rows:
            raise InputError(
                f"{path}: has {self.rows} rows, but {ids} has {self._file.metadata.num_rows}"
            )

    def blocks(self, size: int) -> Iterator[ShardBlock]:
        """See ``ShardReader.blocks``."""
        for first, columns in decoded_batches(self._ids, self._file, size, None):
            rows = self._array[first : first + len(columns)]
            valid = None
            if self.dtype.kind == "f":
                valid = ~np.isnan(rows[:, 0])
                rows, valid = (rows, None) if valid.all() else (rows[valid], valid)
            yield ShardBlock(columns.replace_schema_metadata(None), np.asarray(rows), valid)

    def ids(self) -> Any:
        """See ``ShardReader.ids``."""
        with _unreadable(self._ids):
            return self._file.read(columns=["id"], use_threads=False)["id"]

    def close(self) -> None:
        """See ``ShardReader.close``."""
        self._file.close(force=True)


def open_files(paths: Sequence[Path]) -> ShardReader:
    """Open a shard by its files: the embeddings', and the ids' where those stand apart.

    Raises:
        InputError: a file is missing or damaged.
    """
    if len(paths) == 2:
        return PairShard(paths[0], paths[1])
    if paths[0].suffix.lower() == ".arrow":
        return ArrowShard(paths[0])
    return ParquetShard(paths[0])


def _parquet(path: Path) -> Any:
    return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


def _mapped(path: Path) -> NDArray[Any]:
    """Map the array of a file into memory."""
    array: NDArray[Any]
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with safe_open(path, "np") as file:  # which checks the header
            part = file.get_slice(TENSOR_NAME)
            shape, kind = part.get_shape(), part.get_dtype()
        dtype = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1"}[kind]
        with path.open("rb") as raw:
            offset = 8 + int.from_bytes(raw.read(8), "little")
        # An empty file part can not be mapped.
        array = (
            np.memmap(path, dtype, "r", offset, tuple(shape))
            if shape[0]
            else np.empty(shape, dtype)
        )
    if array.ndim != 2:
        raise ValueError(f"an array of shape {list(array.shape)}, expected [rows, columns]")
    return array


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException, SafetensorError) as error:
        raise InputError(f"{path}: can not be read: {one_line(error)}") from error


def _about(path: Path, schema: Any) -> dict[str, Any]:
    text = (schema.metadata or {}).get(b"c2v")
    try:
        about = {} if text is None else json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise InputError(f"{path}: what the file says of its making (key c2v) is not readable")
    return about
