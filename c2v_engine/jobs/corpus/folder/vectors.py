"""A finished job's embeddings, shard after shard, as one file of vectors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.corpus.folder.finished import JobFolder
from c2v_engine.jobs.corpus.folder.shard_files import ShardReader, open_files
from c2v_engine.jobs.vectors import VectorFile
from c2v_engine.jobs.writers import DTYPES


class ShardVectors(VectorFile):
    """The rows of shards in order; a shard is open only while it is read.

    Args:
        path: what they are called in messages.
        shards: the files of each.
        counts: rows of each.
        columns: of an embedding.
        dtype: of its values.

    Raises:
        InputError: the first shard can not be read.
    """

    def __init__(
        self,
        path: Path,
        shards: list[list[Path]],
        counts: list[int],
        columns: int,
        dtype: np.dtype[Any],
    ) -> None:
        self.path = path
        self.columns = columns
        self.dtype = dtype
        self.about = {}
        self._shards = shards
        self._ends = list(accumulate(counts, initial=0))
        self.rows = self._ends[-1]
        if shards:
            with closing(self._open(0)) as first:
                self.about = first.about

    def blocks(self, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Give the rows in order; see ``VectorFile.blocks``."""
        for number in range(len(self._shards)):
            row = self._ends[number]
            with closing(self._open(number)) as shard:
                for block in shard.blocks(size):
                    if block.valid is not None:
                        bad = row + int(np.argmin(block.valid))
                        raise InputError(
                            f"{shard.path}: row {bad + 1} has no embedding: rows that were "
                            "rejected as null can not be searched; skip them instead"
                        )
                    yield row, block.embeddings
                    row += len(block.embeddings)

    def ids(self, rows: list[int]) -> list[str | int]:
        """Give the ids of some rows; only the shards that hold them are read."""
        found: dict[int, str | int] = {}
        by_shard: dict[int, list[int]] = {}
        for row in set(rows):
            by_shard.setdefault(bisect_right(self._ends, row) - 1, []).append(row)
        for number, here in by_shard.items():
            with closing(self._open(number)) as shard:
                places = pa.array([row - self._ends[number] for row in here])
                found.update(zip(here, shard.ids().take(places).to_pylist(), strict=True))
        return [found[row] for row in rows]

    def _open(self, number: int) -> ShardReader:
        shard = open_files(self._shards[number])
        found = (shard.rows, shard.dimension, shard.dtype)
        expected = (self._ends[number + 1] - self._ends[number], self.columns, self.dtype)
        if found != expected:
            shard.close()
            raise InputError(
                f"{shard.path}: holds {found[0]} rows of {found[1]} {found[2]}, expected "
                f"{expected[0]} of {expected[1]} {expected[2]}"
            )
        return shard


def open_job(folder: Path) -> ShardVectors:
    """Open the embeddings of a finished job.

    Raises:
        InputError: the folder holds no job, it is not finished, or a shard can not be read.
    """
    try:
        job = JobFolder(folder)
    except OutputError as error:
        raise InputError(str(error)) from error
    job.check_finished()
    records = [record for record in job.manifest.records() if record.written]
    return ShardVectors(
        folder,
        [[folder / file.name for file in record.files] for record in records],
        [record.written for record in records],
        job.job["dimension"],
        np.dtype(DTYPES[job.job["precision"]]),
    )


def open_merged(path: Path) -> ShardVectors:
    """Open what ``c2v merge`` wrote.

    Args:
        path: .arrow, or .npy or .safetensors, whose ids stand beside it.

    Raises:
        InputError: it can not be read.
    """
    paths = [path]
    if path.suffix.lower() != ".arrow":
        paths.append(path.with_suffix(".ids.parquet"))
    with closing(open_files(paths)) as shard:
        return ShardVectors(path, [paths], [shard.rows], shard.dimension, shard.dtype)
