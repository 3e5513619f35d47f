"""Embeddings as one array [rows, dimension] in a file: ``.npy`` and ``.safetensors``."""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.jobs.writers.base import Writer, spread

TENSOR_NAME = "embeddings"
NPY_HEADER_BYTES = 128
_SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
_MOST_BYTES = 2**63


class ArrayWriter(Writer):
    """Room for a header, then the rows; the header is written last, when the rows are counted.

    A row without an embedding is NaN.

    Args:
        file: open for writing, at its beginning.
        dimension: embedding width.
        dtype: float32, float16, int8 or uint8.
        room: of the header, in bytes.
    """

    def __init__(self, file: IO[bytes], dimension: int, dtype: np.dtype[Any], room: int) -> None:
        self._file = file
        self._dimension = dimension
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._room = room
        self._file.write(bytes(room))

    def write(
        self, columns: Any, embeddings: NDArray[Any], valid: NDArray[np.bool_] | None = None
    ) -> None:
        """Append the embeddings; see ``Writer.write``."""
        assert valid is None or self._dtype.kind == "f"
        rows = spread(embeddings, valid, np.nan).astype(self._dtype, copy=False)
        assert rows.shape[1] == self._dimension
        if rows.size:
            self._file.write(rows.view(np.uint8).data)
        self.rows += len(rows)

    def finish(self) -> None:
        """Write the header over the room kept for it."""
        header = self._header()
        assert len(header) == self._room
        self._file.seek(0)
        self._file.write(header)

    @abstractmethod
    def _header(self) -> bytes:
        """The header, for the rows that there are now."""


class NpyWriter(ArrayWriter):
    """NumPy's format, version 1.0."""

    def __init__(self, file: IO[bytes], dimension: int, dtype: np.dtype[Any]) -> None:
        super().__init__(file, dimension, dtype, NPY_HEADER_BYTES)

    def _header(self) -> bytes:
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, self._dimension),
        }
        prefix = np.lib.format.magic(1, 0)
        room = self._room - len(prefix) - 2
        text = repr(description).ljust(room - 1).encode("latin1") + b"\n"
        return prefix + room.to_bytes(2, "little") + text


class SafetensorsWriter(ArrayWriter):
    """A tensor ``embeddings``; the library itself would need all of it in memory.

    Args:
        file: open for writing, at its beginning.
        dimension: embedding width.
        dtype: float32, float16, int8 or uint8.
        metadata: about the run; stored as JSON under the key ``c2v``.
    """

    def __init__(
        self,
        file: IO[bytes],
        dimension: int,
        dtype: np.dtype[Any],
        metadata: dict[str, Any],
    ) -> None:
        self._metadata = metadata
        self._kind = _SAFETENSORS_TYPES[np.dtype(dtype).name]
        longest = len(self._text(dimension, _MOST_BYTES, _MOST_BYTES))
        super().__init__(file, dimension, dtype, 8 + (longest + 7) // 8 * 8)

    def _text(self, dimension: int, rows: int, size: int) -> bytes:
        header = {
            "__metadata__": {"c2v": json.dumps(self._metadata)},
            TENSOR_NAME: {
                "dtype": self._kind,
                "shape": [rows, dimension],
                "data_offsets": [0, size],
            },
        }
        return json.dumps(header).encode("utf-8")

    def _header(self) -> bytes:
        size = self.rows * self._dimension * self._dtype.itemsize
        room = self._room - 8
        return room.to_bytes(8, "little") + self._text(self._dimension, self.rows, size).ljust(room)
