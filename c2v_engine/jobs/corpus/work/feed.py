"""Blocks of rows, read ahead by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Full, Queue
from typing import NamedTuple

from c2v_engine.jobs.corpus.records import RowBlock, Unit

# Blocks that wait; a block holds up to 1,024 rows, and the engine takes 8,192 at a time.
_AHEAD = 24
_TICK_SECONDS = 0.2
_END_SECONDS = 1.0


class Piece(NamedTuple):
    """A block of a unit, or the unit's end (no block)."""

    unit: Unit
    block: RowBlock | None


class Feed:
    """Reads units in a thread, some blocks ahead of who takes them.

    Args:
        units: what is read, in this order; asked for one at a time, in the thread.
        read: gives the blocks of a unit.

    Attributes:
        seconds: spent reading so far.
    """

    def __init__(self, units: Iterable[Unit], read: Callable[[Unit], Iterator[RowBlock]]) -> None:
        self._units = units
        self._read = read
        self._queue: Queue[Piece | BaseException | None] = Queue(_AHEAD)
        self._stopped = threading.Event()
        self._over = False
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="c2v-read", daemon=True)
        self._thread.start()

    def next(self) -> Piece | None:
        """Wait for the next piece; None when there is no more.

        Raises:
            InputError: the input can not be read on.
        """
        if self._over:
            return None
        piece = self._queue.get()
        if isinstance(piece, Piece):
            return piece
        self._over = True
        if piece is not None:
            raise piece
        return None

    def close(self) -> None:
        """Stop reading; a thread that waits for its next unit is left to wait."""
        self._stopped.set()
        self._over = True
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        try:
            for unit in self._units:
                for block in self._timed(self._read(unit)):
                    if not self._put(Piece(unit, block)):
                        return
                if not self._put(Piece(unit, None)):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _timed(self, blocks: Iterator[RowBlock]) -> Iterator[RowBlock]:
        while True:
            start = time.perf_counter()
            block = next(blocks, None)
            self.seconds += time.perf_counter() - start
            if block is None:
                return
            yield block

    def _put(self, piece: Piece | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(piece, timeout=_TICK_SECONDS)
                return True
            except Full:
                continue
        return False
