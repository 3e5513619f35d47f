"""Writers: blocks of embeddings, with their ids, into one ``.npy`` or ``.parquet`` file."""

from __future__ import annotations

import base64
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from c2v_engine.errors import OutputError
from c2v_engine.jobs.output import AtomicFile

FORMATS = (".npy", ".parquet")
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
ROW_GROUP_ROWS = 64 * 1024
ROW_GROUP_BYTES = 32 * 1024 * 1024
NPY_HEADER_BYTES = 128


def check_output(path: str | os.PathLike[str], *, ids: bool, precision: str) -> None:
    """Check that a format is known and can hold what will be written.

    Args:
        path: the output file.
        ids: whether ids from a column go with the embeddings.
        precision: of the embeddings.

    Raises:
        OutputError: the extension is unknown, or is ``.npy`` with ids, or the precision is one
            that neither format has.
    """
    extension = Path(path).suffix.lower()
    if extension not in FORMATS:
        given = f"unknown extension {extension!r}" if extension else "no extension"
        raise OutputError(f"{os.fspath(path)}: {given}; known are {', '.join(FORMATS)}")
    if ids and extension == ".npy":
        raise OutputError(
            f"{os.fspath(path)}: a .npy file holds no ids: write .parquet or leave out --id-column"
        )
    if precision not in DTYPES:
        raise OutputError(
            f"{os.fspath(path)}: files hold no {precision}: write float16 or float32 instead"
        )


class Writer(ABC):
    """Takes embeddings block by block; ``finish`` completes the file but does not commit it.

    Attributes:
        rows: how many rows have been written.
    """

    rows: int = 0

    @abstractmethod
    def write(self, ids: Sequence[Any], block: NDArray[Any]) -> None:
        """Append a block.

        Args:
            ids: an id for each row.
            block: [rows, dimension] embeddings in the writer's dtype.

        Raises:
            OSError: the system refuses, for example on a full disk.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what is held back, and the file's header or footer."""

    def abandon(self) -> None:  # noqa: B027 - most writers hold nothing
        """Let go of a file that will not be finished."""


class NpyWriter(Writer):
    """One array [rows, dimension]. The header is written last, when the rows are counted."""

    def __init__(self, target: AtomicFile, dimension: int, dtype: np.dtype[Any]) -> None:
        self._file = target.file
        self._dimension = dimension
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file.write(bytes(NPY_HEADER_BYTES))

    def write(self, ids: Sequence[Any], block: NDArray[Any]) -> None:
        """Append a block; see ``Writer.write``."""
        assert block.ndim == 2
        assert block.shape[1] == self._dimension
        if block.size:
            data = np.ascontiguousarray(block, dtype=self._dtype)
            self._file.write(data.view(np.uint8).data)
        self.rows += len(block)

    def finish(self) -> None:
        """Write the header over the room kept for it."""
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, self._dimension),
        }
        prefix = np.lib.format.magic(1, 0)
        room = NPY_HEADER_BYTES - len(prefix) - 2
        header = repr(description).ljust(room - 1).encode("latin1") + b"\n"
        assert len(header) == room
        self._file.seek(0)
        self._file.write(prefix + room.to_bytes(2, "little") + header)


class ParquetWriter(Writer):
    """Columns ``id`` and ``embedding``, a fixed-size list, in row groups of about 32 MB.

    Args:
        target: the file.
        dimension: embedding width.
        dtype: float32, float16, int8 or uint8.
        id_type: the pyarrow type of the ids.
        metadata: about the run; stored as JSON under the file's metadata key ``c2v``.
    """

    def __init__(
        self,
        target: AtomicFile,
        dimension: int,
        dtype: np.dtype[Any],
        id_type: Any,
        metadata: dict[str, Any],
    ) -> None:
        self._dimension = dimension
        self._dtype = np.dtype(dtype)
        self._id_type = id_type
        self._ids: list[Any] = []
        self._blocks: list[NDArray[Any]] = []
        row_bytes = max(1, dimension * self._dtype.itemsize)
        self._group_rows = max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // row_bytes))
        value_type = pa.from_numpy_dtype(self._dtype)
        self._schema = pa.schema(
            [
                pa.field("id", id_type, nullable=False),
                pa.field("embedding", pa.list_(value_type, dimension), nullable=False),
            ],
            metadata={"c2v": json.dumps(metadata)},
        )
        self._writer: Any = pq.ParquetWriter(
            target.file,
            self._schema,
            use_dictionary=False,
            write_statistics=["id"],
            write_page_checksum=True,
            compression={"id": "zstd", "embedding.list.element": "none"},
        )

    def write(self, ids: Sequence[Any], block: NDArray[Any]) -> None:
        """Append a block; see ``Writer.write``."""
        assert block.ndim == 2
        assert block.shape[1] == self._dimension
        assert block.dtype == self._dtype
        assert len(ids) == len(block)
        self._ids.extend(ids)
        self._blocks.append(block)
        self.rows += len(block)
        while len(self._ids) >= self._group_rows:
            self._write_group(self._group_rows)

    def _write_group(self, rows: int) -> None:
        values = self._blocks[0] if len(self._blocks) == 1 else np.concatenate(self._blocks)
        group, rest = values[:rows], values[rows:]
        ids, self._ids = self._ids[:rows], self._ids[rows:]
        self._blocks = [rest] if len(rest) else []
        flat = pa.array(np.ascontiguousarray(group).reshape(-1))
        embeddings = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field(1).type)
        columns = [pa.array(ids, type=self._id_type), embeddings]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def finish(self) -> None:
        """Write the last row group and the footer."""
        if self._ids:
            self._write_group(len(self._ids))
        self._writer.close()

    def abandon(self) -> None:
        """Let go of a file that will not be finished."""
        # Otherwise pyarrow's writer would try to write a footer when it is collected.
        self._writer.is_open = False


def pack_ranges(ranges: NDArray[Any]) -> str:
    """Write ranges, float32 [2, dimensions], as base64 text for a file's metadata."""
    return base64.b64encode(np.ascontiguousarray(ranges, dtype="<f4").tobytes()).decode("ascii")


def unpack_ranges(text: str) -> NDArray[Any]:
    """Read what ``pack_ranges`` wrote.

    Raises:
        ValueError: it did not write that.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").reshape(2, -1)


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
        return NpyWriter(target, dimension, dtype)
    return ParquetWriter(target, dimension, dtype, id_type, metadata)
