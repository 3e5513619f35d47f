"""What all writers share: the formats and types that there are, and how rows are handed over."""

from __future__ import annotations

import base64
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import OutputError

FORMATS = (".npy", ".parquet")
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
GROUP_ROWS = 64 * 1024
GROUP_BYTES = 32 * 1024 * 1024


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
        more = " (a folder's name ends in /)" if extension else ""
        raise OutputError(f"{os.fspath(path)}: {given}; known are {', '.join(FORMATS)}{more}")
    if ids and extension == ".npy":
        raise OutputError(
            f"{os.fspath(path)}: a .npy file holds no ids: write .parquet or leave out --id-column"
        )
    check_precision(os.fspath(path), precision)


def check_precision(name: str, precision: str) -> None:
    """Check that files hold embeddings of a precision.

    Raises:
        OutputError: they do not.
    """
    if precision not in DTYPES:
        raise OutputError(f"{name}: files hold no {precision}: write float16 or float32 instead")


class Writer(ABC):
    """Takes embeddings block by block; ``finish`` completes the file but does not commit it.

    Attributes:
        rows: how many rows have been written.
    """

    rows: int = 0

    @abstractmethod
    def write(
        self, columns: Any, embeddings: NDArray[Any], valid: NDArray[np.bool_] | None = None
    ) -> None:
        """Append rows.

        Args:
            columns: a pyarrow ``RecordBatch`` [rows]: ``id``, and what is passed through.
            embeddings: [valid rows, dimension] in the writer's dtype.
            valid: bool [rows], which rows have an embedding; None for all.

        Raises:
            OSError: the system refuses, for example on a full disk.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what is held back, and the file's header or footer."""

    def abandon(self) -> None:  # noqa: B027 - most writers hold nothing
        """Let go of a file that will not be finished."""


def spread(embeddings: NDArray[Any], valid: NDArray[np.bool_] | None, fill: float) -> NDArray[Any]:
    """Put embeddings [valid rows, dimension] into their rows; the others are filled.

    Returns:
        [rows, dimension], contiguous.
    """
    assert embeddings.ndim == 2
    if valid is None:
        return np.ascontiguousarray(embeddings)
    rows = np.full((len(valid), embeddings.shape[1]), fill, dtype=embeddings.dtype)
    rows[valid] = embeddings
    return rows


def group_rows(dimension: int, dtype: np.dtype[Any]) -> int:
    """How many rows are written together, about 32 MB of them."""
    return max(1, min(GROUP_ROWS, GROUP_BYTES // max(1, dimension * dtype.itemsize)))


def pack_ranges(ranges: NDArray[Any]) -> str:
    """Write ranges, float32 [2, dimensions], as base64 text for a file's metadata."""
    return base64.b64encode(np.ascontiguousarray(ranges, dtype="<f4").tobytes()).decode("ascii")


def unpack_ranges(text: str) -> NDArray[Any]:
    """Read what ``pack_ranges`` wrote.

    Raises:
        ValueError: it did not write that.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").reshape(2, -1)
