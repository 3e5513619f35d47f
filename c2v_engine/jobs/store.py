"""Embeddings, and texts, in temporary files that have no name and so never stay behind."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.jobs.decoding import unit_rows


class VectorStore:
    """Unit vectors in float16 on disk, appended first, then read.

    They are written by ordinary writes, so that a full disk is an error and not a signal, and
    mapped into memory when they are read.

    Args:
        folder: where the temporary file goes.
        dimension: of the vectors.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._dimension = dimension
        self._array: NDArray[np.float16] | None = None
        self._rows = 0

    def append(self, block: NDArray[Any]) -> None:
        """Take vectors [rows, dimension] of any length.

        Raises:
            OSError: the system refuses, for example on a full disk.
        """
        units, bad = unit_rows(np.asarray(block, dtype=np.float32))
        assert bad is None, "the engine refuses such texts itself"
        self._file.write(units.astype(np.float16).tobytes())
        self._rows += len(units)

    def __len__(self) -> int:
        return self._rows

    def read(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Give some rows, float32 [rows, dimension]."""
        if self._array is None:
            self._file.flush()
            shape = (self._rows, self._dimension)
            self._array = np.memmap(self._file, dtype=np.float16, mode="r", shape=shape)
        return self._array[rows].astype(np.float32)

    def close(self) -> None:
        """Drop the file."""
        self._array = None
        self._file.close()


class TextStore:
    """Texts on disk, appended first, then read in any order; eight bytes each stay in memory.

    Args:
        folder: where the temporary file goes.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._ends = array("Q", [0])

    def append(self, text: str) -> None:
        """Take the next text.

        Raises:
            OSError: the system refuses, for example on a full disk.
        """
        self._ends.append(self._ends[-1] + self._file.write(text.encode()))

    def read(self, numbers: Sequence[int]) -> list[str]:
        """Give some texts by their numbers."""
        texts = []
        for number in numbers:
            start, end = self._ends[number], self._ends[number + 1]
            self._file.seek(start)
            texts.append(self._file.read(end - start).decode())
        return texts

    def close(self) -> None:
        """Drop the file."""
        self._file.close()
