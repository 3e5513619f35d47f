"""Shards, written by a thread of its own while the next texts are embedded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, Full, Queue, SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from c2v_engine.jobs.corpus.records import Reject, ShardFile, Unit, UnitDone
from c2v_engine.jobs.corpus.work.pending import PendingBlock

_TICK_SECONDS = 0.2
# Embeddings that wait to be written.
_WAITING_BYTES = 64 * 1024 * 1024
_BLOCK_ROWS = 1024


class Shard(Protocol):
    """A shard that is being written; ``folder.shards.ShardWriter``."""

    def write(
        self, columns: Any, embeddings: NDArray[Any], valid: NDArray[np.bool_] | None
    ) -> None:
        """Append rows: a record batch, [valid rows, dimension], bool [rows] or None for all."""

    def finish(self) -> list[tuple[str, ShardFile]]:
        """Complete and sync its files; each with the name that it has until it is committed."""

    def abandon(self) -> None:
        """Remove what was written."""


class Finished(NamedTuple):
    """A unit whose shard is whole and on disk, under temporary names.

    Attributes:
        done: its record.
        temporary: the name of each of its files for now, in the record's order.
    """

    done: UnitDone
    temporary: tuple[str, ...]


class EndOfUnit(NamedTuple):
    """All rows of a unit have been handed over."""

    unit: Unit
    tokens: int
    seconds: float


class ShardThread:
    """Writes blocks that are complete, shard by shard.

    Args:
        open_shard: opens the shard of a unit.
        dimension: columns of an embedding.
        dtype: of the embeddings.
        skip: whether rows without an embedding are left out, rather than null.
        keep: is given what the engine computed, texts and vectors, before it is written.

    Attributes:
        seconds: spent writing so far.
        rejects: rows so far that have no embedding.
    """

    def __init__(
        self,
        open_shard: Callable[[Unit], Shard],
        dimension: int,
        dtype: Any,
        *,
        skip: bool,
        keep: Callable[[list[str], NDArray[Any]], None] | None = None,
    ) -> None:
        self._open_shard = open_shard
        self._dimension = dimension
        self._dtype = np.dtype(dtype)
        self._skip = skip
        self._keep = keep
        row_bytes = dimension * self._dtype.itemsize
        waiting = max(2, _WAITING_BYTES // (row_bytes * _BLOCK_ROWS))
        self._queue: Queue[PendingBlock | EndOfUnit | None] = Queue(waiting)
        self._finished: SimpleQueue[Finished] = SimpleQueue()
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self.seconds = 0.0
        self.rejects = 0
        self._thread = threading.Thread(target=self._run, name="c2v-write", daemon=True)
        self._thread.start()

    def put(self, piece: PendingBlock | EndOfUnit) -> None:
        """Hand over a complete block or the end of a unit; waits while too much is waiting.

        Raises:
            OutputError: something could not be written.
        """
        self._offer(piece)

    def finished(self) -> list[Finished]:
        """Give the units that have become whole since the last call."""
        found = []
        while not self._finished.empty():
            found.append(self._finished.get())
        return found

    def drain(self) -> list[Finished]:
        """Wait until all that was handed over is written; as ``finished``. Nothing comes after."""
        if self._offer(None, failing=False):
            self._thread.join()
        return self.finished()

    def check(self) -> None:
        """See that all could be written so far.

        Raises:
            OutputError: something could not be written.
        """
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop, and remove what is not whole."""
        self._stopped.set()
        self._thread.join()

    def _offer(self, piece: PendingBlock | EndOfUnit | None, failing: bool = True) -> bool:
        while True:
            if self._failure is not None:
                if failing:
                    raise self._failure
                return False
            try:
                self._queue.put(piece, timeout=_TICK_SECONDS)
                return True
            except Full:
                continue

    def _run(self) -> None:
        shard: Shard | None = None
        rejects: list[Reject] = []
        written = 0
        try:
            while (piece := self._take()) is not None:
                start = time.perf_counter()
                if shard is None:
                    shard, rejects, written = self._open_shard(piece.unit), [], 0
                if isinstance(piece, PendingBlock):
                    written += self._write(shard, piece)
                    found = [reject for _, reject in sorted(piece.block.rejects.items())]
                    rejects += found
                    self.rejects += len(found)
                else:
                    files = shard.finish()
                    shard = None
                    self._finished.put(_finish(piece, files, written, rejects))
                self.seconds += time.perf_counter() - start
        except BaseException as error:
            self._failure = error
        finally:
            if shard is not None:
                shard.abandon()

    def _take(self) -> PendingBlock | EndOfUnit | None:
        while not self._stopped.is_set():
            try:
                return self._queue.get(timeout=_TICK_SECONDS)
            except Empty:
                continue
        return None

    def _write(self, shard: Shard, piece: PendingBlock) -> int:
        if self._keep is not None:
            texts, computed = piece.computed()
            if computed is not None:
                self._keep(texts, computed)
        embeddings = piece.embeddings(self._dimension, self._dtype)
        columns, valid = piece.block.columns, piece.valid
        if valid is not None and self._skip:
            columns, valid = columns.filter(valid), None
        shard.write(columns, embeddings, valid)
        return len(columns)


def _finish(
    end: EndOfUnit,
    files: list[tuple[str, ShardFile]],
    written: int,
    rejects: list[Reject],
) -> Finished:
    done = UnitDone(
        unit=end.unit.number,
        first_row=end.unit.first_row,
        rows=end.unit.rows,
        written=written,
        files=tuple(file for _, file in files),
        rejects=tuple(rejects),
        tokens=end.tokens,
        seconds=round(end.seconds, 3),
    )
    return Finished(done, tuple(name for name, _ in files))
