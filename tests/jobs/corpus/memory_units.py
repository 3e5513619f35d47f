"""Units of made-up rows, and shards in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from c2v_engine.jobs.corpus.records import Reject, RowBlock, Segment, ShardFile, Unit


def make_units(count, rows):
    return [Unit(i, i * rows, (Segment(0, i * rows, rows),)) for i in range(count)]


def read_blocks(texts, size=7, bad=()):
    """What reads a unit of ``texts``; rows in ``bad`` are rejected by the reader."""

    def read(unit):
        end = unit.first_row + unit.rows
        for first in range(unit.first_row, end, size):
            rows = range(first, min(end, first + size))
            yield RowBlock(
                first_row=first,
                texts=[None if row in bad else texts[row] for row in rows],
                columns=pa.record_batch({"id": [f"id{row}" for row in rows]}),
                rejects={
                    row - first: Reject(row, f"id{row}", f"made-up, row {row + 1}", "is bad")
                    for row in rows
                    if row in bad
                },
                file="made-up",
                file_row=first,
            )

    return read


class MemoryShards:
    """Keeps what is written, by unit."""

    def __init__(self, fails=None):
        self.written = {}
        self.abandoned = []
        self.fails = fails

    def open(self, unit):
        return _Shard(self, unit)


class _Shard:
    def __init__(self, shards, unit):
        self._shards = shards
        self._unit = unit
        self._ids, self._vectors, self._valid = [], [], []

    def write(self, columns, embeddings, valid):
        if self._shards.fails == self._unit.number:
            raise OSError(28, "No space left on device")
        assert len(embeddings) == (len(columns) if valid is None else valid.sum())
        self._ids += columns.column("id").to_pylist()
        self._vectors.append(embeddings)
        self._valid.append(np.ones(len(columns), bool) if valid is None else valid)

    def finish(self):
        vectors = np.concatenate(self._vectors) if self._vectors else np.empty((0, 0))
        self._shards.written[self._unit.number] = (
            self._ids,
            vectors,
            np.concatenate(self._valid) if self._valid else np.empty(0, bool),
        )
        return [(f"tmp{self._unit.number}", ShardFile(f"part{self._unit.number}", 1, "0"))]

    def abandon(self):
        self._shards.abandoned.append(self._unit.number)
