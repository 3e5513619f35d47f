"""The embeddings that ``c2v encode`` writes, read back a block of rows at a time."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from c2v_engine.errors import InputError
from c2v_engine.jobs.readers.base import one_line
from c2v_engine.jobs.readers.columnar import decoded_batches

_DTYPES = tuple(map(np.dtype, ("float32", "float16", "int8", "uint8")))


class VectorFile(ABC):
    """A file of embeddings, memory-mapped. It can be read many times.

    Attributes:
        path: the file.
        rows: how many.
        columns: of an embedding: dimensions, or bytes of packed bits.
        dtype: float32, float16, int8 or uint8.
        about: what made it, as ``c2v encode`` says in a Parquet file; empty where nothing says.
    """

    path: Path
    rows: int
    columns: int
    dtype: np.dtype[Any]
    about: dict[str, Any]

    @abstractmethod
    def blocks(self, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Give the rows in order, at most ``size`` together.

        Returns:
            The number of a block's first row, and the block [rows, columns].

        Raises:
            InputError: the file is damaged.
        """

    @abstractmethod
    def ids(self, rows: list[int]) -> list[str | int]:
        """Give the ids of some rows, reading little more than those."""


class NpyVectors(VectorFile):
    """An array [rows, columns]; ids are row numbers, and nothing says what made it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about = {}
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a readable .npy file: {one_line(error)}") from error
        if not isinstance(array, np.ndarray):
            array.close()
            raise InputError(f"{path}: not a readable .npy file: it is a .npz archive")
        if array.ndim != 2 or array.shape[1] == 0:
            shape = list(array.shape)
            raise InputError(f"{path}: an array of shape {shape}, expected [rows, columns]")
        self.dtype = _known_dtype(path, array.dtype)
        self.rows, self.columns = array.shape
        self._array = array

    def blocks(self, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Give the rows in order; see ``VectorFile.blocks``."""
        for first in range(0, self.rows, size):
            yield first, self._array[first : first + size]

    def ids(self, rows: list[int]) -> list[str | int]:
        """Give the row numbers themselves."""
        return list(rows)


class ParquetVectors(VectorFile):
    """Columns ``id`` and ``embedding``, as ``c2v encode`` writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            schema = self._file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: not a readable Parquet file: {one_line(error)}") from error
        for column in ("id", "embedding"):
            if schema.names.count(column) != 1:
                names = ", ".join(schema.names[:20])
                raise InputError(
                    f"{path}: the columns are {names}, expected id and embedding, as c2v encode "
                    "writes them"
                )
        kind = schema.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size == 0:
            raise InputError(
                f"{path}: column 'embedding' has the type {kind}, expected lists of one fixed size"
            )
        self.columns = kind.list_size
        try:
            given = np.dtype(kind.value_type.to_pandas_dtype())
        except (NotImplementedError, TypeError):
            given = np.dtype(object)
        self.dtype = _known_dtype(path, given)
        self.rows = self._file.metadata.num_rows
        self.about = _about(path, schema.metadata)

    def blocks(self, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Give the rows in order; see ``VectorFile.blocks``."""
        for first, batch in decoded_batches(self.path, self._file, size, ["embedding"]):
            column = batch.column(0)
            if column.null_count or column.flatten().null_count:
                raise InputError(f"{self.path}, from row {first + 1} on: an embedding is null")
            values = column.flatten().to_numpy(zero_copy_only=True)
            yield first, values.reshape(-1, self.columns)

    def ids(self, rows: list[int]) -> list[str | int]:
        """Give the ids of some rows; only the row groups that hold them are read."""
        found: dict[int, str | int] = {}
        wanted = sorted(set(rows))
        first = 0
        for group in range(self._file.num_row_groups):
            after = first + self._file.metadata.row_group(group).num_rows
            here = [row for row in wanted if first <= row < after]
            if here:
                values = self._group_ids(group).take(pa.array([row - first for row in here]))
                found.update(zip(here, values.to_pylist(), strict=True))
            first = after
        return [found[row] for row in rows]

    def _group_ids(self, group: int) -> Any:
        try:
            return self._file.read_row_group(group, columns=["id"])["id"]
        except (OSError, pa.ArrowException) as error:
            reason = f"the ids can not be decoded: {one_line(error)}"
            raise InputError(f"{self.path}, row group {group + 1}: {reason}") from error


def open_vectors(path: Path) -> VectorFile:
    """Open what ``c2v encode`` or ``c2v merge`` wrote: a file, or a folder of shards.

    Raises:
        InputError: it is missing, damaged, not finished, or holds no embeddings.
    """
    if path.is_dir():
        from c2v_engine.jobs.corpus.folder.vectors import open_job

        return open_job(path)
    if not path.is_file():
        kind = "not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {kind}")
    if path.suffix.lower() == ".npy" and not path.with_suffix(".ids.parquet").exists():
        return NpyVectors(path)
    if path.suffix.lower() == ".parquet":
        return ParquetVectors(path)
    if path.suffix.lower() in (".npy", ".arrow", ".safetensors"):
        from c2v_engine.jobs.corpus.folder.vectors import open_merged

        return open_merged(path)
    raise InputError(
        f"{path}: unknown extension {path.suffix!r}; known are .parquet and .npy, as c2v encode "
        "writes them, .arrow and .safetensors, as c2v merge does, and .usearch, as c2v index does"
    )


def _known_dtype(path: Path, dtype: np.dtype[Any]) -> np.dtype[Any]:
    native: np.dtype[Any] = dtype.newbyteorder("=")
    if native not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise InputError(f"{path}: embeddings of {dtype}, expected one of {known}")
    return native


def _about(path: Path, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    text = (metadata or {}).get(b"c2v")
    if text is None:
        return {}
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise InputError(f"{path}: what the file says of its making (key c2v) is not readable")
    return about
